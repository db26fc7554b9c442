//! A container engine under test: a containerd of its own with one of its clients.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::cri;
pub use crate::output::{Output, finish, finish_with_input};
use crate::watch::Watch;

/// The runtime under test.
pub const MONOHULL: &str = "io.containerd.monohull.v2";
/// The runtime to compare with.
pub const RUNC: &str = "io.containerd.runc.v2";
/// The image that every engine has.
pub const IMAGE: &str = "docker.io/library/busybox:test";

/// Within this the log says what has happened.
const LOG_LIMIT: Duration = Duration::from_secs(10);

/// Variable with the release of containerd, as in "1.7", that the tests of [`Client::Ctr`] run with; `make matrix` sets it.
pub const RELEASE: &str = "MONOHULL_CONTAINERD";

/// The release that [`RELEASE`] names.
pub fn release() -> Option<String> {
    std::env::var(RELEASE).ok()
}

/// The client that speaks to a containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// Debian's containerd 1.6 with `ctr`, or both of the release that [`RELEASE`] names.
    Ctr,
    /// containerd 2.3 with `nerdctl`.
    Nerdctl,
}

impl Client {
    /// Short name, as in test names.
    pub fn name(self) -> String {
        match self {
            Self::Ctr => format!("containerd-{}+ctr", release().unwrap_or("1.6".into())),
            Self::Nerdctl => "containerd-2.3+nerdctl".into(),
        }
    }

    /// Directory of the daemon's and the client's binaries.
    fn binaries(self) -> PathBuf {
        match self {
            Self::Ctr => {
                release().map_or("/usr/bin".into(), |name| Path::new("/opt/tools/matrix").join(name))
            }
            Self::Nerdctl => {
                std::env::var_os("MONOHULL_TOOLS").map_or("/opt/tools/bin".into(), PathBuf::from)
            }
        }
    }
}

/// A running containerd. Dropping it ends it and removes its files.
#[derive(Debug)]
pub struct Engine {
    client: Client,
    daemon: Child,
    dir: TempDir,
}

/// A container to run: the options every client has, in one spelling.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Container id or name.
    pub id: String,
    /// Return as soon as it has started.
    pub detach: bool,
    /// Allocate a terminal.
    pub tty: bool,
    /// Keep standard input.
    pub stdin: bool,
    /// Mount the root read-only.
    pub read_only: bool,
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// `UID[:GID]`.
    pub user: Option<String>,
    /// Memory limit in MiB.
    pub memory_mib: Option<u32>,
    /// `KEY=VALUE` annotations.
    pub annotations: Vec<String>,
    /// Further options in the client's own spelling.
    pub extra: Vec<String>,
    /// Runtime; empty means [`MONOHULL`].
    pub runtime: String,
    /// The command.
    pub command: Vec<String>,
}

impl Run {
    /// A container that runs `command`.
    pub fn new(id: &str, command: &[&str]) -> Self {
        Self { id: id.into(), command: command.iter().map(|&word| word.into()).collect(), ..Self::default() }
    }

    /// A container that runs a shell script.
    pub fn sh(id: &str, script: &str) -> Self {
        Self::new(id, &["sh", "-c", script])
    }
}

impl Engine {
    /// Starts a containerd without a CRI and gives it the test image ([`image`]).
    pub fn start(client: Client) -> io::Result<Self> {
        Self::start_with(client, |_| Ok(String::new()))
    }

    /// [`Self::start`] with more in its configuration (TOML), which `configure` makes, given [`Self::scratch`]. Programs
    /// that it puts into `bin` there are the first that containerd finds.
    pub fn start_with(
        client: Client,
        configure: impl FnOnce(&Path) -> io::Result<String>,
    ) -> io::Result<Self> {
        let without_cri = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\"]\n";
        Self::launch(client, without_cri, configure)
    }

    /// Starts a containerd 2.3 with a CRI. Its runtime handlers are `runc`, `monohull` as in `deploy/`, and
    /// `monohull-sandbox`, which makes sandboxes without pause containers.
    pub fn start_cri() -> io::Result<Self> {
        let cri =
            Self::launch(Client::Nerdctl, "version = 3\n", |_| Ok(include_str!("cri.toml").to_owned()))?;
        cri::import_images(&cri)?;
        Ok(cri)
    }

    /// `head` and what `tail` makes are the parts of the configuration that precede its tables, and tables.
    fn launch(
        client: Client,
        head: &str,
        tail: impl FnOnce(&Path) -> io::Result<String>,
    ) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("monohull-e2e-").tempdir_in("/run")?;
        let mut text = head.to_owned();
        let _ = write!(
            text,
            "root = \"{root}/root\"\nstate = \"{root}/state\"\n[grpc]\naddress = \"{root}/sock\"\n\
             [ttrpc]\naddress = \"{root}/sock.ttrpc\"\n",
            root = dir.path().display()
        );
        fs::create_dir(dir.path().join("bin"))?;
        text.push_str(&tail(dir.path())?);
        fs::write(dir.path().join("config.toml"), text)?;
        let daemon = spawn_daemon(client, dir.path())?;
        let engine = Self { client, daemon, dir };
        engine.wait_until_ready()?;
        let imported = engine.ctr(&["image", "import", &image()]).output()?;
        if !imported.status.success() {
            let words = String::from_utf8_lossy(&imported.stderr);
            return Err(io::Error::other(format!("cannot import the test image: {words}{}", engine.log())));
        }
        Ok(engine)
    }

    /// Kills containerd, as a crash would; shims and their pods go on.
    pub fn crash(&mut self) -> io::Result<()> {
        self.daemon.kill()?;
        self.daemon.wait().map(drop)
    }

    /// Starts a crashed containerd again, with all that it had. Its log begins anew; the one before stays beside it.
    pub fn come_back(&mut self) -> io::Result<()> {
        fs::rename(self.dir.path().join("log"), self.dir.path().join("log.before"))?;
        self.daemon = spawn_daemon(self.client, self.dir.path())?;
        self.wait_until_ready()
    }

    /// Its client.
    pub fn client(&self) -> Client {
        self.client
    }

    /// containerd's own log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Whether its log says `text`, or comes to say it soon: a shim's lines reach it by a pipe, events and answers by other
    /// ways.
    pub fn has_logged(&self, text: &str) -> io::Result<bool> {
        let watch = Watch::new(vec![self.dir.path().into()])?;
        watch.until(Instant::now() + LOG_LIMIT, &[], || self.log().contains(text))
    }

    /// The log of the daemon that was there before the last [`Self::come_back`].
    pub fn log_before(&self) -> String {
        fs::read_to_string(self.dir.path().join("log.before")).unwrap_or_default()
    }

    /// Pid of the daemon.
    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// `ctr` of this containerd, in the namespace the engine's client uses.
    pub fn ctr(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.client.binaries().join("ctr"));
        command.arg("--address").arg(self.socket()).args(["--namespace", "default"]).args(args);
        command.env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// `crictl` of this containerd.
    pub fn crictl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.client.binaries().join("crictl"));
        command.arg("--runtime-endpoint").arg(format!("unix://{}", self.socket().display()));
        // Its own limit of 2 s for a call is too short for an emulated machine, and cancels what containerd was doing.
        command.arg("--timeout").arg("300s").args(args);
        command
    }

    /// `nerdctl` of this containerd.
    pub fn nerdctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.client.binaries().join("nerdctl"));
        command.arg("--address").arg(self.socket()).arg("--data-root").arg(self.dir.path().join("nerdctl"));
        command.args(args);
        command
    }

    /// The command that runs a container in the foreground, or starts it when [`Run::detach`] is set.
    pub fn run_command(&self, run: &Run) -> Command {
        match self.client {
            Client::Ctr => self.ctr_run(run),
            Client::Nerdctl => self.nerdctl_run(run),
        }
    }

    /// Runs a container to its end, with empty standard input.
    pub fn run(&self, run: &Run) -> Output {
        finish(self.run_command(run).stdin(Stdio::null()))
    }

    /// Runs a container with `input` as its standard input.
    pub fn run_with_input(&self, run: &Run, input: Vec<u8>) -> Output {
        let run = Run { stdin: true, ..run.clone() };
        finish_with_input(&mut self.run_command(&run), input)
    }

    /// Runs a container in the foreground of a terminal of its own (`script(1)`).
    pub fn run_in_terminal(&self, run: &Run, input: &str) -> Output {
        let run = Run { tty: true, stdin: true, ..run.clone() };
        let command = self.run_command(&run);
        let mut line = quote(&command.get_program().to_string_lossy());
        for arg in command.get_args() {
            line.push(' ');
            line.push_str(&quote(&arg.to_string_lossy()));
        }
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        finish_with_input(&mut script, input.as_bytes().to_vec())
    }

    /// A command in a running container.
    pub fn exec(&self, id: &str, command: &[&str]) -> Output {
        finish(self.exec_command(id, command).stdin(Stdio::null()))
    }

    /// A command in a running container, as another user (`UID:GID`).
    pub fn exec_as(&self, id: &str, user: &str, command: &[&str]) -> Output {
        let exec_id = format!("exec-{}", unique());
        let mut client = match self.client {
            Client::Ctr => self.ctr(&["task", "exec", "--exec-id", &exec_id, "--user", user, id]),
            Client::Nerdctl => self.nerdctl(&["exec", "--user", user, id]),
        };
        finish(client.args(command))
    }

    /// The command that executes `command` in a running container.
    pub fn exec_command(&self, id: &str, command: &[&str]) -> Command {
        match self.client {
            Client::Ctr => {
                let exec_id = format!("exec-{}", unique());
                let mut ctr = self.ctr(&["task", "exec", "--exec-id", &exec_id, id]);
                ctr.args(command);
                ctr
            }
            Client::Nerdctl => {
                let mut nerdctl = self.nerdctl(&["exec", id]);
                nerdctl.args(command);
                nerdctl
            }
        }
    }

    /// Sends a signal to a container's init process.
    pub fn kill(&self, id: &str, signal: &str) -> Output {
        match self.client {
            Client::Ctr => finish(&mut self.ctr(&["task", "kill", "--signal", signal, id])),
            Client::Nerdctl => finish(&mut self.nerdctl(&["kill", "--signal", signal, id])),
        }
    }

    /// Waits for a detached container's end and returns its exit code.
    pub fn wait(&self, id: &str) -> i32 {
        match self.client {
            Client::Ctr => finish(&mut self.ctr(&["task", "attach", id])).code(),
            Client::Nerdctl => finish(&mut self.nerdctl(&["wait", id])).text().trim().parse().unwrap_or(-1),
        }
    }

    /// Kills and removes a container, whatever its state.
    pub fn remove(&self, id: &str) -> Output {
        match self.client {
            Client::Ctr => {
                let _ = finish(&mut self.ctr(&["task", "delete", "--force", id]));
                finish(&mut self.ctr(&["container", "delete", id]))
            }
            Client::Nerdctl => finish(&mut self.nerdctl(&["rm", "--force", id])),
        }
    }

    /// Installs a runtime `io.containerd.<name>.v2` whose shim is the real one, started by `script` ("$@" are its
    /// arguments, `$SHIM` its path).
    pub fn install_shim(&self, name: &str, script: &str) -> io::Result<String> {
        let path = self.dir.path().join("bin").join(format!("containerd-shim-{name}-v2"));
        let shim = "/usr/local/bin/containerd-shim-monohull-v2";
        fs::write(&path, format!("#!/bin/sh\nSHIM={shim}\n{script}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(format!("io.containerd.{name}.v2"))
    }

    /// [`Self::install_shim`] for one whose pods are made with these settings (TOML).
    pub fn install_settings(&self, name: &str, settings: &str) -> io::Result<String> {
        let file = self.dir.path().join(format!("{name}.toml"));
        fs::write(&file, settings)?;
        self.install_shim(name, &format!("export MONOHULL_CONFIG={}; exec $SHIM \"$@\"", file.display()))
    }

    /// Where containerd keeps the bundles of the client's namespace.
    pub fn bundles(&self) -> PathBuf {
        self.dir.path().join("state/io.containerd.runtime.v2.task/default")
    }

    /// A directory for a test's own files, removed with the engine.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// containerd prints "containerd successfully booted" when it serves.
    fn wait_until_ready(&self) -> io::Result<()> {
        let mut tail = Command::new("tail")
            .args(["--lines=+1", "--follow", "--pid", &self.pid().to_string()])
            .arg(self.dir.path().join("log"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = tail.stdout.take().ok_or_else(|| io::Error::other("tail has no stdout"))?;
        let ready = BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains("successfully booted"));
        let _ = tail.kill();
        tail.wait()?;
        if ready {
            Ok(())
        } else {
            Err(io::Error::other(format!("containerd did not start:\n{}", self.log())))
        }
    }

    fn ctr_run(&self, run: &Run) -> Command {
        let mut command = self.ctr(&["run", "--runtime", runtime(run)]);
        // `ctr run --rm` removes after the end; a detached container is the test's to remove.
        command.args(if run.detach { &["--detach"][..] } else { &["--rm"] });
        flag(&mut command, run.tty, "--tty");
        flag(&mut command, run.read_only, "--read-only");
        option(&mut command, "--env", &run.env);
        option(&mut command, "--cwd", run.cwd.as_slice());
        option(&mut command, "--user", run.user.as_slice());
        option(&mut command, "--annotation", &run.annotations);
        if let Some(mib) = run.memory_mib {
            command.args(["--memory-limit", &(u64::from(mib) << 20).to_string()]);
        }
        command.args(&run.extra).arg(IMAGE).arg(&run.id).args(&run.command);
        command
    }

    fn nerdctl_run(&self, run: &Run) -> Command {
        let mut command =
            self.nerdctl(&["run", "--pull", "never", "--runtime", runtime(run), "--name", &run.id]);
        if !run.extra.iter().any(|word| word.starts_with("--net")) {
            command.args(["--net", "none"]);
        }
        command.args(if run.detach { &["--detach"][..] } else { &["--rm"] });
        flag(&mut command, run.tty, "--tty");
        flag(&mut command, run.stdin, "--interactive");
        flag(&mut command, run.read_only, "--read-only");
        option(&mut command, "--env", &run.env);
        option(&mut command, "--workdir", run.cwd.as_slice());
        option(&mut command, "--user", run.user.as_slice());
        option(&mut command, "--annotation", &run.annotations);
        if let Some(mib) = run.memory_mib {
            command.args(["--memory", &format!("{mib}m")]);
        }
        command.args(&run.extra).arg(IMAGE).args(&run.command);
        command
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.daemon.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.daemon.wait();
    }
}

/// Starts the containerd whose files are in `dir`, with a log of its own.
fn spawn_daemon(client: Client, dir: &Path) -> io::Result<Child> {
    let log = fs::File::create(dir.join("log"))?;
    let path = format!(
        "{}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        dir.join("bin").display(),
        client.binaries().display()
    );
    Command::new(client.binaries().join("containerd"))
        .arg("--config")
        .arg(dir.join("config.toml"))
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
}

/// The test image, a docker archive: `MONOHULL_TEST_IMAGE`, or where the test host has it.
pub fn image() -> String {
    std::env::var("MONOHULL_TEST_IMAGE").unwrap_or(in_tests("busybox.tar"))
}

/// The program that does in containers what busybox can't (`src/bin/in-container.rs`): `MONOHULL_IN_CONTAINER`, or where
/// the test host has it.
pub fn in_container() -> String {
    std::env::var("MONOHULL_IN_CONTAINER").unwrap_or(in_tests("in-container"))
}

/// A file that `make build-tests` made, where the test host has it.
pub(crate) fn in_tests(name: &str) -> String {
    format!("/opt/tests/{name}")
}

/// A number that no other call in this process returns.
pub fn unique() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn runtime(run: &Run) -> &str {
    if run.runtime.is_empty() { MONOHULL } else { &run.runtime }
}

fn flag(command: &mut Command, wanted: bool, name: &str) {
    if wanted {
        command.arg(name);
    }
}

fn option(command: &mut Command, name: &str, values: &[String]) {
    for value in values {
        command.args([name, value]);
    }
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
