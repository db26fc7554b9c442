use std::io::Read;
use std::time::{Duration, UNIX_EPOCH};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::line::rfc3339;
use super::*;
use crate::state::ProcessId;

fn settings(dir: &Path) -> Settings {
    Settings { state_dir: dir.to_owned(), ..Settings::default() }
}

fn kept(dir: &Path) -> String {
    list(dir).unwrap().first().unwrap().read().unwrap()
}

#[test]
fn times_are_rfc3339() {
    let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
    assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000Z");
    assert_eq!(at(1_795_372_799), "2026-11-22T18:39:59.000000Z");
}

#[test]
fn values_are_quoted_where_logrus_would() {
    assert_eq!(quoted("/run/a-b_c"), "/run/a-b_c");
    assert_eq!(quoted("v1.2"), "v1.2");
    assert_eq!(quoted("two\nlines"), r#""two\nlines""#);
    assert_eq!(quoted(""), "\"\"");
}

#[test]
fn lines_reach_the_fifo_and_a_full_one_does_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let mut reader =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    let log = Log::of_shim(&path, "p1", false);
    tracing::subscriber::with_default(log, || {
        tracing::info!(step = "agent ready", us = 7, "pod started");
        tracing::warn!(error = "gone", step = "write state");
        tracing::debug!("not at this level");
    });
    let mut buffer = [0; 8192];
    let n = reader.read(&mut buffer).unwrap();
    let text = std::str::from_utf8(&buffer[..n]).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("time=\"20"), "{text}");
    assert!(
        lines[0].ends_with(" level=info msg=\"pod started\" step=\"agent ready\" us=7 part=shim pod=p1"),
        "{text}"
    );
    assert!(
        lines[1]
            .ends_with(" level=warning msg=\"write state\" error=gone step=\"write state\" part=shim pod=p1"),
        "{text}"
    );

    let log = Log::of_shim(&path, "p1", false);
    tracing::subscriber::with_default(log, || (0..2000).for_each(|_| tracing::info!("{:1000}", "x")));
}

#[test]
fn what_was_said_before_it_was_known_where_to_keep_it_is_kept_and_so_is_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::unread("p1");
    tracing::subscriber::with_default(log.clone(), || {
        tracing::info!("early");
        log.keep(&settings(dir.path()), "n");
        tracing::info!(container = "c1", "late");
        drop(log);
    });
    let all = list(dir.path()).unwrap();
    assert_eq!((all[0].namespace.as_str(), all[0].pod.as_str(), all.len()), ("n", "p1", 1));
    let text = kept(dir.path());
    let messages: Vec<_> = text.lines().map(|line| line.split("msg=").nth(1).unwrap()).collect();
    assert_eq!(messages, ["early part=shim pod=p1", "late container=c1 part=shim pod=p1"]);
}

#[test]
fn level_and_format_are_the_settings_unless_the_engine_wants_more() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        Settings { log_level: LogLevel::Warn, log_format: LogFormat::Json, ..settings(dir.path()) };
    for (debug, expected) in [(false, 1), (true, 3)] {
        let log = Log::of_shim(Path::new("/nonexistent"), &format!("p{expected}"), debug);
        tracing::subscriber::with_default(log.clone(), || {
            log.keep(&settings, "n");
            tracing::warn!(code = 3, step = "x", "a \"b\"\u{1b}[31m");
            tracing::info!("c");
            tracing::debug!("d");
        });
        drop(log);
        let text = kept(dir.path());
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), expected, "{text}");
        assert_eq!(lines[0]["msg"], "a \"b\"\u{1b}[31m");
        assert_eq!((&lines[0]["code"], &lines[0]["level"]), (&3.into(), &"warning".into()));
        assert!(!text.contains('\u{1b}'), "{text}");
        assert_eq!(Part::of_line(text.lines().next().unwrap()), Some(Part::Shim));
    }
}

#[test]
fn a_line_is_its_part_and_never_longer_than_a_pipe_takes() {
    let dir = tempfile::tempdir().unwrap();
    for format in [LogFormat::Text, LogFormat::Json] {
        let log = Log::unread(&format!("p-{format:?}"));
        tracing::subscriber::with_default(log.clone(), || {
            log.keep(&Settings { log_format: format, ..settings(dir.path()) }, "");
            tracing::error!(part = "vmm", error = "y".repeat(9000), "{} part=fs pod=x", "é".repeat(5000));
        });
        drop(log);
        let text = kept(dir.path());
        let line = text.lines().next().unwrap();
        assert!(line.len() < line::LINE_LIMIT, "{}", line.len());
        assert_eq!(Part::of_line(line), Some(Part::Vmm), "{line}");
        assert!(format == LogFormat::Text || serde_json::from_str::<serde_json::Value>(line).is_ok());
    }
}

#[test]
fn what_a_pod_says_is_bounded_and_the_last_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = Keeper::open(dir.path(), "n", "p1").unwrap();
    for number in 0..3000 {
        keeper.write(format!("line {number:06} {}\n", "x".repeat(100)).as_bytes()).unwrap();
    }
    let text = kept(dir.path());
    assert!(text.len() as u64 <= 2 * kept::MAX_FILE && text.len() as u64 > kept::MAX_FILE / 2);
    assert!(text.lines().last().unwrap().starts_with("line 002999"));
    let numbers: Vec<u32> =
        text.lines().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "nothing is missing between");
}

#[test]
fn the_logs_of_ended_pods_are_bounded_in_number_and_living_pods_keep_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let mut living = Keeper::open(dir.path(), "n", "living").unwrap();
    living.write(b"I am\n").unwrap();
    for number in 0..kept::ENDED + 20 {
        let mut keeper = Keeper::open(dir.path(), "n", &format!("p{number}")).unwrap();
        keeper.write(b"was here\n").unwrap();
        kept::forget(keeper.dir()).unwrap();
    }
    let logs = list(dir.path()).unwrap();
    assert!(logs.len() <= kept::ENDED + 1, "{}", logs.len());
    assert!(logs.iter().any(|log| log.pod == "living"));
    assert!(logs.iter().any(|log| log.pod == format!("p{}", kept::ENDED + 19)), "the latest");
    assert!(!logs.iter().any(|log| log.pod == "p0"), "not the oldest");
    remove_all(dir.path()).unwrap();
    assert_eq!(list(dir.path()).unwrap(), []);
    remove_all(dir.path()).unwrap();
}

#[test]
fn a_dead_owners_log_is_added_to_and_none_is_made() {
    let dir = tempfile::tempdir().unwrap();
    note_death(dir.path(), "n", "p1");
    assert_eq!(list(dir.path()).unwrap(), []);
    drop(Keeper::open(dir.path(), "n", "p1").unwrap());
    note_death(dir.path(), "n", "p1");
    assert!(kept(dir.path()).contains("level=error msg=\"owner has died"), "{}", kept(dir.path()));
    assert!(kept::append(dir.path(), "..", "p1", "x\n").is_err());
}

#[test]
fn a_follower_gets_each_line_once_also_when_the_file_changes_and_ends_with_the_owner() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = Keeper::open(dir.path(), "n", "p1").unwrap();
    keeper.write(b"before\n").unwrap();
    let mut owner = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let id = ProcessId::of(owner.id().try_into().unwrap()).unwrap();
    let log = list(dir.path()).unwrap().remove(0);
    let mut follower = log.follow(id).unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        while let Some(more) = follower.more().unwrap() {
            text.push_str(&more);
        }
        text
    });
    let lines: Vec<String> =
        (0..1500).map(|number| format!("line {number:06} {}\n", "y".repeat(60))).collect();
    for line in &lines {
        keeper.write(line.as_bytes()).unwrap();
        // A reader that can keep up, as any does at the pace of a pod.
        std::thread::yield_now();
    }
    owner.kill().unwrap();
    let text = reader.join().unwrap();
    owner.wait().unwrap();
    // Only a reader that sleeps while two whole files are written misses one.
    assert_eq!(text.lines().last(), lines.last().map(|line| line.trim_end()));
    let numbers: Vec<u32> =
        text.lines().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] > pair[0]), "none twice, and in order");
    assert!(log.follow(id).is_err(), "it has ended");
}

#[tokio::test]
async fn a_childs_words_are_told_line_by_line_and_are_few() {
    use std::io::Write as _;
    let dir = tempfile::tempdir().unwrap();
    let log = Log::unread("p1");
    log.keep(&settings(dir.path()), "n");
    let guard = tracing::subscriber::set_default(log);
    let (mut words, theirs) = Words::new(Part::Vmm).unwrap();
    let mut theirs = File::from(theirs);
    theirs.write_all(b"thread 'main' panicked:\nhow \x1b[31mred\n\n").unwrap();
    theirs.write_all(&[b'z'; 3000]).unwrap();
    drop(theirs);
    words.listen().await;

    let (mut words, theirs) = Words::new(Part::Fs).unwrap();
    let mut theirs = File::from(theirs);
    for number in 0..1000 {
        writeln!(theirs, "{number}").unwrap();
    }
    // It keeps its end open, as one would that has handed it on.
    tokio::task::yield_now().await;
    tokio::time::timeout(Duration::from_millis(200), words.listen()).await.unwrap_err();
    words.drain();
    say(Part::Guest, "one\n\ntwo \x07\n");
    drop(guard);

    let text = kept(dir.path());
    let of = |part| text.lines().filter(|line| Part::of_line(line) == Some(part)).collect::<Vec<_>>();
    let vmm = of(Part::Vmm);
    assert_eq!(vmm.len(), 3, "{text}");
    assert!(vmm[1].contains("how  [31mred") && vmm[2].len() < 700, "{text}");
    let fs = of(Part::Fs);
    assert_eq!(fs.len(), 200, "bounded");
    assert!(fs[199].contains("left out"), "{}", fs[199]);
    assert_eq!(of(Part::Guest).len(), 2, "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'));
}
