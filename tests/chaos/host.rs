//! What all rounds have in common: containerd, the file systems that can be filled, the pod's cgroup and network, and what was
//! there before the first round.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use monohull_tests::engine::{Client, Engine, IMAGE, MONOHULL, Output, finish, unique};
use monohull_tests::leaks::Census;
use monohull_tests::network::{Namespace, ip};
use monohull_tests::templates;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

use crate::events::Events;
use crate::plan::Root;

/// Where pods have their state; of a size that the templates fit in.
pub(crate) const STATE: &str = "/run/monohull";
const STATE_SIZE: &str = "size=1g";
/// containerd's bundles are small.
const BUNDLES_SIZE: &str = "size=16m";
/// Parent of the pods' cgroups.
pub(crate) const CGROUP: &str = "/sys/fs/cgroup/chaos";
/// Where containers' output goes, and a directory that they share.
pub(crate) const LOGS: &str = "/run/chaos/logs";
const VOLUME: &str = "/run/chaos/volume";
/// The network namespace of the pods, and the host's end of its one interface.
const NETWORK: &str = "chaos";
const HOST_END: &str = "chaos0";
/// How long may be left what goes by itself.
const SETTLING: Duration = Duration::from_secs(20);

/// The fixture.
pub(crate) struct Host {
    pub(crate) engine: Engine,
    pub(crate) events: Events,
    network: Network,
    before: Census,
    /// How much of containerd's log was there before the round.
    logged: usize,
    /// Whether it has been started again since.
    restarted: bool,
}

/// Makes what outlives a containerd: directories, the pods' file system, the cgroup, and templates.
pub(crate) fn prepare() -> io::Result<()> {
    for directory in [STATE, LOGS, VOLUME, CGROUP] {
        fs::create_dir_all(directory)?;
    }
    mount_tmpfs(Path::new(STATE), STATE_SIZE)?;
    templates::make()
}

impl Host {
    /// Starts containerd, and a pod of each kind, so that nothing which is there once and for all looks like a leak.
    pub(crate) fn start() -> io::Result<Self> {
        let engine = Engine::start_with(Client::Nerdctl, |scratch| {
            let state = scratch.join("state");
            fs::create_dir(&state)?;
            mount_tmpfs(&state, BUNDLES_SIZE)?;
            Ok(String::new())
        })?;
        let events = Events::subscribe(&engine)?;
        let network = Network::new();
        let mut host =
            Self { engine, events, network, before: Census::default(), logged: 0, restarted: false };
        for root in [Root::Directory, Root::Extents] {
            let output = host.pod_that_ends(root);
            if output.code() != 0 {
                return Err(io::Error::other(format!(
                    "no pod starts: {}{}",
                    output.stderr,
                    host.engine.log()
                )));
            }
        }
        host.begin_round();
        host.before = Census::take_with_engine(&host.engine.bundles(), host.engine.pid());
        Ok(host)
    }

    /// What is left of a round after some time, in the pods' network too.
    pub(crate) fn left(&self) -> io::Result<Vec<String>> {
        let left = Census::settle(&self.before, &self.engine.bundles(), self.engine.pid(), SETTLING)?;
        Ok(left.into_iter().chain(self.network.left()).collect())
    }

    /// Forgets what rounds before have said.
    pub(crate) fn begin_round(&mut self) {
        self.events.forget();
        (self.logged, self.restarted) = (self.engine.log().len(), false);
    }

    /// What containerd and shims have logged in this round.
    pub(crate) fn log(&self) -> String {
        let (before, now) = (self.engine.log_before(), self.engine.log());
        let new = |log: &str| log.get(self.logged..).unwrap_or_default().to_owned();
        if self.restarted { new(&before) + &now } else { new(&now) }
    }

    /// Why the VM of pod `id` has ended by itself, as its shim has logged it in this round.
    pub(crate) fn end_of(&self, id: &str) -> Option<String> {
        let (log, pod) = (self.log(), format!("pod={id}"));
        let line =
            log.lines().find(|line| line.contains("VM has ended by itself") && line.ends_with(&pod))?;
        Some(line.split_once("reason=\"")?.1.split_once('"')?.0.to_owned())
    }

    /// Kills containerd, and starts it again after `pause`.
    pub(crate) fn restart_containerd(&mut self, pause: Duration) -> io::Result<()> {
        self.engine.crash()?;
        // How long it is away is the fault's parameter.
        std::thread::sleep(pause);
        self.engine.come_back()?;
        self.restarted = true;
        let before = self.events.text().to_owned();
        self.events = Events::subscribe(&self.engine)?;
        self.events.recall(&before);
        Ok(())
    }

    /// A pod from start to end, with nothing going wrong.
    pub(crate) fn pod_that_ends(&self, root: Root) -> Output {
        let id = format!("next-{}", unique());
        let mut ctr = self.engine.ctr(&["run", "--rm", "--runtime", MONOHULL]);
        ctr.args(options(&id, root)).args([IMAGE, &id, "echo", "hello"]);
        finish(&mut ctr)
    }

    /// The command that runs a round's container. It prints a word, and its exit code after SIGTERM is 7.
    pub(crate) fn run_command(&self, id: &str, root: Root) -> Command {
        let log = format!("file://{}", log_of(id).display());
        let mut ctr = self.engine.ctr(&["run", "--detach", "--runtime", MONOHULL, "--log-uri", &log]);
        let script = "trap 'exit 7' TERM; echo up; sleep 1000 & wait";
        ctr.args(options(id, root)).args([IMAGE, id, "sh", "-c", script]);
        ctr
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The engine removes its directory, which must not be in use.
        let _ = umount2(&self.engine.scratch().join("state"), MntFlags::MNT_DETACH);
    }
}

/// Where the output of a container goes.
pub(crate) fn log_of(id: &str) -> PathBuf {
    Path::new(LOGS).join(id)
}

fn options(id: &str, root: Root) -> Vec<String> {
    let snapshotter = match root {
        Root::Directory => "overlayfs",
        Root::Extents => "erofs",
    };
    let volume = format!("type=bind,src={VOLUME},dst=/volume,options=rbind:rw");
    let namespace = format!("network:/run/netns/{NETWORK}");
    let cgroup = format!("/{}/{id}", Path::new(CGROUP).file_name().unwrap_or_default().display());
    let options =
        ["--snapshotter", snapshotter, "--mount", &volume, "--with-ns", &namespace, "--cgroup", &cgroup];
    options.map(str::to_owned).to_vec()
}

/// The pods' network: one for all, which each has to leave as it was. Dropping it removes it.
struct Network {
    _namespace: Namespace,
}

impl Network {
    /// A namespace with one interface.
    fn new() -> Self {
        let namespace = Namespace::new(NETWORK);
        ip(&format!("link add {HOST_END} type veth peer name eth0 netns {NETWORK}"));
        ip(&format!("link set {HOST_END} up"));
        ip(&format!("-n {NETWORK} addr add 10.88.0.2/24 dev eth0"));
        ip(&format!("-n {NETWORK} link set eth0 up"));
        Self { _namespace: namespace }
    }

    /// What a pod has left in it: taps, and redirections.
    fn left(&self) -> Vec<String> {
        let links = finish(Command::new("ip").args(["-n", NETWORK, "-o", "link"])).text();
        let filters =
            finish(Command::new("tc").args(["-n", NETWORK, "filter", "show", "dev", "eth0", "ingress"]));
        let ours = |line: &&str| !line.contains(": lo:") && !line.contains(": eth0@");
        let links = links.lines().filter(ours).map(|line| format!("link {line}"));
        links.chain(filters.text().lines().map(|line| format!("filter {line}"))).collect()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // With the namespace it would go later, in the kernel's own time.
        ip(&format!("link del {HOST_END}"));
    }
}

fn mount_tmpfs(path: &Path, options: &str) -> io::Result<()> {
    Ok(mount(Some("chaos"), path, Some("tmpfs"), MsFlags::empty(), Some(options))?)
}

/// Leaves a tmpfs no room beyond what is in it, without filling memory. Room that is taken meanwhile is taken into account.
pub(crate) fn fill(path: &Path) -> io::Result<()> {
    let remount = |size: u64| {
        mount(None::<&str>, path, None::<&str>, MsFlags::MS_REMOUNT, Some(format!("size={size}").as_str()))
    };
    let mut last = Ok(());
    for _ in 0..10 {
        let now = statvfs(path)?;
        last = remount((now.blocks() - now.blocks_free()).max(1) * now.fragment_size());
        if last.is_ok() {
            return Ok(());
        }
    }
    Ok(last?)
}

/// Gives the tmpfs that [`fill`] has filled its room back.
pub(crate) fn make_room(path: &Path) -> io::Result<()> {
    let size = if path == Path::new(STATE) { STATE_SIZE } else { BUNDLES_SIZE };
    Ok(mount(None::<&str>, path, None::<&str>, MsFlags::MS_REMOUNT, Some(size))?)
}
