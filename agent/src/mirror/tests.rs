use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

fn entry(path: &str, mode: u32, data: &str) -> MirrorEntry {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let data = data.as_bytes().to_vec();
    MirrorEntry { path: path.into(), mode, uid, gid, mtime_ns: 1_500_000_000, data, ..Default::default() }
}

fn file(path: &str, data: &str) -> MirrorEntry {
    entry(path, 0o100_640, data)
}

fn link(name: &str) -> MirrorEntry {
    entry(name, 0o120_777, &format!("..data/{name}"))
}

fn mirror(version: &str, content: Vec<MirrorEntry>, links: &[&str]) -> Mirror {
    Mirror {
        name: "m".into(),
        directory: Some(entry("", 0o041_777, "")).into(),
        version: version.into(),
        content: [vec![entry("", 0o040_755, "")], content].concat(),
        links: links.iter().map(|name| link(name)).collect(),
        ..Default::default()
    }
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_mirror_has_what_its_original_has() {
    let dir = tempfile::tempdir().unwrap();
    let root = open_directory(dir.path()).unwrap();
    let content = vec![file("key", "one"), entry("d", 0o040_700, ""), file("d/deep", "two")];
    update(&root, &mirror("..1", content, &["key", "d"])).unwrap();
    assert_eq!(names(dir.path()), ["..1", "..data", "d", "key"]);
    assert_eq!(fs::read_to_string(dir.path().join("key")).unwrap(), "one");
    assert_eq!(fs::read_to_string(dir.path().join("d/deep")).unwrap(), "two");
    let mode = |path: &str| dir.path().join(path).symlink_metadata().unwrap().permissions().mode();
    assert_eq!(
        [mode("key"), mode("..1/key"), mode("d/"), mode("")],
        [0o120_777, 0o100_640, 0o040_700, 0o041_777]
    );
    for path in ["key", "..1", "..1/d"] {
        let metadata = dir.path().join(path).symlink_metadata().unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1, 500_000_000), "{path}");
    }
}

#[test]
fn an_update_replaces_the_version_and_the_links() {
    let dir = tempfile::tempdir().unwrap();
    let root = open_directory(dir.path()).unwrap();
    let deep = vec![file("a", "1"), entry("d", 0o040_755, ""), file("d/e", "1")];
    update(&root, &mirror("..1", deep, &["a", "d"])).unwrap();
    let open = fs::File::open(dir.path().join("a")).unwrap();
    update(&root, &mirror("..2", vec![file("a", "2"), file("b", "2")], &["a", "b"])).unwrap();
    assert_eq!(names(dir.path()), ["..2", "..data", "a", "b"]);
    assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "2");
    assert_eq!(std::io::read_to_string(open).unwrap(), "1", "who has the old one open keeps it");
}

#[test]
fn the_same_version_again_changes_only_attributes() {
    let dir = tempfile::tempdir().unwrap();
    let root = open_directory(dir.path()).unwrap();
    update(&root, &mirror("..1", vec![file("a", "1")], &["a"])).unwrap();
    let before = dir.path().join("a").metadata().unwrap();
    update(&root, &mirror("..1", vec![entry("a", 0o100_600, "1")], &["a"])).unwrap();
    let after = dir.path().join("a").metadata().unwrap();
    assert_eq!(after.ino(), before.ino());
    assert_eq!(after.permissions().mode(), 0o100_600);
}

#[test]
fn what_an_update_that_failed_has_left_does_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let root = open_directory(dir.path()).unwrap();
    update(&root, &mirror("..1", vec![file("a", "1")], &["a"])).unwrap();
    let broken = mirror("..2", vec![file("a", "2"), entry("p", 0o010_644, "")], &["a"]);
    assert!(update(&root, &broken).is_err());
    assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "1");
    update(&root, &mirror("..2", vec![file("a", "2")], &["a"])).unwrap();
    assert_eq!(names(dir.path()), ["..2", "..data", "a"]);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = open_directory(dir.path()).unwrap();
    for (version, path, link) in [
        ("x", "a", "a"),
        ("..", "a", "a"),
        ("../x", "a", "a"),
        ("..data", "a", "a"),
        ("..1", "../a", "a"),
        ("..1", "/a", "a"),
        ("..1", "a", "..a"),
        ("..1", "a", "a/b"),
        ("..1", "a", ""),
    ] {
        let refused = update(&root, &mirror(version, vec![file(path, "")], &[link]));
        assert!(matches!(refused, Err(Error::Invalid(_))), "{version} {path} {link}");
    }
}

/// The events that programs which reload their configuration wait for.
#[test]
fn a_watcher_hears_of_the_rename() {
    use rustix::fs::inotify;
    let dir = tempfile::tempdir().unwrap();
    let root = open_directory(dir.path()).unwrap();
    update(&root, &mirror("..1", vec![file("a", "1")], &["a"])).unwrap();
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, dir.path(), inotify::WatchFlags::MOVED_TO).unwrap();
    let old = inotify::add_watch(&watch, dir.path().join("a"), inotify::WatchFlags::DELETE_SELF).unwrap();
    update(&root, &mirror("..2", vec![file("a", "2")], &["a"])).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
    let mut reader = inotify::Reader::new(&watch, &mut buffer);
    let moved = reader.next().unwrap();
    assert_eq!(moved.file_name().unwrap().to_bytes(), b"..data");
    assert_eq!(reader.next().unwrap().wd(), old, "the file that was watched is gone");
    let third = reader.next();
    assert!(third.is_err() || third.is_ok_and(|event| event.wd() == old), "nothing else has changed");
}
