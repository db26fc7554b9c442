//! Volumes: directories and files of the host in a container.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use monohull_tests::engine::{Client, Engine, Output, Run, in_container};
use monohull_tests::leaks::{Census, processes};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Case;
use crate::containers::id;
use crate::leaks::assert_nothing_beyond;

pub(crate) const CASES: &[Case] = &[
    ("a_writable_volume_is_live_in_both_directions", live),
    ("a_read_only_volume_refuses_writes", read_only),
    ("a_single_file_is_the_hosts_file", single_file),
    ("owners_modes_links_and_times_are_the_hosts", attributes),
    ("what_is_mounted_below_a_volume_is_there_now_and_later", nested),
    ("a_mount_below_a_read_only_volume_stays_writable_unless_all_is_read_only", read_only_top),
    ("a_symbolic_link_leads_nowhere_outside_the_volume", escape),
    ("a_projected_volume_changes_while_the_container_runs", projected),
    ("a_program_on_a_volume_is_executed", executed),
    ("a_fifo_and_a_device_are_refused_by_name_and_common_devices_are_the_guests", special_files),
    ("what_is_written_through_a_mapping_is_on_the_host_with_the_end_of_the_process", mapping),
    ("locks_exclude_each_other_within_the_pod", locks),
    ("mounts_that_would_have_to_propagate_to_the_host_are_refused", bidirectional),
    ("an_empty_dir_in_memory_has_the_size_owner_and_mode_of_the_hosts", memory),
    ("huge_pages_are_refused", huge_pages),
    ("killing_the_fs_server_ends_the_pod_and_leaves_nothing", killed_server),
];

/// A new directory on the host.
pub(crate) fn directory(engine: &Engine) -> PathBuf {
    let path = engine.scratch().join(id("volume"));
    fs::create_dir(&path).expect("a directory for the volume");
    path
}

/// The option that mounts `source` on `target`.
pub(crate) fn volume(engine: &Engine, source: &Path, target: &str, read_only: bool) -> [String; 2] {
    mounted(engine, source, target, if read_only { "ro" } else { "rw" })
}

/// [`volume`] with mount options.
fn mounted(engine: &Engine, source: &Path, target: &str, mode: &str) -> [String; 2] {
    let source = source.display();
    match engine.client() {
        Client::Ctr => {
            ["--mount".into(), format!("type=bind,src={source},dst={target},options=rbind:{mode}")]
        }
        Client::Nerdctl => ["--volume".into(), format!("{source}:{target}:{mode}")],
    }
}

/// Runs a script with `source` on `/mnt`.
fn run(engine: &Engine, source: &Path, read_only: bool, script: &str) -> Output {
    let mut run = Run::sh(&id("volume"), script);
    run.extra = volume(engine, source, "/mnt", read_only).into();
    engine.run(&run)
}

/// A container that stays, with `source` on `/mnt`.
fn stay(engine: &Engine, source: &Path) -> String {
    let name = id("volume");
    let mut run = Run::sh(&name, "trap 'exit 143' TERM; sleep 1000 & wait");
    run.extra = volume(engine, source, "/mnt", false).into();
    run.detach = true;
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    name
}

fn sh(engine: &Engine, name: &str, script: &str) -> String {
    let output = engine.exec(name, &["sh", "-c", script]);
    assert!(output.stderr.is_empty(), "{script}: {}", output.stderr);
    output.text()
}

fn live(engine: &Engine) {
    let host = directory(engine);
    let name = stay(engine, &host);
    fs::write(host.join("a"), "one").expect("written");
    assert_eq!(sh(engine, &name, "cat /mnt/a"), "one");
    fs::write(host.join("a"), "another").expect("written");
    assert_eq!(sh(engine, &name, "cat /mnt/a; echo $(stat -c %s /mnt/a)"), "another7\n");
    fs::rename(host.join("a"), host.join("b")).expect("renamed");
    assert_eq!(sh(engine, &name, "ls /mnt"), "b\n");

    sh(engine, &name, "mkdir /mnt/d; echo two > /mnt/d/file; echo three >> /mnt/b; rm -f /mnt/none");
    assert_eq!(fs::read_to_string(host.join("d/file")).expect("read"), "two\n");
    assert_eq!(fs::read_to_string(host.join("b")).expect("read"), "anotherthree\n");
    sh(engine, &name, "dd if=/dev/urandom of=/mnt/large bs=1M count=3 2>/dev/null; cp /mnt/large /mnt/copy");
    let (large, copy) = (fs::read(host.join("large")), fs::read(host.join("copy")));
    assert_eq!(large.expect("read").len(), 3 << 20);
    assert_eq!(fs::read(host.join("large")).expect("read"), copy.expect("read"));
    engine.remove(&name);
    assert_eq!(fs::read_dir(&host).expect("read").count(), 4, "it stays when the container goes");
}

fn read_only(engine: &Engine) {
    let host = directory(engine);
    fs::write(host.join("file"), "from the host").expect("written");
    let script = "cat /mnt/file; touch /mnt/new; echo x >> /mnt/file; rm /mnt/file; chmod 777 /mnt/file; \
                  mkdir /mnt/d; mv /mnt/file /mnt/other; mount -o remount,rw /mnt";
    let output = run(engine, &host, true, script);
    assert_eq!(output.text(), "from the host");
    assert_eq!(output.stderr.matches("Read-only file system").count(), 6, "{}", output.stderr);
    assert_eq!(fs::read_to_string(host.join("file")).expect("read"), "from the host");
    assert_eq!(fs::read_dir(&host).expect("read").count(), 1);
}

fn single_file(engine: &Engine) {
    let host = directory(engine).join("file");
    fs::write(&host, "one\n").expect("written");
    let name = stay(engine, &host);
    fs::write(&host, "two\n").expect("written");
    assert_eq!(sh(engine, &name, "cat /mnt"), "two\n");
    sh(engine, &name, "echo three >> /mnt");
    assert_eq!(fs::read_to_string(&host).expect("read"), "two\nthree\n");
    engine.remove(&name);
}

fn attributes(engine: &Engine) {
    let host = directory(engine);
    fs::set_permissions(&host, fs::Permissions::from_mode(0o777)).expect("chmod");
    let script = "cd /mnt && echo x > f && chown 1000:1001 f && chmod 4751 f && ln f g && ln -s f l && \
                  touch -d '2001-02-03 04:05:06' f && mkfifo p && stat -c '%u %g %a %h %Y' f && readlink l";
    let output = run(engine, &host, false, script);
    let f = host.join("f").metadata().expect("stat");
    let told = format!("1000 1001 4751 2 {}\nf\n", f.mtime());
    assert_eq!(output.text(), told, "{}", output.stderr);
    assert_eq!((f.uid(), f.gid(), f.mode() & 0o7777, f.nlink()), (1000, 1001, 0o4751, 2));
    assert_eq!(f.mtime(), 981_173_106);
    assert_eq!(f.ino(), host.join("g").metadata().expect("stat").ino());
    // A set-user-ID bit does not survive a write by somebody else.
    let script = "cp /bin/busybox /mnt/s; chmod 4777 /mnt/s; echo x | su -s /bin/sh nobody -c 'cat >> /mnt/s'; \
                  stat -c %a /mnt/s";
    let output = run(engine, &host, false, script);
    assert_eq!(output.text(), "777\n", "{}", output.stderr);
}

fn nested(engine: &Engine) {
    let host = directory(engine);
    let mount = |path: &Path| {
        fs::create_dir(path).expect("a mount point");
        let status = Command::new("mount").args(["-t", "tmpfs", "inner"]).arg(path).status();
        assert!(status.expect("mount runs").success());
        fs::write(path.join("file"), "inside").expect("written");
    };
    // Mounts propagate from a shared mount only; not every test machine's root is one.
    let shared = |action: &str, path: &Path| {
        let status = Command::new("mount").arg(action).arg(path).arg(path).status();
        assert!(status.expect("mount runs").success());
    };
    shared("--bind", &host);
    let status = Command::new("mount").arg("--make-shared").arg(&host).status();
    assert!(status.expect("mount runs").success());
    mount(&host.join("before"));
    let name = stay(engine, &host);
    assert_eq!(sh(engine, &name, "cat /mnt/before/file; echo y > /mnt/before/new"), "inside");
    assert_eq!(fs::read_to_string(host.join("before/new")).expect("read"), "y\n");
    let devices = sh(engine, &name, "stat -c %d /mnt /mnt/before");
    let devices: Vec<_> = devices.lines().collect();
    assert_ne!(devices[0], devices[1], "another file system has another number");
    mount(&host.join("later"));
    assert_eq!(sh(engine, &name, "cat /mnt/later/file"), "inside");
    engine.remove(&name);
    let status = Command::new("umount").arg("--recursive").arg(&host).status();
    assert!(status.expect("umount runs").success(), "nothing keeps the volume busy");
}

fn read_only_top(engine: &Engine) {
    let host = directory(engine);
    let inner = host.join("inner");
    fs::create_dir(&inner).expect("a mount point");
    let status = Command::new("mount").args(["-t", "tmpfs", "inner"]).arg(&inner).status();
    assert!(status.expect("mount runs").success());
    let try_both = "touch /mnt/file; touch /mnt/inner/file";
    let output = run(engine, &host, true, try_both);
    assert_eq!(output.stderr.matches("Read-only file system").count(), 1, "{}", output.stderr);
    assert!(inner.join("file").exists() && !host.join("file").exists(), "{}", output.stderr);
    let mut run = Run::sh(&id("rro"), try_both);
    run.extra =
        vec!["--mount".into(), format!("type=bind,src={},dst=/mnt,options=rbind:ro:rro", host.display())];
    let output = engine.run(&run);
    assert_eq!(output.stderr.matches("Read-only file system").count(), 2, "{}", output.stderr);
    let status = Command::new("umount").arg(&inner).status();
    assert!(status.expect("umount runs").success(), "nothing keeps the volume busy");
}

fn escape(engine: &Engine) {
    let host = directory(engine);
    symlink("/etc/hostname", host.join("link")).expect("a link");
    symlink("../../../../../../etc/hostname", host.join("up")).expect("a link");
    symlink(engine.scratch().join("config.toml"), host.join("config")).expect("a link");
    fs::write(engine.scratch().join("secret"), "of the host").expect("written");
    let output = run(engine, &host, false, "cat /mnt/config /mnt/../secret; cat /mnt/link /mnt/up; true");
    assert!(!output.text().contains("containerd") && !output.text().contains("of the host"));
    let hostname = fs::read_to_string("/etc/hostname").unwrap_or_default();
    assert!(hostname.trim().is_empty() || !output.text().contains(hostname.trim()), "{}", output.text());
}

/// What the kubelet does with configMaps, secrets and projected volumes (its atomic writer).
fn projected(engine: &Engine) {
    let host = directory(engine);
    let write = |version: &str| {
        let data = host.join(format!("..{version}"));
        fs::create_dir(&data).expect("a directory");
        fs::write(data.join("key"), version).expect("written");
        symlink(format!("..{version}"), host.join("..data_tmp")).expect("a link");
        fs::rename(host.join("..data_tmp"), host.join("..data")).expect("renamed");
    };
    write("one");
    symlink("..data/key", host.join("key")).expect("a link");
    let name = stay(engine, &host);
    assert_eq!(sh(engine, &name, "cat /mnt/key"), "one");
    write("two");
    fs::remove_dir_all(host.join("..one")).expect("removed");
    assert_eq!(sh(engine, &name, "cat /mnt/key"), "two");
    engine.remove(&name);
}

fn executed(engine: &Engine) {
    let host = directory(engine);
    let script = "cd /mnt && cp /bin/busybox . && ./busybox echo mapped && rm busybox && ls -A";
    let output = run(engine, &host, false, script);
    assert_eq!(output.text(), "mapped\n", "{}", output.stderr);
}

fn special_files(engine: &Engine) {
    let fifo = directory(engine).join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    for (source, words) in
        [(fifo.as_path(), "a FIFO of the host"), (Path::new("/dev/kvm"), "a device of the host")]
    {
        let output = run(engine, source, false, "true");
        assert_ne!(output.code(), 0);
        assert!(output.stderr.contains(words), "{}", output.stderr);
    }
    let output = run(engine, Path::new("/dev/null"), false, "echo x > /mnt && stat -c %t,%T /mnt");
    assert_eq!(output.text(), "1,3\n", "{}", output.stderr);
}

/// A process need not say that it has written through a mapping: with its end the host has it.
fn mapping(engine: &Engine) {
    let host = directory(engine);
    let name = id("mapping");
    let mut run = Run::new(&name, &["/bin/in-container", "map", "/mnt/file", "word"]);
    run.detach = true;
    run.extra = volume(engine, &host, "/mnt", false).into();
    run.extra.extend(volume(engine, Path::new(&in_container()), "/bin/in-container", true));
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}", output.stderr);
    assert_eq!(engine.wait(&name), 0);
    assert_eq!(fs::read_to_string(host.join("file")).expect("read"), "word");
    engine.remove(&name);
}

/// Locks are the guest's: its processes exclude each other, the host and the pod do not.
fn locks(engine: &Engine) {
    let host = directory(engine);
    fs::write(host.join("file"), "").expect("written");
    let mut holder = Command::new(in_container());
    holder.arg("lock").arg(host.join("file")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = holder.spawn().expect("the host's lock");
    let mut said = [0; 7];
    holder.stdout.take().expect("piped").read_exact(&mut said).expect("read");
    assert_eq!(&said, b"locked\n");
    // The first has its locks as long as descriptor 3 is open.
    let script = "mkfifo /tmp/end; exec 3<> /tmp/end; /bin/in-container lock /mnt/file < /tmp/end > /tmp/first & \
                  until grep . /tmp/first 2> /dev/null; do :; done; /bin/in-container lock /mnt/file < /dev/null; \
                  kill $!; wait; /bin/in-container lock /mnt/file < /dev/null";
    let mut run = Run::sh(&id("locks"), script);
    run.extra = volume(engine, &host, "/mnt", false).into();
    run.extra.extend(volume(engine, Path::new(&in_container()), "/bin/in-container", true));
    let output = engine.run(&run);
    assert_eq!(output.text(), "locked\nbusy\nlocked\n", "{}", output.stderr);
    drop(holder.stdin.take());
    assert!(holder.wait().expect("the host's lock ends").success());
}

fn bidirectional(engine: &Engine) {
    let host = directory(engine);
    let mount = |options: &[&str]| {
        let status = Command::new("mount").args(options).arg(&host).status();
        assert!(status.expect("mount runs").success());
    };
    // nerdctl wants a shared mount for it.
    mount(&["--bind", &host.to_string_lossy()]);
    mount(&["--make-shared"]);
    let name = id("shared");
    let mut run = Run::new(&name, &["true"]);
    run.extra = match engine.client() {
        Client::Ctr => mounted(engine, &host, "/mnt", "rw:rshared").into(),
        Client::Nerdctl => mounted(engine, &host, "/mnt", "rw,rshared").into(),
    };
    let output = engine.run(&run);
    assert_ne!(output.code(), 0);
    assert!(output.stderr.contains("Bidirectional"), "{}", output.stderr);
    engine.remove(&name);
    let status = Command::new("umount").arg(&host).status();
    assert!(status.expect("umount runs").success());
}

/// What the kubelet mounts for `medium: Memory`; it is told by its path.
fn memory(engine: &Engine) {
    let host = directory(engine).join("volumes/kubernetes.io~empty-dir/cache");
    fs::create_dir_all(&host).expect("directories");
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=3m,uid=1000,gid=2000,mode=2770", "tmpfs"])
        .arg(&host)
        .status();
    assert!(status.expect("mount runs").success());
    let script = "df -k /mnt | awk 'NR == 2 { print $1, $2 }'; stat -c '%u %g %a' /mnt; \
                  dd if=/dev/zero of=/mnt/f bs=1M count=4 2>&1 | grep -c 'No space'";
    let output = run(engine, &host, false, script);
    assert_eq!(output.text(), "memory 3072\n1000 2000 2770\n1\n", "{}", output.stderr);
    assert_eq!(fs::read_dir(&host).expect("read").count(), 0, "it is the guest's memory");
    let status = Command::new("umount").arg(&host).status();
    assert!(status.expect("umount runs").success());
}

fn huge_pages(engine: &Engine) {
    let host = directory(engine);
    let status = Command::new("mount").args(["-t", "hugetlbfs", "none"]).arg(&host).status();
    assert!(status.expect("mount runs").success());
    let output = run(engine, &host, false, "true");
    assert_ne!(output.code(), 0);
    assert!(output.stderr.contains("the guest has no huge pages"), "{}", output.stderr);
    let status = Command::new("umount").arg(&host).status();
    assert!(status.expect("umount runs").success());
}

fn killed_server(engine: &Engine) {
    engine.run(&Run::new(&id("warm-up"), &["true"]));
    let before = Census::take(&engine.bundles());
    let host = directory(engine);
    let name = stay(engine, &host);
    let servers: Vec<_> = processes().into_iter().filter(|(_, name)| name == "monohull-fs").collect();
    let [(pid, _)] = servers[..] else { panic!("{servers:?}") };
    kill(Pid::from_raw(pid.try_into().expect("a pid")), Signal::SIGKILL).expect("killed");
    assert_ne!(engine.wait(&name), 0);
    engine.remove(&name);
    assert_nothing_beyond(engine, &before);
    assert!(host.exists());
}
