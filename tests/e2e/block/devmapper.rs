//! The devmapper snapshotter, which wants a thin pool.

use super::*;

/// No udev runs in the test host: the library is to make the nodes itself, not to leave them to it.
const NO_UDEV: (&str, &str) = ("DM_DISABLE_UDEV", "1");

fn dmsetup(args: &[&str]) -> String {
    let output = finish(Command::new("dmsetup").env(NO_UDEV.0, NO_UDEV.1).args(args));
    assert_eq!(output.code(), 0, "dmsetup {args:?}: {}{}", output.text(), output.stderr);
    output.text()
}

/// A thin pool; removed with all its devices.
struct Pool {
    name: String,
    _disks: [Loop; 2],
}

impl Pool {
    fn new(dir: &Path) -> Self {
        let _ = Command::new("modprobe").arg("dm_thin_pool").status();
        let disk = |name: &str, size| {
            let file = dir.join(name);
            File::create(&file).expect("a disk").set_len(size).expect("its size");
            Loop::of(file)
        };
        let (data, meta) = (disk("data", 512 * MIB), disk("meta", 16 * MIB));
        let name = id("monohull-e2e-pool");
        let sectors = 512 * MIB / 512;
        let table =
            format!("0 {sectors} thin-pool {} {} 128 0 1 skip_block_zeroing", meta.device, data.device);
        dmsetup(&["create", &name, "--table", &table]);
        Self { name, _disks: [data, meta] }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Not with `dmsetup`, which panics: a test may be failing already.
        let dmsetup = |args: &[&str]| finish(Command::new("dmsetup").env(NO_UDEV.0, NO_UDEV.1).args(args));
        let devices = dmsetup(&["ls"]).text();
        let snapshot = format!("{}-", self.name);
        let snapshots = devices.split_whitespace().filter(|word| word.starts_with(&snapshot));
        for device in snapshots.chain([self.name.as_str()]) {
            dmsetup(&["remove", device]);
        }
    }
}

pub(super) fn devmapper() {
    let dir = tempfile::tempdir_in("/run").expect("a directory");
    let pool = Pool::new(dir.path());
    let root = dir.path().join("devmapper");
    let engine = Engine::start_with(Client::Nerdctl, |scratch| {
        let wrapper = scratch.join("bin/dmsetup");
        let (name, value) = NO_UDEV;
        fs::write(&wrapper, format!("#!/bin/sh\n{name}={value} exec /usr/sbin/dmsetup \"$@\"\n"))?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        Ok(format!(
            "[plugins.\"io.containerd.snapshotter.v1.devmapper\"]\npool_name = \"{}\"\nroot_path = \"{}\"\n\
             base_image_size = \"64MB\"\nfs_type = \"ext4\"\n",
            pool.name,
            root.display()
        ))
    })
    .expect("containerd");
    let engine = &engine;
    let name = ctr_stay(engine, "devmapper", &["--snapshotter", "devmapper"]);
    let output = ctr_exec(engine, &name, "echo kept > /kept; grep -c '^/dev/vda1 / ext4 rw' /proc/mounts");
    assert_eq!(output.text(), "1\n", "{}", output.stderr);
    let snapshots = fs::read_dir("/dev/mapper").expect("devices").flatten().map(|entry| entry.path());
    let snapshots: Vec<_> = snapshots
        .filter(|path| text(path).contains(&format!("{}-snap", pool.name)))
        .filter_map(|path| fs::canonicalize(path).ok())
        .collect();
    let open = open_files(vmm_of(&name).pid());
    assert!(
        open.iter().any(|(path, writable)| *writable && snapshots.contains(path)),
        "{open:?} {snapshots:?}"
    );
    ctr_kill(engine, &name);
    // containerd removes the snapshot's device, which nobody may have open.
    let removed = finish(&mut engine.ctr(&["container", "delete", &name]));
    assert_eq!(removed.code(), 0, "{}{}", removed.stderr, engine.log());
}
