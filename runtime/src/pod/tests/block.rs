//! Images, file systems and block devices on a pod's image disk.

use serde_json::json;

use super::*;
use crate::rootfs::Mount;

/// A file of `sectors` sectors in the host's directory.
fn image(host: &Host, name: &str, sectors: u64) -> std::path::PathBuf {
    let path = host.path().join(name);
    std::fs::File::create(&path).unwrap().set_len(sectors * 512).unwrap();
    path
}

/// A container of two layers, the lower of which is `base`, and with a mount in its spec.
fn layered(host: &Host, id: &str, spec_mount: Option<serde_json::Value>) -> ContainerConfig {
    let mut config = container_config(host, id);
    let layer = |name: String, sectors| Mount {
        fstype: "erofs".into(),
        source: image(host, &name, sectors).display().to_string(),
        options: vec!["ro".into(), "loop".into()],
        ..Mount::default()
    };
    let options = ["workdir=/w", "upperdir=/nonexistent/u", "lowerdir={{ overlay 0 1 }}"];
    let overlay = Mount {
        fstype: "format/mkdir/overlay".into(),
        source: "overlay".into(),
        options: options.map(str::to_owned).into(),
        ..Mount::default()
    };
    config.rootfs = Rootfs::Mounts(vec![layer(format!("layer-{id}"), 2), layer("base".into(), 3), overlay]);
    let mut spec = serde_json::to_value(&config.spec).unwrap();
    spec["mounts"] = spec_mount.into_iter().collect();
    config.spec = serde_json::from_value(spec).unwrap();
    config
}

fn disk_calls(host: &Host) -> Vec<String> {
    let is_disk = |call: &String| call.contains("xtent");
    host.calls().into_iter().filter(is_disk).collect()
}

async fn remove(pod: &Pod, process: Process, id: &str) {
    process.signal(9, true).await.unwrap();
    process.wait().await;
    pod.delete_container(id).await.unwrap();
}

#[tokio::test]
async fn a_layer_that_containers_share_is_one_extent_and_goes_with_the_last_of_them() {
    let host = Host::new(Mode::Good);
    let pod = start(&host).await;
    let first = pod.create_container(layered(&host, "c1", None)).await.unwrap();
    let second = pod.create_container(layered(&host, "c2", None)).await.unwrap();
    let added = ["extent at 0 read_only=true", "extent at 2 read_only=true", "extent at 5 read_only=true"];
    assert_eq!(disk_calls(&host), added);

    remove(&pod, first, "c1").await;
    assert_eq!(disk_calls(&host)[3..], ["RemoveExtent { start: 0 }"], "its own layer only");
    remove(&pod, second, "c2").await;
    let mut rest = disk_calls(&host).split_off(4);
    rest.sort();
    assert_eq!(rest, ["RemoveExtent { start: 2 }", "RemoveExtent { start: 5 }"]);

    let again = pod.create_container(layered(&host, "c1", None)).await.unwrap();
    assert_eq!(disk_calls(&host).len(), 8, "what has gone is added again");
    remove(&pod, again, "c1").await;
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_container_that_fails_leaves_nothing_on_the_disk() {
    let host = Host::new(Mode::Good);
    let pod = start(&host).await;
    pod.create_container(layered(&host, "no-program", None)).await.unwrap_err();
    let calls = disk_calls(&host);
    assert_eq!(calls.iter().filter(|call| call.starts_with("Remove")).count(), 2, "{calls:?}");
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_file_is_not_both_read_only_and_writable_in_one_pod() {
    let host = Host::new(Mode::Good);
    let pod = start(&host).await;
    let volume = image(&host, "volume", 8);
    let mount = |mode| json!({"destination": "/v", "type": "ext4", "source": volume, "options": [mode]});
    let first = pod.create_container(layered(&host, "c1", Some(mount("rw")))).await.unwrap();
    let error = pod.create_container(layered(&host, "c2", Some(mount("ro")))).await.unwrap_err();
    let expected = format!("{} is writable in this pod already and can't be read-only too", volume.display());
    assert!(matches!(&error, PodError::Precondition(text) if text.starts_with(&expected)), "{error}");
    remove(&pod, first, "c1").await;
    pod.create_container(layered(&host, "c2", Some(mount("ro")))).await.unwrap();
    pod.shutdown().await.unwrap();
}
