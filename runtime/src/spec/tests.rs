use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::share::ReadOnly;

fn base() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "root": { "path": "rootfs", "readonly": true },
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["true"], "cwd": "/", "apparmorProfile": "p" },
        "mounts": [],
        "linux": { "namespaces": [
            { "type": "network" }, { "type": "pid" }, { "type": "ipc" }, { "type": "mount" }, { "type": "uts" },
            { "type": "cgroup" },
        ] },
    })
}

/// The base spec with the value at a JSON pointer replaced or added.
fn with(pointer: &str, value: Value) -> Value {
    let mut spec = base();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    spec.pointer_mut(parent).unwrap()[key] = value;
    spec
}

fn rewrite_in(spec: Value, bundle: &Path) -> Result<(oci::Spec, Volumes), SpecError> {
    rewrite(serde_json::from_value(spec).unwrap(), "/g", bundle, HostNamespaces::Refuse)
}

fn rewritten(spec: Value) -> Value {
    serde_json::to_value(rewrite_in(spec, Path::new("/b")).unwrap().0).unwrap()
}

fn refusal(spec: Value) -> String {
    rewrite_in(spec, Path::new("/b")).unwrap_err().to_string()
}

#[test]
fn the_root_is_the_guests_and_host_security_modules_are_left_out() {
    let spec = rewritten(base());
    assert_eq!(spec["root"], json!({ "path": "/g/rootfs", "readonly": true }));
    assert!(spec["process"].get("apparmorProfile").is_none());
}

#[test]
fn what_a_vm_cannot_give_is_refused_by_field() {
    let namespaces = |without: &str| {
        let all = base()["linux"]["namespaces"].as_array().unwrap().clone();
        with("/linux/namespaces", all.into_iter().filter(|entry| entry["type"] != without).collect())
    };
    let mut no_root = base();
    no_root.as_object_mut().unwrap().remove("root");
    let mapping = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
    let device = |path: &str, major: i64| json!([{ "path": path, "type": "c", "major": major, "minor": 0 }]);
    let hook = json!({ "startContainer": [{ "path": "/h" }] });
    let throttle = json!({ "blockIO": { "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 1 }] } });
    let user = json!([{ "type": "network" }, { "type": "pid" }, { "type": "ipc" }, { "type": "mount" }, { "type": "user" }]);
    for (spec, field) in [
        (no_root, "root: missing"),
        (with("/process/args", json!([])), "process.args: empty"),
        (with("/process/cwd", json!("x")), "process.cwd"),
        (namespaces("network"), "linux.namespaces[network]: missing, which asks for the host's network"),
        (namespaces("pid"), "linux.namespaces[pid]"),
        (namespaces("ipc"), "linux.namespaces[ipc]"),
        (namespaces("mount"), "linux.namespaces[mount]"),
        (with("/linux/namespaces", user), "linux.namespaces[user]"),
        (with("/linux/uidMappings", mapping), "linux.uidMappings"),
        (with("/linux/devices", device("/dev/sda", 8)), "linux.devices (/dev/sda)"),
        (with("/hooks", hook), "hooks.startContainer"),
        (with("/linux/resources", throttle), "linux.resources.blockIO"),
        (with("/linux/intelRdt", json!({})), "linux.intelRdt"),
    ] {
        let error = refusal(spec);
        assert!(error.starts_with(field), "{error} does not name {field}");
    }
}

#[test]
fn every_guest_has_the_standard_devices() {
    let null = json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3 },
                      { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 }]);
    rewritten(with("/linux/devices", null));
}

/// The block devices of a spec with these devices and rules.
fn blocks(devices: Value, rules: Value) -> Vec<BlockDevice> {
    let mut spec = with("/linux/devices", devices);
    spec["linux"]["resources"] = json!({ "devices": rules });
    rewrite_in(spec, Path::new("/b")).unwrap().1.devices
}

#[test]
fn a_block_device_is_writable_as_far_as_the_last_rule_about_it_says() {
    let device = json!([{ "path": "/dev/data", "type": "b", "major": 7, "minor": 1 },
                        { "path": "/dev/again", "type": "b", "major": 7, "minor": 1 }]);
    let rule = |allow: bool, typ: &str, major: i64, minor: i64, access: &str| json!({ "allow": allow, "type": typ, "major": major, "minor": minor, "access": access });
    let deny = || json!({ "allow": false, "access": "rwm" });
    for (rules, read_only) in [
        (json!([]), false),
        (json!([deny()]), true),
        (json!([deny(), rule(true, "b", 7, 1, "rwm")]), false),
        (json!([deny(), rule(true, "b", 7, 1, "r")]), true),
        (json!([deny(), rule(true, "b", 7, 2, "rwm"), rule(true, "c", 7, 1, "rwm")]), true),
        (json!([deny(), rule(true, "b", 7, -1, "rw")]), false),
        (json!([rule(true, "b", 7, 1, "rwm"), rule(false, "b", 7, 1, "w")]), true),
    ] {
        let found = blocks(device.clone(), rules.clone());
        assert_eq!(found, [BlockDevice { major: 7, minor: 1, read_only }], "{rules}");
    }
    let elsewhere = json!([{ "path": "/data", "type": "b", "major": 7, "minor": 1 }]);
    assert!(refusal(with("/linux/devices", elsewhere)).contains("must be below /dev"));
}

#[test]
fn file_systems_in_files_are_mounted_by_the_guest() {
    let entries = json!([
        { "destination": "/a", "type": "ext4", "source": "/i/a.img", "options": ["loop", "nosuid", "rw", "rprivate"] },
        { "destination": "/b", "type": "xfs", "source": "b.img", "options": ["rro", "nouuid"] },
        { "destination": "/c", "type": "erofs", "source": "/i/c.img" },
    ]);
    let (mounts, volumes) = mounts(entries, Path::new("/bundle")).unwrap();
    let volume = |fstype: &str, source: &str, read_only, options: &[&str], number: u8| ImageVolume {
        fstype: fstype.into(),
        source: source.into(),
        read_only,
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        target: format!("/g/binds/{number}"),
    };
    let expected = [
        volume("ext4", "/i/a.img", false, &["nosuid"], 0),
        volume("xfs", "/bundle/b.img", true, &["nouuid", "ro"], 1),
        volume("erofs", "/i/c.img", true, &["ro"], 2),
    ];
    assert_eq!(volumes.images, expected);
    assert_eq!(mounts[1]["type"], "bind");
    assert_eq!((&mounts[1]["source"], &mounts[1]["options"]), (&json!("/g/binds/1"), &json!(["bind"])));
    let parts = json!([{ "destination": "/c", "type": "erofs", "source": "/i", "options": ["device=/x"] }]);
    let error = self::mounts(parts, Path::new("/b")).unwrap_err().to_string();
    assert!(error.starts_with("mounts[0] (/c): option device="), "{error}");
}

#[test]
fn shared_namespaces_keep_a_path_that_is_not_the_hosts() {
    let own = std::process::id();
    let spec = rewritten(with(
        "/linux/namespaces",
        json!([
            { "type": "network", "path": "/var/run/netns/cni-1" },
            { "type": "pid", "path": format!("/proc/{own}/ns/pid") },
            { "type": "ipc", "path": "/var/run/ipcns/1" },
            { "type": "uts", "path": "" },
            { "type": "mount" },
        ]),
    ));
    let expected = json!([
        { "type": "pid", "path": "/proc/1/ns/pid" },
        { "type": "ipc", "path": "/proc/1/ns/ipc" },
        { "type": "uts" },
        { "type": "mount" },
    ]);
    assert_eq!(spec["linux"]["namespaces"], expected);
}

#[test]
fn missing_namespaces_are_new_ones_where_the_settings_say_so() {
    let spec = serde_json::from_value(with("/linux/namespaces", json!([{ "type": "uts" }]))).unwrap();
    let (spec, _) = rewrite(spec, "/g", Path::new("/b"), HostNamespaces::Isolate).unwrap();
    let expected = json!([{ "type": "uts" }, { "type": "pid" }, { "type": "ipc" }, { "type": "mount" }]);
    assert_eq!(serde_json::to_value(spec).unwrap()["linux"]["namespaces"], expected);
}

#[test]
fn namespaces_of_other_processes_are_refused() {
    for (typ, path) in [("pid", "/proc/1/ns/pid"), ("mount", "/proc/self/ns/mnt"), ("time", "/x")] {
        let mut spec = base();
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|entry| entry["type"] != typ);
        namespaces.push(json!({ "type": typ, "path": path }));
        let error = refusal(spec);
        assert!(error.starts_with("linux.namespaces[") && error.contains(path), "{error}");
    }
}

#[test]
fn host_numbers_are_dropped_from_resources_and_limits_are_kept() {
    let spec = rewritten(with(
        "/linux/resources",
        json!({
            "cpu": { "quota": 5, "period": 10, "cpus": "0-63", "mems": "1" },
            "memory": { "limit": 7 },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
        }),
    ));
    let expected = json!({ "cpu": { "quota": 5, "period": 10 }, "memory": { "limit": 7 } });
    assert_eq!(spec["linux"]["resources"], expected);
    let huge = json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 2097152 }] });
    assert!(refusal(with("/linux/resources", huge)).starts_with("linux.resources.hugepageLimits (2MB)"));
}

fn mounts(entries: Value, bundle: &Path) -> Result<(Value, Volumes), SpecError> {
    let (spec, volumes) = rewrite_in(with("/mounts", entries), bundle)?;
    Ok((serde_json::to_value(spec).unwrap()["mounts"].clone(), volumes))
}

#[test]
fn the_guests_own_file_systems_stay_and_do_not_propagate() {
    let entries = json!([
        { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "rslave"] },
        { "destination": "/dev/shm", "type": "bind", "source": "/var/lib/x/shm", "options": ["rbind", "rprivate", "rw"] },
        { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
    ]);
    let (mounts, volumes) = mounts(entries, Path::new("/b")).unwrap();
    assert_eq!(mounts[0]["options"], json!(["nosuid"]));
    assert_eq!(mounts[1]["source"], "/dev/shm");
    assert_eq!(mounts[1]["options"], json!(["rbind", "rw"]));
    assert!(volumes.shared.is_empty() && volumes.memory.is_empty());
}

#[test]
fn directories_and_files_of_the_host_are_shared_as_their_options_say() {
    let bundle = tempfile::tempdir().unwrap();
    fs::write(bundle.path().join("hosts"), "127.0.0.1 x").unwrap();
    let data = bundle.path().join("data");
    fs::create_dir(&data).unwrap();
    let entries = json!([
        { "destination": "/etc/hosts", "type": "bind", "source": "hosts", "options": ["rbind", "rprivate", "rw"] },
        { "destination": "/data", "source": data, "options": ["bind", "ro"] },
        { "destination": "/all", "type": "bind", "source": data, "options": ["rro"] },
    ]);
    let (mounts, volumes) = mounts(entries, bundle.path()).unwrap();
    assert_eq!(
        (mounts[1]["source"].as_str(), mounts[1]["type"].as_str()),
        (Some("/g/binds/1"), Some("bind"))
    );
    let volume = |source: &Path, read_only, recursive, target: &str| Volume {
        export: Export { source: source.to_owned(), read_only, recursive },
        target: target.to_owned(),
    };
    let hosts = bundle.path().join("hosts");
    let expected = [
        volume(&hosts, ReadOnly::No, true, "/g/binds/0"),
        volume(&data, ReadOnly::Top, false, "/g/binds/1"),
        volume(&data, ReadOnly::Recursive, true, "/g/binds/2"),
    ];
    assert_eq!(volumes.shared, expected);
}

#[test]
fn a_device_that_every_guest_has_is_the_guests_own() {
    let entry = json!([{ "destination": "/x", "type": "bind", "source": "/dev/null", "options": ["bind"] }]);
    let (mounts, volumes) = mounts(entry, Path::new("/b")).unwrap();
    assert_eq!(mounts[0]["source"], "/dev/null");
    assert!(volumes.shared.is_empty());
}

#[test]
fn a_socket_is_held_open_with_its_mode_and_the_containers_user() {
    use std::os::unix::fs::PermissionsExt;
    let bundle = tempfile::tempdir().unwrap();
    let path = bundle.path().join("socket");
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
    let mut spec = with("/process/user", json!({ "uid": 5, "gid": 6, "additionalGids": [7] }));
    spec["mounts"] = json!([{ "destination": "/x", "type": "bind", "source": path, "options": ["bind"] }]);
    let (spec, volumes) = rewrite_in(spec, bundle.path()).unwrap();
    let spec = serde_json::to_value(spec).unwrap();
    assert_eq!(spec["mounts"][0]["source"], "/g/binds/0");
    let [socket] = &volumes.sockets[..] else { panic!("{volumes:?}") };
    assert_eq!((socket.target.as_str(), socket.options[0].as_str()), ("/g/binds/0", "mode=660"));
    assert_eq!(socket.socket.client, crate::sockets::Client { uid: 5, gid: 6, groups: vec![7] });
}

#[test]
fn mounts_that_need_the_host_are_refused_by_number_and_place() {
    let bundle = tempfile::tempdir().unwrap();
    let path = |name: &str| bundle.path().join(name);
    nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (source, options, words) in [
        (path("none"), json!(["bind", "ro"]), "cannot read"),
        (path(""), json!(["rbind", "rshared"]), "Bidirectional"),
        (path("fifo"), json!(["bind"]), "a FIFO of the host"),
    ] {
        let entry = json!([{ "destination": "/x", "type": "bind", "source": source, "options": options }]);
        let error = mounts(entry, bundle.path()).unwrap_err().to_string();
        assert!(error.starts_with("mounts[0] (/x): ") && error.contains(words), "{error} has no {words}");
    }
    let nfs = json!([{ "destination": "/x", "type": "nfs", "source": "a:/b" }]);
    assert!(mounts(nfs, bundle.path()).unwrap_err().to_string().contains("\"nfs\" is not supported"));
}
