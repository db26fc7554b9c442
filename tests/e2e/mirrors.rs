//! Volumes that the host changes by one rename, as the kubelet does with configMaps, secrets and projected volumes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use monohull_tests::engine::{Engine, Run, in_container};
use monohull_tests::leaks::Census;

use crate::Case;
use crate::containers::id;
use crate::leaks::assert_nothing_beyond;
use crate::volumes::{directory, volume};

pub(crate) const CASES: &[Case] = &[
    ("inotify_tells_of_a_projected_volumes_update_within_100_ms", told),
    ("a_projected_volume_has_the_hosts_owners_modes_and_times_and_is_read_only", attributes),
    ("a_watched_file_of_a_projected_volume_is_deleted_by_the_update", file),
    ("a_large_directory_of_the_same_kind_is_live_without_inotify", large),
    ("a_projected_volume_leaves_nothing", leftovers),
];

/// A volume as the kubelet's atomic writer keeps it.
struct Projected {
    path: PathBuf,
    version: u32,
}

impl Projected {
    fn new(engine: &Engine, content: &str) -> Self {
        let mut projected = Self { path: directory(engine), version: 0 };
        projected.write(content);
        symlink("..data/key", projected.path.join("key")).expect("a link");
        projected
    }

    fn data(&self) -> PathBuf {
        self.path.join(format!("..{}", self.version))
    }

    /// A new version; the old one goes. Returns when the rename was made.
    fn write(&mut self, content: &str) -> Instant {
        let old = self.data();
        self.version += 1;
        fs::create_dir(self.data()).expect("a directory");
        fs::write(self.data().join("key"), content).expect("written");
        symlink(format!("..{}", self.version), self.path.join("..data_tmp")).expect("a link");
        fs::rename(self.path.join("..data_tmp"), self.path.join("..data")).expect("renamed");
        let renamed = Instant::now();
        if self.version > 1 {
            fs::remove_dir_all(old).expect("removed");
        }
        renamed
    }
}

/// A container that watches `path`, line by line.
struct Watcher<'a> {
    engine: &'a Engine,
    name: String,
    client: Child,
    lines: BufReader<ChildStdout>,
}

impl<'a> Watcher<'a> {
    fn start(engine: &'a Engine, source: &Path, paths: &[&str]) -> Self {
        let name = id("watch");
        let mut run = Run::new(&name, &[&["/bin/in-container", "watch"], paths].concat());
        run.extra = volume(engine, source, "/mnt", true).into();
        run.extra.extend(volume(engine, Path::new(&in_container()), "/bin/in-container", true));
        let mut command = engine.run_command(&run);
        let mut client =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the client starts");
        let lines = BufReader::new(client.stdout.take().expect("piped"));
        let mut watcher = Self { engine, name, client, lines };
        watcher.until("ready");
        watcher
    }

    /// Reads up to a line; returns those before it.
    fn until(&mut self, line: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let mut text = String::new();
            let read = self.lines.read_line(&mut text).expect("output");
            assert!(read > 0, "the output ends before {line:?}: {before:?} {}", self.engine.log());
            if text.trim_end() == line {
                return before;
            }
            before.push(text.trim_end().to_owned());
        }
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        let _ = self.engine.kill(&self.name, "KILL");
        let _ = self.client.wait();
        self.engine.remove(&self.name);
    }
}

/// From the host's rename to the line that a program in the container prints about it, as the host sees it.
fn told(engine: &Engine) {
    let mut projected = Projected::new(engine, "one");
    let mut watcher = Watcher::start(engine, &projected.path, &["/mnt"]);
    let mut times = Vec::new();
    for number in 0..10 {
        let content = format!("content {number}");
        let renamed = projected.write(&content);
        let before = watcher.until("moved-to ..data");
        times.push(renamed.elapsed());
        assert!(before.iter().any(|line| line == &format!("create ..{}", projected.version)), "{before:?}");
        let output = engine.exec(&watcher.name, &["cat", "/mnt/key"]);
        assert_eq!(output.text(), content, "{}", output.stderr);
        watcher.until(&format!("delete ..{}", projected.version - 1));
    }
    times.sort();
    println!("from the host's rename to inotify in the guest: median {:?}, longest {:?}", times[5], times[9]);
    // The longest is also the emulated machine's.
    assert!(times[5] < Duration::from_millis(100), "{times:?}");
}

fn attributes(engine: &Engine) {
    let projected = Projected::new(engine, "one");
    let key = projected.data().join("key");
    chown(&key, Some(1000), Some(2000)).expect("chown");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o440)).expect("chmod");
    chown(&projected.path, Some(0), Some(2000)).expect("chown");
    fs::set_permissions(&projected.path, fs::Permissions::from_mode(0o3777)).expect("chmod");
    let script = "cat /mnt/key; echo; stat -L -c '%u %g %a' /mnt/key /mnt; readlink /mnt/key; stat -L -c %Y /mnt/key; \
                  echo x > /mnt/key; touch /mnt/new; rm /mnt/key; mv /mnt/..data /mnt/x";
    let mut run = Run::sh(&id("attributes"), script);
    run.extra = volume(engine, &projected.path, "/mnt", true).into();
    let output = engine.run(&run);
    let modified = key.metadata().and_then(|metadata| metadata.modified()).expect("stat");
    let seconds = modified.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    assert_eq!(output.text(), format!("one\n1000 2000 440\n0 2000 3777\n..data/key\n{seconds}\n"));
    assert_eq!(output.stderr.matches("Read-only file system").count(), 4, "{}", output.stderr);
}

/// For programs that watch the file itself: it is another one after the update.
fn file(engine: &Engine) {
    let mut projected = Projected::new(engine, "one");
    let mut watcher = Watcher::start(engine, &projected.path, &["/mnt/key"]);
    // As large as the kubelet lets one be.
    projected.write(&"x".repeat(1 << 20));
    watcher.until("delete-self /mnt/key");
    let output = engine.exec(&watcher.name, &["wc", "-c", "/mnt/key"]);
    assert_eq!(output.text(), "1048576 /mnt/key\n", "{}", output.stderr);
}

/// Too large for a message to the guest: then it goes through the fs server.
fn large(engine: &Engine) {
    let mut projected = Projected::new(engine, "one");
    fs::write(projected.data().join("large"), vec![0; 3 << 20]).expect("written");
    let name = id("large");
    let mut run = Run::sh(&name, "trap 'exit 143' TERM; sleep 1000 & wait");
    run.extra = volume(engine, &projected.path, "/mnt", true).into();
    run.detach = true;
    assert_eq!(engine.run(&run).code(), 0, "{}", engine.log());
    projected.write("two");
    let output = engine.exec(&name, &["sh", "-c", "cat /mnt/key; grep -c '/mnt virtiofs' /proc/mounts"]);
    assert_eq!(output.text(), "two1\n", "{}", output.stderr);
    engine.remove(&name);
}

fn leftovers(engine: &Engine) {
    engine.run(&Run::new(&id("warm-up"), &["true"]));
    let before = Census::take(&engine.bundles());
    let projected = Projected::new(engine, "one");
    drop(Watcher::start(engine, &projected.path, &["/mnt"]));
    assert_nothing_beyond(engine, &before);
    fs::remove_dir_all(&projected.path).expect("nothing keeps it");
}
