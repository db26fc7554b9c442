use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use super::*;

fn manifest() -> Manifest {
    let extent = |start, read_only| SavedExtent { start, sectors: 8, read_only, modified: (1, 2) };
    let container = |id: &str, order| SavedContainer {
        id: id.into(),
        pid: 7,
        terminal: false,
        stdin: true,
        stdout: true,
        stderr: true,
        order,
    };
    Manifest {
        pod: "p1".into(),
        namespace: String::new(),
        created_at: 1,
        paused_ms: 2,
        memory_mib: 640,
        hotplug_mib: 1024,
        max_cpus: 8,
        cpus: 1,
        nics: 3,
        bytes: 10,
        extents: vec![extent(2048, true), extent(4096, false)],
        containers: vec![container("b", 1), container("a", 0)],
    }
}

fn refusal(change: impl FnOnce(&mut Manifest)) -> String {
    let mut manifest = manifest();
    change(&mut manifest);
    Manifest::parse(manifest.to_text().unwrap().as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_manifest_reads_back_and_names_its_containers_in_order() {
    let read = Manifest::parse(manifest().to_text().unwrap().as_bytes()).unwrap();
    assert_eq!(read, manifest());
    assert_eq!(read.containers(), ["a", "b"]);
}

#[test]
fn every_cut_and_every_changed_byte_is_noticed() {
    let text = manifest().to_text().unwrap();
    for len in 0..text.len() {
        assert!(Manifest::parse(&text.as_bytes()[..len]).is_err(), "{len}");
    }
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = bytes[at].wrapping_add(1);
        assert!(Manifest::parse(&bytes).is_err(), "{at}");
    }
}

#[test]
fn what_no_pod_can_have_is_refused_by_its_field() {
    assert!(refusal(|manifest| manifest.pod = "../x".into()).contains("its pod is impossible"));
    assert!(refusal(|manifest| manifest.namespace = "a/b".into()).contains("namespace"));
    assert!(refusal(|manifest| manifest.memory_mib = 0).contains("memory_mib"));
    assert!(refusal(|manifest| manifest.hotplug_mib = u32::MAX).contains("hotplug_mib"));
    assert!(refusal(|manifest| manifest.cpus = 9).contains("cpus"));
    assert!(refusal(|manifest| manifest.extents.swap(0, 1)).contains("order of extents"));
    assert!(refusal(|manifest| manifest.extents[0].sectors = 0).contains("size of an extent"));
    assert!(refusal(|manifest| manifest.containers[0].id = String::new()).contains("container id"));
    assert!(refusal(|manifest| manifest.containers[0].id = "a".into()).contains("there twice"));
    let many = vec![manifest().containers[0].clone(); 1025];
    assert!(refusal(|manifest| manifest.containers = many).contains("number of containers"));
}

#[test]
fn another_version_and_a_huge_file_are_told_apart() {
    let error = Manifest::parse(br#"{"version": 9, "odd": true}"#).unwrap_err();
    assert!(error.to_string().contains("version 9, not 1"), "{error}");
    let huge = vec![b' '; MAX_MANIFEST as usize + 1];
    assert!(matches!(Manifest::parse(&huge), Err(ManifestError::Long)));
}

/// Settings whose snapshots are in a directory of their own, with one called "s1" in it.
fn saved() -> (tempfile::TempDir, Settings) {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { scratch_dir: dir.path().into(), ..Settings::default() };
    let place = super::dir(&settings).join("s1");
    DirBuilder::new().recursive(true).mode(0o700).create(&place).unwrap();
    let mut manifest = manifest();
    for extent in &mut manifest.extents {
        let file = File::create(place.join(extent.file())).unwrap();
        file.set_len(4096).unwrap();
        let metadata = file.metadata().unwrap();
        extent.modified = (metadata.mtime(), metadata.mtime_nsec());
    }
    for name in [STATE, MEMORY] {
        File::create(place.join(name)).unwrap();
    }
    write(&place, &manifest).unwrap();
    (dir, settings)
}

#[test]
fn a_snapshot_is_listed_opened_by_name_or_path_and_removed() {
    let (_dir, settings) = saved();
    let names: Vec<_> = list(&settings).unwrap().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["s1"]);
    let path = super::dir(&settings).join("s1").display().to_string();
    for name in ["s1", &path] {
        assert_eq!(Snapshot::open(&settings, name).unwrap().extents.len(), 2, "{name}");
    }
    remove(&settings, "s1").unwrap();
    assert!(!super::dir(&settings).exists(), "nothing is in it");
    assert!(list(&settings).unwrap().is_empty());
    assert!(matches!(remove(&settings, "s1"), Err(SnapshotError::Unknown(_))));
    let error = Snapshot::open(&settings, "s1").unwrap_err().to_string();
    assert!(error.contains("there is no snapshot s1"), "{error}");
    assert!(matches!(Snapshot::open(&settings, "..").unwrap_err(), SnapshotError::Name(_)));
}

#[test]
fn only_a_directory_of_snapshots_is_removed() {
    let (dir, settings) = saved();
    let precious = dir.path().join("precious");
    fs::create_dir(&precious).unwrap();
    let name = precious.display().to_string();
    assert!(matches!(remove(&settings, &name), Err(SnapshotError::Unknown(_))));
    assert!(precious.exists());
}

#[test]
fn a_snapshot_that_was_changed_is_refused_by_the_file() {
    let (_dir, settings) = saved();
    let place = super::dir(&settings).join("s1");
    let refused = |text: &str| {
        let error = crate::text::chain(&Snapshot::open(&settings, "s1").unwrap_err());
        assert!(error.contains(text), "{error}");
    };
    fs::set_permissions(&place, fs::Permissions::from_mode(0o770)).unwrap();
    refused("can be written to by others than root");
    fs::set_permissions(&place, fs::Permissions::from_mode(0o700)).unwrap();
    File::options().write(true).open(place.join("extent-2048")).unwrap().set_len(8192).unwrap();
    refused("extent-2048 is not what it was when the snapshot was made");
    fs::remove_file(place.join("extent-2048")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", place.join("extent-2048")).unwrap();
    refused("cannot open");
    fs::write(place.join(MANIFEST), "{").unwrap();
    refused("manifest.json is no snapshot's manifest");
    assert!(list(&settings).unwrap().is_empty());
    remove(&settings, "s1").unwrap();
    assert!(!place.exists(), "one that can't be used can be removed");
}

#[test]
fn what_a_killed_process_has_left_is_removed_and_what_is_being_made_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join(format!("{MAKING}1-x"));
    fs::create_dir(&left).unwrap();
    let making = Making::new(&dir.path().join("one"), false).unwrap();
    assert!(!left.exists());
    sweep(dir.path());
    let path = making.path.clone();
    assert!(path.exists());
    drop(making);
    assert!(!path.exists());
}

#[test]
fn files_nobody_writes_to_are_linked_and_others_are_copied_with_their_holes() {
    let dir = tempfile::tempdir().unwrap();
    let source =
        File::options().read(true).write(true).create_new(true).open(dir.path().join("source")).unwrap();
    source.set_len(8 << 20).unwrap();
    source.write_all_at(b"here", 4 << 20).unwrap();

    let linked = files::keep(&source, &dir.path().join("linked"), 8 << 20, true).unwrap();
    assert_eq!(linked.metadata().unwrap().ino(), source.metadata().unwrap().ino());
    let kept = files::keep(&source, &dir.path().join("copied"), 8 << 20, false).unwrap();
    let unnamed = files::unnamed_copy(&source, dir.path(), 8 << 20).unwrap();
    source.write_all_at(b"gone", 4 << 20).unwrap();
    for copy in [kept, unnamed] {
        let metadata = copy.metadata().unwrap();
        assert_ne!(metadata.ino(), source.metadata().unwrap().ino());
        assert_eq!(metadata.len(), 8 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        let mut bytes = [0; 4];
        copy.read_exact_at(&mut bytes, 4 << 20).unwrap();
        assert_eq!(&bytes, b"here");
    }
    assert!(files::keep(&source, &dir.path().join("copied"), 8 << 20, false).is_err(), "it is there");
}
