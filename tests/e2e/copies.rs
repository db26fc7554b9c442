//! `monohull snapshot` and `monohull clone`: pods that go on where another was.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use libtest_mimic::Trial;
use monohull_tests::engine::{Output, finish};
use monohull_tests::leaks::Census;
use monohull_tests::talk::{Pod, SHELL, tree};

pub(crate) fn trials() -> Vec<Trial> {
    let cases: [(&str, fn()); 7] = [
        ("copies_go_on_where_the_original_was_and_are_their_own", || go_on("--block")),
        ("copies_have_files_of_their_own_on_a_writable_disk", || go_on("--block=64M")),
        ("copies_share_no_random_numbers_name_or_network", unique),
        ("output_goes_on_in_a_copy_without_a_gap", output),
        ("several_copies_are_told_apart_by_their_lines", several),
        ("what_cannot_be_copied_is_refused_by_name_and_the_pod_goes_on", refused),
        ("a_snapshot_that_was_changed_is_refused_and_nothing_is_left", changed),
    ];
    let trial = |(name, case): (&str, fn())| {
        Trial::test(format!("monohull::copies::{name}"), move || {
            case();
            Ok(())
        })
    };
    cases.into_iter().map(trial).collect()
}

fn monohull(arguments: &[&str]) -> Output {
    finish(Command::new("monohull").args(arguments))
}

fn succeed(arguments: &[&str]) -> String {
    let output = monohull(arguments);
    assert_eq!(output.code(), 0, "{arguments:?}: {}", output.stderr);
    output.text()
}

fn go_on(block: &str) {
    let tree = tree();
    // A test that has failed leaves its snapshots.
    let [first, second] = ["first", "second"].map(|name| format!("{name}-{}", block.len()));
    let mut original = Pod::run("original", &[block], tree.path(), SHELL);
    assert_eq!(original.ask("x=7; echo before > /file").0, 1);
    assert_eq!(succeed(&["snapshot", "original", &first]), format!("{first}\n"));
    assert_eq!(original.ask("echo original > /file").0, 2);

    let mut copies = ["one", "two"].map(|name| (name, Pod::copy(&first, name)));
    for (name, copy) in &mut copies {
        assert_eq!(copy.ask("cat /file; echo $x"), (2, vec!["before".into(), "7".into()]), "{name}");
        assert_eq!(copy.ask(&format!("echo {name} > /file; x={name}")).0, 3);
    }
    for (name, copy) in &mut copies {
        assert_eq!(copy.says("cat /file; echo $x"), format!("{name} {name}"));
    }
    assert_eq!(original.says("cat /file; echo $x"), "original 7");
    // A copy is a pod like any other: it can be copied, and outlives the original and the snapshot.
    let [(_, mut one), (_, two)] = copies;
    succeed(&["snapshot", "one", &second]);
    let list = succeed(&["snapshot", "ls", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let names: HashSet<_> = list.as_array().expect("a list").iter().map(|one| one["name"].as_str()).collect();
    assert!(names.is_superset(&HashSet::from([Some(first.as_str()), Some(second.as_str())])), "{names:?}");
    let mut third = Pod::copy(&second, "three");
    assert_eq!(third.ask("cat /file; echo $x"), (5, vec!["one".into(), "one".into()]));
    succeed(&["snapshot", "rm", &first]);
    succeed(&["snapshot", "rm", "--all"]);
    assert_eq!(original.end(), "bye 3 original");
    assert_eq!(one.says("cat /file"), "one");
    assert_eq!(one.end(), "bye 5 one");
    assert_eq!(two.end(), "bye 4 two");
    assert_eq!(third.end(), "bye 5 three");
}

fn unique() {
    let tree = tree();
    let mut original = Pod::run("original", &["--block"], tree.path(), SHELL);
    // Its kernel has made random numbers before.
    original.ask("cat /proc/sys/kernel/random/uuid");
    succeed(&["snapshot", "original", "random"]);
    let mut pods = vec![("original", original)];
    pods.extend(["one", "two"].map(|name| (name, Pod::copy("random", name))));
    let mut seen = HashSet::new();
    for (name, pod) in &mut pods {
        let (_, lines) = pod.ask("/bin/in-container unique");
        assert_eq!(lines.len(), 8, "{lines:?}");
        for line in lines {
            assert!(seen.insert(line.clone()), "twice: {line}");
        }
        assert_eq!(pod.says("hostname"), *name);
        assert_eq!(pod.says("ls /sys/class/net"), "lo");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a date").as_secs();
        let theirs: u64 = pod.says("date +%s").parse().expect("seconds");
        assert!(now.abs_diff(theirs) <= 5, "{name}: {theirs}, here {now}");
    }
    for (_, pod) in pods {
        pod.end();
    }
    succeed(&["snapshot", "rm", "random"]);
}

fn output() {
    let tree = tree();
    let script = "n=1; while echo $n; do n=$((n+1)); done";
    let mut original = Pod::run("talker", &["--block"], tree.path(), script);
    let numbers =
        |pod: &mut Pod, first: u64| (first..first + 2000).for_each(|n| assert_eq!(pod.line(), n.to_string()));
    numbers(&mut original, 1);
    // By now it waits for us to read.
    succeed(&["snapshot", "talker", "talk"]);
    let mut copy = Pod::copy("talk", "copy");
    // The first line may be the end of one that the original has begun to say.
    copy.line();
    let first: u64 = copy.line().parse().expect("a number");
    assert!(first > 2000, "{first}");
    numbers(&mut copy, first + 1);
    numbers(&mut original, 2001);
    copy.hang_up();
    original.hang_up();
    succeed(&["snapshot", "rm", "talk"]);
}

fn several() {
    let tree = tree();
    let mut original = Pod::run("original", &["--block"], tree.path(), SHELL);
    original.ask("true");
    let name = succeed(&["snapshot", "original"]);
    let name = name.trim();
    let output = monohull(&["clone", name, "--count", "3", "--name", "w"]);
    let text = output.text();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["w-1: bye 1 w-1", "w-2: bye 1 w-2", "w-3: bye 1 w-3"], "{}", output.stderr);
    assert_eq!(output.code(), 3, "{}", output.stderr);
    let metrics = succeed(&["metrics"]);
    let copied =
        metrics.lines().find(|line| line.starts_with("monohull_pod_starts_total{result=\"copied\"}"));
    let count: u32 = copied.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("a count");
    assert!(count >= 3, "{count}");
    original.end();
    succeed(&["snapshot", "rm", name]);
}

fn refused() {
    let tree = tree();
    let scratch = tempfile::tempdir().expect("a directory");
    let console = scratch.path().join("console").to_string_lossy().into_owned();
    let volume = format!("{}:/data:ro", scratch.path().display());
    let cases: [(&[&str], &str); 4] = [
        (&[], "container refused has a root that is a directory of the host"),
        (
            &["--block", "--volume", &volume],
            "container refused has a volume that is a directory or file of the host",
        ),
        (&["--block", "--console", &console], "it has a debug console: start it without --console"),
        (&["--block", "--memory", "200M"], "were added to the memory that its VM began with"),
    ];
    for (options, reason) in cases {
        let mut pod = Pod::run("refused", options, tree.path(), SHELL);
        pod.ask("true");
        let output = monohull(&["snapshot", "refused", "none"]);
        assert_eq!(output.code(), 1, "{options:?}");
        assert!(output.stderr.contains(reason), "{options:?}: {}", output.stderr);
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
        assert_eq!(pod.ask("true").0, 2, "it goes on");
        pod.end();
    }
    for (arguments, code, reason) in [
        (["snapshot", "nobody"], 1, "no pod \"nobody\" runs here"),
        (["clone", "nothing"], 125, "there is no snapshot nothing"),
    ] {
        let output = monohull(&arguments);
        assert!(output.code() == code && output.stderr.contains(reason), "{}", output.stderr);
    }
    assert_eq!(succeed(&["snapshot", "ls", "--json"]).trim(), "[]");
}

fn changed() {
    let (tree, none) = (tree(), Path::new("/nonexistent"));
    let before = Census::take(none);
    let place = tempfile::tempdir().expect("a directory");
    let snapshot = place.path().join("snapshot");
    let name = snapshot.to_string_lossy().into_owned();
    let mut original = Pod::run("original", &["--block=64M"], tree.path(), SHELL);
    original.ask("true");
    succeed(&["snapshot", "original", &name]);
    let again = monohull(&["snapshot", "original", &name]);
    assert!(again.stderr.contains("there is a snapshot"), "{}", again.stderr);
    let extent = fs::read_dir(&snapshot)
        .expect("the snapshot")
        .find_map(|entry| {
            let path = entry.expect("a file").path();
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("extent-")).then_some(path)
        })
        .expect("a file of the disk");
    for (file, reason) in [
        (snapshot.join("state"), "damaged"),
        (snapshot.join("memory"), "memory file"),
        (snapshot.join("manifest.json"), "manifest"),
        (extent, "is not what it was"),
    ] {
        let good = snapshot.with_extension("good");
        fs::rename(&file, &good).expect("a rename");
        let bytes = fs::read(&good).expect("its content");
        let mut bad = bytes.get(..bytes.len() - 1).expect("a part").to_vec();
        if file.ends_with("state") {
            bad = bytes;
            let middle = bad.len() / 2;
            bad[middle] ^= 1;
        }
        fs::write(&file, bad).expect("another content");
        let output = monohull(&["clone", &name]);
        assert_eq!(output.code(), 125, "{}", output.stderr);
        assert!(output.stderr.contains(reason), "{}: {}", file.display(), output.stderr);
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
        fs::rename(&good, &file).expect("a rename");
    }
    // As it was, it is of use.
    let mut copy = Pod::copy(&name, "copy");
    copy.ask("true");
    copy.end();
    original.end();
    succeed(&["snapshot", "rm", &name]);
    assert!(!snapshot.exists());
    let left = Census::take(none).beyond(&before);
    assert!(left.is_empty(), "left behind: {left:#?}");
}
