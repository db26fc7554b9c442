use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::thread;

use super::*;
use crate::timeline::Mark;

fn tally() -> (tempfile::TempDir, Tally) {
    let dir = tempfile::tempdir().unwrap();
    let tally = Tally::new(dir.path());
    (dir, tally)
}

/// The format of the file. Whoever has to change this test raises [`VERSION`].
#[test]
fn every_number_has_a_place_of_its_own_that_stays() {
    let histograms =
        [Histogram::Create, Histogram::Start].into_iter().chain((0..STEPS.len()).map(Histogram::Step));
    let places: Vec<Place> = Start::ALL
        .map(Start::place)
        .into_iter()
        .chain(Ending::ALL.map(Ending::place))
        .chain(histograms.flat_map(|histogram| histogram.buckets().chain([histogram.sum()])))
        .collect();
    assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), places.len(), "{places:?}");
    assert!(places.iter().all(|place| place.0 < sys::PAGE / size_of::<AtomicU64>()));
    assert_eq!(VERSION, 2);
    assert_eq!((places[0], places[5], places[15], places[28]), (Place(0), Place(16), Place(48), Place(61)));
    assert_eq!((STEPS.len(), STEPS[0], STEPS[15]), (16, "create requested", "sandbox created"));
    assert_eq!((Ending::Stopped.place(), Ending::OwnerDied.place()), (Place(16), Place(25)));
}

#[test]
fn nothing_is_counted_before_the_first_pod() {
    let (_dir, tally) = tally();
    let counts = tally.read().unwrap();
    assert_eq!(counts.starts(Start::Forked), 0);
    assert_eq!(counts.container_starts().up_to.last(), Some(&0));
    File::create(&tally.0).unwrap();
    assert_eq!(tally.read().unwrap().endings(Ending::Killed), 0, "it is just being made");
}

#[test]
fn owners_that_count_at_once_lose_nothing() {
    let (_dir, tally) = tally();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..500).for_each(|_| tally.vm_ended(&ExitReason::TripleFault)));
        }
    });
    let counts = tally.read().unwrap();
    assert_eq!(counts.endings(Ending::TripleFault), 2000);
    assert_eq!(counts.endings(Ending::Stopped), 0);
}

#[test]
fn a_duration_is_in_every_bucket_from_its_own_on() {
    let (_dir, tally) = tally();
    for took_us in [0, 10_000, 10_001, 99_000_000] {
        tally.container_started(took_us);
    }
    let spread = tally.read().unwrap().container_starts();
    assert_eq!(spread.up_to, [2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4]);
    assert_eq!(spread.sum_us, 99_020_001);
    assert_eq!(tally.read().unwrap().container_creations().sum_us, 0);
}

#[test]
fn steps_are_counted_from_the_owners_first_whatever_the_vmm_claims() {
    let (_dir, tally) = tally();
    let timeline = Timeline::new();
    timeline.mark_at("shim started", 1_000_000);
    timeline.mark_at("vmm exec", 7);
    timeline.mark_at("jailed", u64::MAX);
    timeline.mark_at("x\" 1\nmonohull_pods 9", 1_000_001);
    timeline.mark_at("agent ready", 1_030_000);
    timeline.mark_at("agent ready", 1_200_000);
    assert_eq!(timeline.marks().first(), Some(&Mark { step: "vmm exec".into(), at_us: 7 }));

    tally.started(Start::Forked, &timeline);

    let counts = tally.read().unwrap();
    assert_eq!((counts.starts(Start::Forked), counts.starts(Start::Failed)), (1, 0));
    let of = |name: &str| counts.step(STEPS.iter().position(|step| *step == name).unwrap());
    assert_eq!(of("vmm exec").sum_us, 0);
    assert_eq!(of("jailed").sum_us, 3_600_000_000, "no longer than an hour");
    assert_eq!((of("agent ready").sum_us, of("agent ready").up_to.last()), (200_000, Some(&1)));
    assert_eq!(of("hooks run").up_to.last(), Some(&0));
}

#[test]
fn what_cannot_be_counted_is_not_worth_failing_for() {
    let (dir, _) = tally();
    let elsewhere = dir.path().join("precious");
    std::fs::write(&elsewhere, "kept").unwrap();
    let tally = Tally::new(dir.path());
    std::os::unix::fs::symlink(&elsewhere, &tally.0).unwrap();
    tally.start_failed();
    assert_eq!(std::fs::read(&elsewhere).unwrap(), b"kept", "a link is not followed");
    assert!(tally.read().is_err());
}

#[test]
fn a_directory_that_is_not_there_yet_is_made_and_what_was_counted_can_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    remove(&state).unwrap();
    let tally = Tally::new(&state);
    tally.start_failed();
    assert_eq!(tally.read().unwrap().starts(Start::Failed), 1);
    std::fs::write(state.join("tally-0"), "an older release's").unwrap();
    std::fs::create_dir(state.join("tally-pods")).unwrap();
    std::fs::write(state.join("other"), "").unwrap();

    remove(&state).unwrap();

    let left: BTreeSet<_> =
        std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, BTreeSet::from(["other".into(), "tally-pods".into()]));
}
