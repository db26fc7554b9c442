//! Roots: what a container writes to its own, and what engines do with that.

use std::fs;
use std::path::PathBuf;

use monohull_tests::engine::{Client, Engine, MONOHULL, Output, Run, finish, in_container};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Case;
use crate::containers::id;

pub(crate) const CASES: &[Case] = &[
    ("what_a_container_writes_and_deletes_is_in_its_snapshot", in_the_snapshot),
    ("a_stopped_container_that_is_started_again_sees_what_it_wrote", started_again),
    ("what_was_written_through_a_mapping_is_there_after_the_container", mapping),
];

pub(crate) const NERDCTL_CASES: &[Case] = &[
    ("a_root_is_a_file_system_like_any_other", operations),
    ("a_deleted_directory_that_is_made_again_is_empty", opaque),
    ("a_read_only_root_is_refused_writes_at_the_server", read_only),
    ("a_root_is_mounted_nowhere_in_the_hosts_sight", out_of_sight),
    ("without_its_fs_server_a_pod_ends_and_says_why", killed_server),
    ("nerdctl_commit_makes_an_image_of_what_a_container_wrote", commit),
    ("nerdctl_diff_shows_what_a_running_container_wrote", diff),
    ("nerdctl_cp_copies_into_a_running_container", copy_in),
    ("nerdctl_cp_copies_out_of_a_running_container", copy_out),
    ("a_program_with_file_capabilities_has_them", capabilities),
    ("a_large_image_starts_without_being_read", large_image),
];

/// A container that runs a script and then stays.
fn stay(engine: &Engine, script: &str) -> String {
    let name = id("root");
    let mut run = Run::sh(&name, "trap 'exit 143' TERM; sleep 1000 & wait");
    run.detach = true;
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}", output.stderr);
    if !script.is_empty() {
        sh(engine, &name, script);
    }
    name
}

/// What a script in a running container prints.
fn sh(engine: &Engine, name: &str, script: &str) -> String {
    let output = engine.exec(name, &["sh", "-c", script]);
    assert_eq!(output.code(), 0, "{script}: {}", output.stderr);
    output.text()
}

fn nerdctl(engine: &Engine, arguments: &[&str]) -> Output {
    let output = finish(&mut engine.nerdctl(arguments));
    assert_eq!(output.code(), 0, "{arguments:?}: {}", output.stderr);
    output
}

/// The root of a running container, as engines reach it.
fn root_of(engine: &Engine, name: &str) -> PathBuf {
    let pid = nerdctl(engine, &["inspect", "--format", "{{.State.Pid}}", name]).text();
    format!("/proc/{}/root", pid.trim()).into()
}

/// The id by which containerd knows a container.
fn full_id(engine: &Engine, name: &str) -> String {
    match engine.client() {
        Client::Ctr => name.to_owned(),
        Client::Nerdctl => {
            nerdctl(engine, &["inspect", "--format", "{{.ID}}", name]).text().trim().to_owned()
        }
    }
}

/// The fs server of a container's pod.
fn server_of(engine: &Engine, name: &str) -> i32 {
    let state = format!("/run/monohull/default/{}/state.json", full_id(engine, name));
    let state: serde_json::Value =
        serde_json::from_slice(&fs::read(state).expect("the pod's state")).expect("JSON");
    i32::try_from(state["fs_server"]["pid"].as_i64().expect("a pid")).expect("a pid")
}

fn in_the_snapshot(engine: &Engine) {
    let name = stay(engine, "mkdir /made; echo kept > /made/file; chown 7:8 /made/file; rm /bin/vi");
    let key = full_id(engine, &name);
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let layer = finish(&mut engine.ctr(&["snapshots", "diff", "--media-type", media_type, &key]));
    assert_eq!(layer.code(), 0, "{}", layer.stderr);
    let mut tar = std::process::Command::new("tar");
    tar.args(["--list", "--verbose", "--numeric-owner"]);
    let listed = monohull_tests::engine::finish_with_input(&mut tar, layer.stdout).text();
    let line = |name: &str| listed.lines().find(|line| line.ends_with(name)).map(str::to_owned);
    assert!(line("made/file").expect("the file").contains(" 7/8 "), "{listed}");
    assert!(line("bin/.wh.vi").is_some(), "{listed}");
    engine.remove(&name);
}

fn started_again(engine: &Engine) {
    let name = id("root");
    let script = "if [ -e /mark ]; then cat /mark; ls /bin/vi; else echo written > /mark; rm /bin/vi; fi";
    let mut run = Run::sh(&name, script);
    run.detach = true;
    assert_eq!(engine.run(&run).code(), 0);
    assert_eq!(engine.wait(&name), 0);
    let again = match engine.client() {
        Client::Ctr => {
            let _ = finish(&mut engine.ctr(&["task", "delete", &name]));
            finish(&mut engine.ctr(&["task", "start", &name]))
        }
        Client::Nerdctl => finish(&mut engine.nerdctl(&["start", "--attach", &name])),
    };
    assert_eq!(again.text(), "written\n", "{}", again.stderr);
    engine.remove(&name);
}

/// The pod ends with this container, and its guest is not asked to do anything for that.
fn mapping(engine: &Engine) {
    let root = engine.scratch().join(id("root"));
    for directory in ["bin", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    fs::copy(in_container(), root.join("bin/in-container")).expect("copied");
    let (name, path) = (id("mapping"), root.to_string_lossy());
    let command = ["run", "--rm", "--runtime", MONOHULL, "--rootfs", &path, &name];
    let output = finish(engine.ctr(&command).args(["/bin/in-container", "map", "/file", "word"]));
    assert_eq!(output.code(), 0, "{}", output.stderr);
    assert_eq!(fs::read_to_string(root.join("file")).expect("read"), "word");
}

fn operations(engine: &Engine) {
    let script = "
        mkdir /t && cd /t
        echo one > a && ln a b && echo two >> b && stat -c '%h' a && cat a
        mv b c && ls && rm a && cat c
        mkdir -p d/e && echo x > d/e/f && mv d g && cat g/e/f
        ln -s g/e/f l && cat l
        mkfifo p && (echo through > p & cat p)
        mknod n c 1 3 && echo lost > n && wc -c < n
        mkdir s && cp /bin/busybox s && chown 5:6 s/busybox && chmod 4755 s/busybox && stat -c '%u %g %a' s/busybox
        s/busybox echo executed
        echo x | su -s /bin/sh nobody -c 'cat > /t/denied' 2>/dev/null || echo denied
        mkdir many && cd many && for i in $(seq 300); do : > $i; done; ls | wc -l
        rm -r /t/many && ls /t | wc -l
        ln -s /t/socket /dev/log && syslogd -O /t/log && logger through a socket
        until grep -q -o 'through a socket' /t/log 2>/dev/null; do :; done; stat -c %F /t/socket
    ";
    let output = engine.run(&Run::sh(&id("root"), script));
    let expected =
        "2\none\ntwo\na\nc\none\ntwo\nx\nx\nthrough\n0\n5 6 4755\nexecuted\ndenied\n300\n6\nsocket\n";
    assert_eq!(output.text(), expected, "{}", output.stderr);
}

fn opaque(engine: &Engine) {
    let name = stay(engine, "ls -d /usr/bin && rm -r /usr && mkdir /usr && touch /usr/new");
    assert_eq!(sh(engine, &name, "ls /usr"), "new\n");
    sh(engine, &name, "mkdir /other && mv /other /usr/ && mv /usr /moved && ls /moved/other");
    assert_eq!(sh(engine, &name, "ls /moved; ls -d /usr 2>/dev/null || echo none"), "new\nother\nnone\n");
    engine.remove(&name);
}

fn read_only(engine: &Engine) {
    let name = id("root");
    let mut run = Run::new(&name, &["sleep", "1000"]);
    run.detach = true;
    run.read_only = true;
    assert_eq!(engine.run(&run).code(), 0);
    let refused = engine.exec(&name, &["touch", "/new"]);
    assert!(refused.stderr.contains("Read-only file system"), "{}", refused.stderr);
    // What the guest's kernel would be told, were it to ask: the server has the same mount.
    let root = root_of(engine, &name);
    assert!(root.join("bin/busybox").exists());
    let refused = fs::write(root.join("new"), "").expect_err("a write to a read-only root");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    engine.remove(&name);
}

fn out_of_sight(engine: &Engine) {
    let name = stay(engine, "echo x > /file");
    let key = full_id(engine, &name);
    let bundle = engine.bundles().join(&key).join("rootfs");
    assert_eq!(fs::read_dir(bundle).map_or(0, Iterator::count), 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains("/run/monohull/"), "{mounts}");
    assert_eq!(fs::read_to_string(root_of(engine, &name).join("file")).expect("the root"), "x\n");
    engine.remove(&name);
}

fn killed_server(engine: &Engine) {
    let name = stay(engine, "");
    kill(Pid::from_raw(server_of(engine, &name)), Signal::SIGKILL).expect("killed");
    assert_ne!(engine.wait(&name), 0);
    let refused = engine.exec(&name, &["true"]);
    assert_ne!(refused.code(), 0);
    let told = refused.stderr.contains("fs server") || engine.has_logged("fs server").expect("a watch");
    assert!(told, "{}\n{}", refused.stderr, engine.log());
    engine.remove(&name);
}

fn commit(engine: &Engine) {
    let name = stay(engine, "echo kept > /file; rm /bin/vi; mkdir /dir; chmod 700 /dir");
    nerdctl(engine, &["commit", &name, "committed:test"]);
    engine.remove(&name);
    let script = "cat /file; ls /bin/vi 2>/dev/null || echo gone; stat -c %a /dir";
    let run = ["run", "--rm", "--net", "none", "--runtime", monohull_tests::engine::MONOHULL];
    let output = nerdctl(engine, &[&run[..], &["committed:test", "sh", "-c", script]].concat());
    assert_eq!(output.text(), "kept\ngone\n700\n");
    nerdctl(engine, &["rmi", "--force", "committed:test"]);
}

fn diff(engine: &Engine) {
    let name = stay(engine, "echo made > /made; rm /bin/vi");
    let changes = nerdctl(engine, &["diff", &name]).text();
    for change in ["A /made", "D /bin/vi"] {
        assert!(changes.lines().any(|line| line == change), "no {change:?} in {changes}");
    }
    engine.remove(&name);
}

fn copy_in(engine: &Engine) {
    let name = stay(engine, "echo old > /old; ls / > /dev/null");
    let file = engine.scratch().join(id("copied"));
    fs::write(&file, "from the host").expect("written");
    let source = file.display().to_string();
    nerdctl(engine, &["cp", &source, &format!("{name}:/new")]);
    assert_eq!(sh(engine, &name, "cat /new"), "from the host", "a new name is seen at once");
    nerdctl(engine, &["cp", &source, &format!("{name}:/old")]);
    // As long as the guest may believe what it knows (docs/decisions/0001-directory-roots.md).
    assert_eq!(
        sh(engine, &name, "sleep 1; cat /old; rm /old; ls /old 2>/dev/null || echo gone"),
        "from the hostgone\n"
    );
    engine.remove(&name);
}

fn copy_out(engine: &Engine) {
    let name =
        stay(engine, "mkdir -p /made/in; echo content > /made/in/file; ln -s /etc/hostname /made/link");
    let target = engine.scratch().join(id("copied"));
    nerdctl(engine, &["cp", &format!("{name}:/made"), &target.display().to_string()]);
    assert_eq!(fs::read_to_string(target.join("in/file")).expect("copied"), "content\n");
    assert_eq!(fs::read_link(target.join("link")).expect("a link"), PathBuf::from("/etc/hostname"));
    engine.remove(&name);
}

/// `struct vfs_cap_data` (capabilities(7)) of revision 2 with the effective flag: CAP_CHOWN permitted.
const CAP_CHOWN: [u8; 20] = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn capabilities(engine: &Engine) {
    let name = stay(engine, "mkdir /plain /able; cp /bin/busybox /plain; cp /bin/busybox /able; touch /file");
    let able = root_of(engine, &name).join("able/busybox");
    let set = rustix::fs::setxattr(&able, "security.capability", &CAP_CHOWN, rustix::fs::XattrFlags::empty());
    set.expect("the capability is set");
    let chown = |program| engine.exec_as(&name, "1000:1000", &[program, "chown", "4:5", "/file"]);
    assert_ne!(chown("/plain/busybox").code(), 0);
    let output = chown("/able/busybox");
    assert_eq!(output.code(), 0, "{}", output.stderr);
    assert_eq!(sh(engine, &name, "stat -c '%u %g' /file"), "4 5\n");
    // A write takes it away.
    sh(engine, &name, "echo >> /able/busybox");
    let mut none = [0_u8; 32];
    assert!(rustix::fs::getxattr(&able, "security.capability", &mut none).is_err());
    engine.remove(&name);
}

fn large_image(engine: &Engine) {
    const MIB: u64 = 48;
    let name = stay(engine, &format!("dd if=/dev/urandom of=/large bs=1M count={MIB} 2>/dev/null"));
    nerdctl(engine, &["commit", &name, "large:test"]);
    engine.remove(&name);
    let name = id("root");
    let run = ["run", "--detach", "--net", "none", "--runtime", monohull_tests::engine::MONOHULL];
    nerdctl(engine, &[&run[..], &["--name", &name, "large:test", "sleep", "1000"]].concat());
    let io = fs::read_to_string(format!("/proc/{}/io", server_of(engine, &name))).expect("counters");
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse::<u64>().ok()).expect("rchar");
    assert!(read < MIB << 17, "{read} bytes were read for a start");
    assert_eq!(sh(engine, &name, "wc -c < /large").trim(), (MIB << 20).to_string());
    engine.remove(&name);
    nerdctl(engine, &["rmi", "--force", "large:test"]);
}
