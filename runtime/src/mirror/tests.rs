use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// Does what the kubelet's atomic writer does.
fn write(directory: &Path, version: &str, files: &[(&str, &str)]) {
    let data = directory.join(version);
    for (path, content) in files {
        let path = data.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    symlink(version, directory.join("..data_tmp")).unwrap();
    fs::rename(directory.join("..data_tmp"), directory.join(read::DATA)).unwrap();
    for (path, _) in files {
        let name = path.split('/').next().unwrap();
        // There already, unless it is new.
        let _ = symlink(format!("..data/{name}"), directory.join(name));
    }
}

fn read(directory: &Path, room: usize) -> Result<(Mirror, usize), Unfit> {
    Directory::open(directory).unwrap().unwrap().read(room)
}

fn paths(entries: &[monohull_protocol::agent::MirrorEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.path.as_str()).collect()
}

#[test]
fn a_version_is_read_with_all_that_is_below_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "..1", &[("key", "value"), ("d/deep", "more")]);
    fs::set_permissions(dir.path().join("..1/key"), fs::Permissions::from_mode(0o640)).unwrap();
    let (mirror, bytes) = read(dir.path(), 100).unwrap();
    assert_eq!((mirror.version.as_str(), bytes), ("..1", 9));
    assert_eq!(paths(&mirror.content), ["", "d", "d/deep", "key"]);
    let key = &mirror.content[3];
    assert_eq!((key.mode, &key.data[..]), (0o100_640, &b"value"[..]));
    assert!(key.mtime_ns > 1_600_000_000_000_000_000);
    assert_eq!(paths(&mirror.links), ["d", "key"]);
    assert_eq!(mirror.links[1].data, b"..data/key");
}

#[test]
fn what_no_atomic_writer_makes_is_not_mirrored() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Directory::open(dir.path()).unwrap().is_none(), "without ..data");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(Directory::open(&file).unwrap().is_none(), "a file");
    write(dir.path(), "..1", &[("key", "value")]);
    assert!(matches!(read(dir.path(), 100), Err(Unfit::Shape(_))), "a file beside ..data");
    fs::remove_file(file).unwrap();
    assert!(read(dir.path(), 100).is_ok());
    nix::unistd::mkfifo(&dir.path().join("..1/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(read(dir.path(), 100), Err(Unfit::Shape(_))), "a FIFO");
    for target in ["/etc", "..", "key", "../x"] {
        fs::remove_file(dir.path().join(read::DATA)).unwrap();
        symlink(target, dir.path().join(read::DATA)).unwrap();
        assert!(matches!(read(dir.path(), 100), Err(Unfit::Shape(_))), "{target}");
    }
}

#[test]
fn no_link_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "..1", &[("key", "value")]);
    symlink("/etc/passwd", dir.path().join("..1/link")).unwrap();
    let (mirror, _) = read(dir.path(), 100).unwrap();
    assert_eq!(paths(&mirror.content), ["", "key", "link"]);
    assert_eq!(mirror.content[2].data, b"/etc/passwd");
    symlink("/etc", dir.path().join("..2")).unwrap();
    fs::remove_file(dir.path().join(read::DATA)).unwrap();
    symlink("..2", dir.path().join(read::DATA)).unwrap();
    assert!(read(dir.path(), 100).is_err());
}

#[test]
fn size_and_number_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "..1", &[("a", "12345"), ("b", "67890")]);
    assert!(read(dir.path(), 10).is_ok());
    assert!(matches!(read(dir.path(), 9), Err(Unfit::Size)));
    for number in 0..1024 {
        fs::write(dir.path().join(format!("..1/{number}")), "").unwrap();
    }
    assert!(matches!(read(dir.path(), 10), Err(Unfit::Size)));
}

#[test]
fn a_directory_in_its_place_is_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("volume");
    fs::create_dir(&path).unwrap();
    write(&path, "..1", &[("a", "1")]);
    let directory = Directory::open(&path).unwrap().unwrap();
    fs::rename(&path, dir.path().join("old")).unwrap();
    fs::create_dir(&path).unwrap();
    write(&path, "..1", &[("a", "1")]);
    assert!(matches!(directory.read(100), Err(Unfit::Replaced)));
}

/// A pod with a container whose read-only volume is `volume`.
mod in_a_pod {
    use super::*;
    use crate::fake::{Host, Mode};
    use crate::pod::tests::{container_config, start};
    use crate::pod::{ContainerConfig, Pod};

    fn container(host: &Host, volume: &Path, options: &[&str]) -> ContainerConfig {
        let mut config = container_config(host, "c1");
        let mut json = serde_json::to_value(&config.spec).unwrap();
        json["mounts"] = serde_json::json!([
            { "destination": "/etc/config", "type": "bind", "source": volume, "options": options },
        ]);
        config.spec = serde_json::from_value(json).unwrap();
        config
    }

    async fn end(pod: &Pod) {
        pod.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn a_new_version_is_sent_when_it_is_there() {
        let (host, volume) = (Host::new(Mode::Good), tempfile::tempdir().unwrap());
        write(volume.path(), "..1", &[("a", "1")]);
        let pod = start(&host).await;
        pod.create_container(container(&host, volume.path(), &["rbind", "ro"])).await.unwrap();
        assert!(host.calls().contains(&"container c1 erofs+tmpfs+overlay+mirror".to_owned()));
        write(volume.path(), "..2", &[("a", "2")]);
        fs::remove_dir_all(volume.path().join("..1")).unwrap();
        let host = Arc::new(host);
        let waiting = host.clone();
        tokio::task::spawn_blocking(move || waiting.wait_for("mirror 0 ..2")).await.unwrap();
        assert!(!host.calls().contains(&"mirror 0 ..1".to_owned()), "what is known is not sent");
        end(&pod).await;
    }

    #[tokio::test]
    async fn owners_that_are_set_afterwards_are_sent_too() {
        let (host, volume) = (Host::new(Mode::Good), tempfile::tempdir().unwrap());
        write(volume.path(), "..1", &[("a", "1")]);
        let pod = start(&host).await;
        pod.create_container(container(&host, volume.path(), &["rbind", "ro"])).await.unwrap();
        fs::set_permissions(volume.path().join("..1/a"), fs::Permissions::from_mode(0o600)).unwrap();
        let host = Arc::new(host);
        let waiting = host.clone();
        tokio::task::spawn_blocking(move || waiting.wait_for("mirror 0 ..1")).await.unwrap();
        end(&pod).await;
    }
}
