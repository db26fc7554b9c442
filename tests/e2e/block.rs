//! Block devices and file systems in files: snapshots that reach the guest as they are, raw volumes, mounts.
//!
//! All with containerd 2.3, which has the snapshotters. One of its engines makes erofs snapshots with a writable layer in
//! a file, the other with one in a directory; the latter serves the tests that have nothing to do with snapshots too.

mod devmapper;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use libtest_mimic::Trial;
use monohull_tests::engine::{Client, Engine, IMAGE, MONOHULL, Output, Run, finish};
use monohull_tests::leaks::Census;
use monohull_tests::talk::{Pod, SHELL};

use crate::containers::id;
use crate::failures::vmm_of;
use crate::leaks::assert_nothing_beyond;
use crate::{Case, Group, limits, pods, sandbox};

/// The tests of the engine whose erofs snapshots have a writable layer in a directory.
const CASES: &[Case] = &[
    ("erofs_layers_are_mounted_by_the_guest_and_by_nobody_on_the_host", erofs),
    ("many_erofs_layers_are_one_root", many_layers),
    ("a_pod_of_20_containers_with_60_erofs_layers_starts", |engine| pods::crowd(engine, "erofs")),
    ("a_layer_is_one_file_of_the_vmm_however_many_containers_of_a_pod_have_it", shared_layer),
    ("a_privileged_container_cannot_write_to_its_image", hostile),
    ("blockfile_snapshots_are_written_by_the_guest", blockfile),
    ("a_pod_with_erofs_layers_is_copied_while_it_runs", |engine| copied(engine, "erofs")),
    ("a_pod_with_a_blockfile_is_copied_while_it_runs", |engine| copied(engine, "blockfile")),
    ("a_raw_volume_is_read_and_written", raw),
    ("a_raw_volume_without_w_in_its_rule_is_read_only", raw_read_only),
    ("a_raw_volume_is_let_go_with_its_last_container", released),
    ("a_disk_is_no_faster_than_the_settings_say", limits::disk),
    ("a_device_that_cannot_be_passed_is_refused_by_name", refused),
    ("file_systems_in_files_are_mounted_and_synced_to_the_host", ext4),
    ("a_read_only_file_system_in_a_file_stays_as_it_is", ext4_read_only),
    ("erofs_and_xfs_volumes_are_mounted", erofs_and_xfs),
    ("recursive_read_only_mounts_are_read_only_recursively", recursive_read_only),
];

const SIZED_CASES: &[Case] = &[("erofs_with_default_size_keeps_what_is_written_in_a_file", erofs_sized)];

/// Fits what is made in it: busybox and a few files.
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn groups() -> [Group; 2] {
    let sized = "[plugins.\"io.containerd.snapshotter.v1.erofs\"]\ndefault_size = \"64MiB\"\n";
    [
        Group {
            name: "block".into(),
            start: Box::new(|| Engine::start_with(Client::Nerdctl, with_blockfile)),
            cases: CASES.to_vec(),
        },
        Group {
            name: "block".into(),
            start: Box::new(|| Engine::start_with(Client::Nerdctl, |_| Ok(sized.into()))),
            cases: SIZED_CASES.to_vec(),
        },
    ]
}

/// A test with an engine of its own, because its thin pool must outlive that.
pub(crate) fn devmapper_trial() -> Trial {
    Trial::test("block::devmapper_snapshots_are_passed_as_devices", || {
        devmapper::devmapper();
        Ok(())
    })
}

fn with_blockfile(dir: &Path) -> io::Result<String> {
    let scratch = dir.join("scratch.img");
    make_ext4(&scratch, 64 * MIB);
    Ok(format!(
        "[plugins.\"io.containerd.snapshotter.v1.blockfile\"]\nscratch_file = \"{}\"\nfs_type = \"ext4\"\n",
        scratch.display()
    ))
}

fn host(program: &str, args: &[&str]) -> String {
    let output = finish(Command::new(program).args(args));
    assert_eq!(output.code(), 0, "{program} {args:?}: {}{}", output.text(), output.stderr);
    output.text().trim().to_owned()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn make_ext4(path: &Path, size: u64) {
    File::create(path).expect("an image").set_len(size).expect("its size");
    host("mkfs.ext4", &["-q", "-E", "root_owner=0:0", &text(path)]);
}

/// A file in an ext4 image that nobody has mounted.
fn in_ext4(image: &Path, file: &str) -> String {
    host("debugfs", &["-R", &format!("cat {file}"), &text(image)])
}

/// The one file of this name below the engine's directory of snapshots.
fn snapshot_files(engine: &Engine, name: &str) -> Vec<PathBuf> {
    let root = text(&engine.scratch().join("root"));
    host("find", &[&root, "-name", name]).lines().map(PathBuf::from).collect()
}

/// A container of a snapshotter with `ctr`; `extra` are options of `ctr run`.
fn ctr_run(engine: &Engine, name: &str, extra: &[&str], script: &str) -> Output {
    let args = [&["run", "--runtime", MONOHULL], extra, &[IMAGE, name, "sh", "-c", script]].concat();
    finish(&mut engine.ctr(&args))
}

/// One that stays.
fn ctr_stay(engine: &Engine, prefix: &str, extra: &[&str]) -> String {
    let name = id(prefix);
    let extra = [&["--detach"], extra].concat();
    let output = ctr_run(engine, &name, &extra, "trap 'exit 0' TERM; sleep 1000 & wait");
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    name
}

fn ctr_exec(engine: &Engine, name: &str, script: &str) -> Output {
    let exec_id = id("exec");
    finish(&mut engine.ctr(&["task", "exec", "--exec-id", &exec_id, name, "sh", "-c", script]))
}

fn ctr_kill(engine: &Engine, name: &str) {
    finish(&mut engine.ctr(&["task", "delete", "--force", name]));
}

fn ctr_remove(engine: &Engine, name: &str) {
    ctr_kill(engine, name);
    finish(&mut engine.ctr(&["container", "delete", name]));
}

/// Files that a process has open, and whether for writing.
fn open_files(pid: i32) -> Vec<(PathBuf, bool)> {
    let directory = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process");
    let open = directory.flatten().filter_map(|entry| {
        let number = entry.file_name().into_string().ok()?;
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim().to_owned();
        let writable = u32::from_str_radix(&flags, 8).ok()? & 3 != 0;
        Some((fs::read_link(entry.path()).ok()?, writable))
    });
    open.collect()
}

/// What the VMM of a pod has open with this file name.
fn vmm_files(pod: &str, name: &str) -> Vec<(PathBuf, bool)> {
    let files = open_files(vmm_of(pod).pid());
    files.into_iter().filter(|(path, _)| path.file_name().is_some_and(|file| file == name)).collect()
}

/// Loop devices whose file is the engine's, and overlays on the host below its directory.
fn mounted_on_host(engine: &Engine) -> Vec<String> {
    let scratch = text(engine.scratch());
    let loops = host("losetup", &["--list", "--noheadings", "--output", "NAME,BACK-FILE"]);
    let mounts = fs::read_dir("/proc").expect("processes").flatten();
    let mounts = mounts.filter_map(|entry| fs::read_to_string(entry.path().join("mountinfo")).ok());
    let mounts: Vec<String> =
        mounts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let ours = |line: &String| {
        let kind = line.split_once(" - ").map_or("", |(_, rest)| rest);
        line.contains(&scratch) && ["overlay ", "erofs ", "ext4 "].iter().any(|name| kind.starts_with(name))
    };
    loops
        .lines()
        .map(str::to_owned)
        .filter(|line| line.contains(&scratch))
        .chain(mounts.into_iter().filter(ours))
        .collect()
}

fn erofs(engine: &Engine) {
    let before = Census::take(&engine.bundles());
    let name = ctr_stay(engine, "erofs", &["--snapshotter", "erofs"]);
    let layers = vmm_files(&name, "layer.erofs");
    assert!(matches!(layers[..], [(_, false)]), "one layer, open for reading only: {layers:?}");
    let mounted = mounted_on_host(engine);
    assert!(mounted.is_empty(), "{mounted:?}");
    let script =
        "grep -c ' / overlay rw' /proc/mounts; echo x > /etc/new && rm /etc/group && ls /etc; id -un";
    let output = ctr_exec(engine, &name, script);
    assert_eq!(output.text(), "1\nnew\npasswd\nroot\n", "{}", output.stderr);
    ctr_remove(engine, &name);
    assert_nothing_beyond(engine, &before);
}

/// The test image with more layers on top of it: each adds a file, the last one also removes one.
pub(crate) fn layered_image(engine: &Engine, layers: usize) -> String {
    let tag = "docker.io/library/busybox:layers";
    let script = r#"
        cd "$(mktemp -d)"; tar xf "$IMAGE"; config=$(jq -r '.[0].Config' manifest.json)
        for n in $(seq "$LAYERS"); do
            rm -rf layer; mkdir -p layer/etc; echo "$n" > "layer/etc/layer-$n"; echo "$n" > layer/etc/top
            [ "$n" != "$LAYERS" ] || : > layer/etc/.wh.layer-1
            tar -C layer -cf layer.tar .; sum=$(sha256sum layer.tar | cut -d' ' -f1); mv layer.tar "$sum.tar"
            jq --arg sum "sha256:$sum" '.rootfs.diff_ids += [$sum]' "$config" > new.json; mv new.json "$config"
            jq --arg file "$sum.tar" '.[0].Layers += [$file]' manifest.json > new.json; mv new.json manifest.json
        done
        sum=$(sha256sum "$config" | cut -d' ' -f1); mv "$config" "$sum.json"
        jq --arg tag "$TAG" --arg config "$sum.json" '.[0].RepoTags = [$tag] | .[0].Config = $config' manifest.json > new.json
        mv new.json manifest.json; rm -rf layer; tar cf "$OUTPUT" ./*"#;
    let output = engine.scratch().join("layers.tar");
    let mut shell = Command::new("sh");
    shell.args(["-euc", script]).env("IMAGE", monohull_tests::engine::image());
    shell.env("LAYERS", layers.to_string()).env("TAG", tag).env("OUTPUT", &output);
    let made = finish(&mut shell);
    assert_eq!(made.code(), 0, "{}", made.stderr);
    let imported = finish(&mut engine.ctr(&["image", "import", "--no-unpack", &text(&output)]));
    assert_eq!(imported.code(), 0, "{}", imported.stderr);
    tag.into()
}

fn many_layers(engine: &Engine) {
    let image = layered_image(engine, 20);
    let name = id("layers");
    let script = "cat /etc/top; ls /etc | grep -c layer-; ls /etc/layer-1; busybox true";
    let args =
        ["run", "--rm", "--runtime", MONOHULL, "--snapshotter", "erofs", &image, &name, "sh", "-c", script];
    let output = finish(&mut engine.ctr(&args));
    assert_eq!(output.text(), "20\n19\n", "{}{}", output.stderr, engine.log());
    assert!(output.stderr.contains("/etc/layer-1: No such file"), "{}", output.stderr);
    assert_eq!(output.code(), 0, "{}", output.stderr);
}

fn shared_layer(engine: &Engine) {
    let pod = sandbox::make(engine);
    let options = ["--snapshotter", "erofs", "--sandbox", &pod];
    let first = ctr_stay(engine, "member", &options);
    let second = ctr_stay(engine, "member", &options);
    assert_eq!(vmm_files(&pod, "layer.erofs").len(), 1);
    ctr_remove(engine, &first);
    assert_eq!(vmm_files(&pod, "layer.erofs").len(), 1, "one still has it");
    assert_eq!(ctr_exec(engine, &second, "cat /etc/passwd | wc -l").text(), "2\n");
    ctr_remove(engine, &second);
    assert_eq!(vmm_files(&pod, "layer.erofs").len(), 0, "nobody has it");
    let third = ctr_stay(engine, "member", &options);
    assert_eq!(ctr_exec(engine, &third, "cat /etc/passwd | wc -l").text(), "2\n");
    ctr_remove(engine, &third);
    finish(&mut engine.ctr(&["sandboxes", "rm", "--force", &pod]));
}

fn hostile(engine: &Engine) {
    // Every capability, and device rules that allow everything, which `ctr` gives only together with the host's devices.
    let everything = r#"[{"allow": true, "access": "rwm"}]"#;
    let script = format!(
        "[ ! -e config.json ] || {{ jq '.linux.resources.devices = {everything}' config.json > new && mv new config.json; }}
         exec $SHIM \"$@\""
    );
    let runtime = engine.install_shim("monohull-hostile", &script).expect("a shim to run");
    let privileged = ["--privileged", "--privileged-without-host-devices", "--runtime", &runtime];
    let options = [&["--snapshotter", "erofs"][..], &privileged].concat();
    let name = ctr_stay(engine, "hostile", &options);
    let layers = vmm_files(&name, "layer.erofs");
    let [(layer, _)] = &layers[..] else { panic!("{layers:?}") };
    let before = fs::read(layer).expect("a layer");
    let script = "cd /dev; number=$(tr : ' ' < /sys/class/block/vda1/dev); mknod part b $number; \
                  mknod disk b $(tr : ' ' < /sys/class/block/vda/dev); \
                  blockdev --setrw part; blockdev --getro part; \
                  dd if=/dev/zero of=part bs=4096 count=4 conv=fsync,notrunc; \
                  dd if=/dev/zero of=disk bs=4096 count=4 seek=256 conv=fsync,notrunc; true";
    let output = ctr_exec(engine, &name, script);
    assert_eq!(output.text(), "0\n", "the guest's kernel takes it for writable: {}", output.stderr);
    assert_eq!(output.stderr.matches("dd: ").count(), 2, "both attempts failed: {}", output.stderr);
    ctr_remove(engine, &name);
    assert_eq!(fs::read(layer).expect("a layer"), before);
}

fn erofs_sized(engine: &Engine) {
    let before = Census::take(&engine.bundles());
    let name = ctr_stay(engine, "sized", &["--snapshotter", "erofs"]);
    assert!(matches!(vmm_files(&name, "layer.erofs")[..], [(_, false)]));
    let written = vmm_files(&name, "rwlayer.img");
    let [(image, true)] = &written[..] else { panic!("one file, open for writing: {written:?}") };
    assert!(mounted_on_host(engine).is_empty(), "{:?}", mounted_on_host(engine));
    let script = "echo kept > /kept; rm /etc/group; dd if=/dev/zero of=/large bs=1M count=100 2>&1 | grep -c 'No space'";
    let output = ctr_exec(engine, &name, script);
    assert_eq!(output.text(), "1\n", "its size is the limit: {}", output.stderr);
    ctr_kill(engine, &name);
    assert_eq!(in_ext4(image, "/upper/kept"), "kept");
    ctr_remove(engine, &name);
    assert_nothing_beyond(engine, &before);
}

fn blockfile(engine: &Engine) {
    let name = ctr_stay(engine, "blockfile", &["--snapshotter", "blockfile"]);
    assert!(mounted_on_host(engine).is_empty(), "{:?}", mounted_on_host(engine));
    let output = ctr_exec(engine, &name, "echo kept > /kept; grep -c '^/dev/vda1 / ext4 rw' /proc/mounts");
    assert_eq!(output.text(), "1\n", "{}", output.stderr);
    let snapshots = snapshot_files(engine, "[0-9]*");
    let open = open_files(vmm_of(&name).pid());
    let mut images = open.into_iter().filter(|(path, writable)| *writable && snapshots.contains(path));
    let (image, _) = images.next().expect("the snapshot's file is the VMM's");
    ctr_kill(engine, &name);
    assert_eq!(in_ext4(&image, "/kept"), "kept");
    ctr_remove(engine, &name);

    let output =
        ctr_run(engine, &id("blockfile"), &["--rm", "--snapshotter", "blockfile", "--read-only"], "touch /x");
    assert!(output.stderr.contains("Read-only file system"), "{}", output.stderr);
}

/// A shim makes the snapshot, and the copy is a pod without an engine.
fn copied(engine: &Engine, snapshotter: &str) {
    let before = Census::take(&engine.bundles());
    let (name, snapshot) = (id("copied"), id("snapshot"));
    let run = ["run", "--rm", "--runtime", MONOHULL, "--snapshotter", snapshotter, IMAGE, &name];
    let mut command = engine.ctr(&run);
    command.args(["sh", "-c", SHELL]);
    let mut original = Pod::of(command);
    assert_eq!(original.ask("x=7; echo before > /file").0, 1);
    assert_eq!(host("monohull", &["snapshot", &name, &snapshot]), snapshot);
    assert_eq!(original.ask("echo original > /file").0, 2);

    let mut copy = Pod::copy(&snapshot, "copy");
    let expected = ["before", "7", "lo"].map(str::to_owned).to_vec();
    assert_eq!(copy.ask("cat /file; echo $x; ls /sys/class/net"), (2, expected));
    assert_eq!(copy.says("echo copy > /file; cat /file; hostname"), "copy copy");
    assert_eq!(original.says("cat /file"), "original");
    assert_eq!(copy.end(), "bye 3 copy");
    assert!(original.end().starts_with("bye 3 "));
    host("monohull", &["snapshot", "rm", &snapshot]);
    assert_nothing_beyond(engine, &before);
}

/// A loop device over a new file; detached and removed when dropped.
pub(crate) struct Loop {
    file: PathBuf,
    device: String,
}

impl Loop {
    pub(crate) fn new(engine: &Engine, size: u64) -> Self {
        let file = engine.scratch().join(id("disk"));
        File::create(&file).expect("a disk").set_len(size).expect("its size");
        Self::of(file)
    }

    fn of(file: PathBuf) -> Self {
        let device = host("losetup", &["--find", "--show", &text(&file)]);
        Self { file, device }
    }

    pub(crate) fn option(&self, place: &str, access: &str) -> String {
        format!("{}:{place}:{access}", self.device)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A test may have detached it already.
        let _ = Command::new("losetup").args(["--detach", &self.device]).stderr(Stdio::null()).status();
        let _ = fs::remove_file(&self.file);
    }
}

fn with_device(engine: &Engine, option: &str, caps: &[&str], script: &str) -> Output {
    let mut run = Run::sh(&id("raw"), script);
    run.extra = vec!["--device".into(), option.into()];
    run.extra.extend(caps.iter().flat_map(|cap| ["--cap-add".into(), (*cap).into()]));
    engine.run(&run)
}

fn raw(engine: &Engine) {
    let disk = Loop::new(engine, 8 * MIB);
    File::options()
        .write(true)
        .open(&disk.file)
        .expect("open")
        .write_all_at(b"from the host", 4096)
        .expect("written");
    let script = "stat -c '%F %a' /dev/xvda; blockdev --getsize64 /dev/xvda; \
                  dd if=/dev/xvda bs=1 skip=4096 count=13 2>/dev/null; echo; \
                  echo from the guest | dd of=/dev/xvda bs=512 seek=16 conv=fsync,notrunc 2>/dev/null; echo $?";
    let output = with_device(engine, &disk.option("/dev/xvda", "rwm"), &[], script);
    let mode = fs::metadata(&disk.device).expect("a device").permissions().mode() & 0o777;
    let expected = format!("block special file {mode:o}\n8388608\nfrom the host\n0\n");
    assert_eq!(output.text(), expected, "{}", output.stderr);
    // Through the device, as another user of it would see it.
    let mut found = [0; 14];
    File::open(&disk.device).expect("open").read_exact_at(&mut found, 8192).expect("read");
    assert_eq!(&found, b"from the guest");
}

fn raw_read_only(engine: &Engine) {
    let disk = Loop::new(engine, 8 * MIB);
    let script = "dd if=/dev/xvda of=/dev/null bs=1M count=1 2>/dev/null && echo read; \
                  dd if=/dev/zero of=/dev/xvda bs=512 count=1 conv=notrunc,fsync 2>/dev/null || echo refused; \
                  blockdev --getro /dev/xvda; blockdev --setrw /dev/xvda; \
                  dd if=/dev/zero of=/dev/xvda bs=512 count=1 conv=notrunc,fsync 2>/dev/null || echo refused";
    let content = vec![7; 4096];
    File::options().write(true).open(&disk.file).expect("open").write_all_at(&content, 0).expect("written");
    let output = with_device(engine, &disk.option("/dev/xvda", "r"), &["SYS_ADMIN"], script);
    assert_eq!(output.text(), "read\nrefused\n1\nrefused\n", "{}", output.stderr);
    assert_eq!(fs::read(&disk.file).expect("read")[..4096], content);
}

/// Whether a loop device goes when it is detached: it stays as long as somebody has it open.
fn is_free(disk: &Loop) -> bool {
    host("losetup", &["--detach", &disk.device]);
    let left = host("losetup", &["--list", "--noheadings", "--output", "NAME"]);
    !left.lines().any(|line| line.trim() == disk.device)
}

fn released(engine: &Engine) {
    let disk = Loop::new(engine, 8 * MIB);
    let pod = sandbox::make(engine);
    let options = ["--sandbox", &pod, "--device", &disk.device];
    let has_it =
        || open_files(vmm_of(&pod).pid()).iter().filter(|(path, _)| *path == Path::new(&disk.device)).count();
    let (first, second) = (ctr_stay(engine, "member", &options), ctr_stay(engine, "member", &options));
    assert_eq!(has_it(), 1);
    let write = format!("echo shared | dd of={0} conv=notrunc 2>&1", disk.device);
    ctr_exec(engine, &first, &write);
    let read = ctr_exec(engine, &second, &format!("head -n 1 {}", disk.device));
    assert_eq!(read.text(), "shared\n", "one cache for both: {}", read.stderr);
    ctr_remove(engine, &first);
    assert_eq!(has_it(), 1);
    ctr_remove(engine, &second);
    assert_eq!(has_it(), 0);
    assert!(fs::read(&disk.file).expect("read").starts_with(b"shared\n"), "written back without an fsync");
    assert!(is_free(&disk), "still in use");
    finish(&mut engine.ctr(&["sandboxes", "rm", "--force", &pod]));
}

fn refused(engine: &Engine) {
    let kmsg = with_device(engine, "/dev/kmsg:/dev/kmsg:r", &[], "true");
    assert!(kmsg.stderr.contains("linux.devices (/dev/kmsg)"), "{}", kmsg.stderr);
    let disk = Loop::new(engine, 8 * MIB);
    let elsewhere = with_device(engine, &disk.option("/data", "rwm"), &[], "true");
    assert!(elsewhere.stderr.contains("must be below /dev"), "{}", elsewhere.stderr);
    let mut run = Run::new(&id("bound"), &["true"]);
    run.extra = vec!["--volume".into(), format!("{}:/dev/xvda", disk.device)];
    let bound = engine.run(&run);
    assert!(
        bound.stderr.contains("a block device of the host (mount its file system, or"),
        "{}",
        bound.stderr
    );
    host("blockdev", &["--setro", &disk.device]);
    let write_protected = with_device(engine, &disk.option("/dev/xvda", "rwm"), &[], "true");
    let option = mount_option("ext4", Path::new(&disk.device), "rw");
    let mounted = ctr_run(engine, &id("bound"), &["--rm", "--mount", &option], "true");
    // The flag stays with the device's number, whatever the next file is.
    host("blockdev", &["--setrw", &disk.device]);
    assert!(mounted.stderr.contains("is write-protected: mount it read-only"), "{}", mounted.stderr);
    assert!(write_protected.stderr.contains("is write-protected; leave"), "{}", write_protected.stderr);
}

fn mount_option(fstype: &str, source: &Path, options: &str) -> String {
    format!("type={fstype},src={},dst=/mnt,options={options}", source.display())
}

/// `strace` of a process's system calls that sync, until it is dropped.
struct Syncs {
    strace: Child,
    log: PathBuf,
}

impl Syncs {
    fn of(engine: &Engine, pid: i32) -> Self {
        let log = engine.scratch().join(id("strace"));
        let mut strace = Command::new("strace")
            .args(["-f", "-y", "-e", "trace=fdatasync,fsync", "-o", &text(&log), "-p", &pid.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace");
        // It says so when it is attached.
        let mut first = [0; 1];
        strace.stderr.as_mut().expect("its messages").read_exact(&mut first).expect("attached");
        Self { strace, log }
    }

    fn end(mut self) -> String {
        let pid = nix::unistd::Pid::from_raw(self.strace.id().try_into().expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("told to end");
        self.strace.wait().expect("ended");
        fs::read_to_string(&self.log).expect("its log")
    }
}

fn ext4(engine: &Engine) {
    let image = engine.scratch().join(id("ext4"));
    make_ext4(&image, 32 * MIB);
    let name = ctr_stay(engine, "ext4", &["--mount", &mount_option("ext4", &image, "loop:rw:nosuid")]);
    assert!(mounted_on_host(engine).is_empty(), "{:?}", mounted_on_host(engine));
    let syncs = Syncs::of(engine, vmm_of(&name).pid());
    let script = "echo synced | dd of=/mnt/a conv=fsync 2>/dev/null; grep ' /mnt ' /proc/mounts";
    let output = ctr_exec(engine, &name, script);
    assert!(output.text().contains(" /mnt ext4 rw,nosuid"), "{}{}", output.text(), output.stderr);
    let syncs = syncs.end();
    assert!(syncs.contains("fdatasync(") && syncs.contains(&text(&image)), "{syncs}");
    ctr_remove(engine, &name);
    assert_eq!(in_ext4(&image, "/a"), "synced");
    host("e2fsck", &["-fn", &text(&image)]);
}

fn ext4_read_only(engine: &Engine) {
    let image = engine.scratch().join(id("ext4"));
    make_ext4(&image, 32 * MIB);
    let before = fs::read(&image).expect("read");
    let option = mount_option("ext4", &image, "ro");
    let script = "touch /mnt/x; mount -o remount,rw /mnt; ls /mnt";
    let extra = ["--rm", "--mount", &option, "--cap-add", "CAP_SYS_ADMIN"];
    let output = ctr_run(engine, &id("ext4"), &extra, script);
    assert_eq!(output.text(), "lost+found\n", "{}{}", output.stderr, engine.log());
    assert!(output.stderr.contains("touch: /mnt/x: Read-only file system"), "{}", output.stderr);
    assert!(output.stderr.contains("mount: "), "{}", output.stderr);
    assert!(fs::read(&image).expect("read") == before, "not a byte has changed");
}

fn erofs_and_xfs(engine: &Engine) {
    let tree = engine.scratch().join(id("tree"));
    fs::create_dir(&tree).expect("a tree");
    fs::write(tree.join("file"), "packed").expect("written");
    let image = engine.scratch().join(id("erofs"));
    host("mkfs.erofs", &["--quiet", &text(&image), &text(&tree)]);
    let option = mount_option("erofs", &image, "ro");
    let output = ctr_run(engine, &id("erofs"), &["--rm", "--mount", &option], "cat /mnt/file; touch /mnt/x");
    assert_eq!(output.text(), "packed", "{}", output.stderr);
    assert!(output.stderr.contains("Read-only file system"), "{}", output.stderr);

    // On a block device, for once.
    let disk = Loop::new(engine, 320 * MIB);
    host("mkfs.xfs", &["-q", &disk.device]);
    let option = mount_option("xfs", Path::new(&disk.device), "rw:nouuid");
    let output = ctr_run(
        engine,
        &id("xfs"),
        &["--rm", "--mount", &option],
        "echo x > /mnt/x; stat -f -c %T /mnt; cat /mnt/x",
    );
    assert_eq!(output.text(), "xfs\nx\n", "{}", output.stderr);
    assert!(is_free(&disk));
}

fn recursive_read_only(engine: &Engine) {
    let volume = engine.scratch().join(id("volume"));
    let inner = volume.join("inner");
    fs::create_dir_all(&inner).expect("a volume");
    host("mount", &["-t", "tmpfs", "inner", &text(&inner)]);
    let option = |options: &str| format!("type=bind,src={},dst=/mnt,options={options}", volume.display());
    let script = "touch /mnt/x /mnt/inner/x 2>&1 | grep -c 'Read-only'; ls /mnt/inner";
    let run = |options| ctr_run(engine, &id("rro"), &["--rm", "--mount", &option(options)], script);
    let (recursive, writable) = (run("rbind:rro"), run("rbind:rw"));
    host("umount", &[&text(&inner)]);
    assert_eq!(recursive.text(), "2\n", "{}", recursive.stderr);
    assert_eq!(writable.text(), "0\nx\n", "{}", writable.stderr);
}
