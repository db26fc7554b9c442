//! `start`: containerd's question for a pod's shim, in the dialects of its releases, and the answer.
//!
//! Up to 2.2, and in CRI-O, the parameters are flags and environment, and standard input is empty or holds the
//! runtime's options. From 2.3 on standard input is a `BootstrapParams`. Each gets the answer it can read.

use std::env;
use std::fs;
use std::io::{self, IsTerminal, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, LogLevel};
use monohull_runtime::cgroup::{self, Cgroup};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::address;
use crate::args::Args;
use crate::birth;
use crate::bundle::{self, BundleError};
use crate::options;
use crate::template;

/// containerd's address for events, in the environment of every shim.
pub(crate) const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";
/// Names the settings file of a process ([`monohull_runtime::settings::Settings::load`]).
pub(crate) const SETTINGS: &str = "MONOHULL_CONFIG";
/// The cgroup of the process that has started the server, in the server's environment if it was born in the pod's.
pub(crate) const STARTED_FROM: &str = "MONOHULL_STARTED_FROM";
/// The task API that a `BootstrapResult` announces.
const TASK_API: i32 = 3;
/// More than any options that containerd sends.
const STDIN_LIMIT: u64 = 1 << 20;

/// Why no shim could be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The bundle can't be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A system call on the way failed.
    #[error("cannot {0}")]
    Io(String, #[source] io::Error),
    /// The annotations name a pod that has no shim.
    #[error("container {container} belongs to pod {pod}, which has no running shim")]
    NoPod {
        /// The container.
        container: String,
        /// The pod that its annotations name.
        pod: String,
    },
}

impl StartError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io(what.into(), source)
    }
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// A bare address, understood by everything and taken for task API 2.
    Legacy,
    /// A protobuf `BootstrapResult`.
    Bootstrap,
}

/// What containerd asks, whichever way it says so.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    dialect: Dialect,
    /// Where events go; empty with CRI-O.
    ttrpc_address: String,
    grpc_address: String,
    socket_dir: PathBuf,
    debug: bool,
    /// The runtime options' settings file: those of a sandbox do not come again with its creation.
    settings: Option<String>,
}

impl Request {
    /// `stdin` counts as `BootstrapParams` only if it repeats the flags: options of an older containerd may happen to
    /// parse as such.
    fn parse(stdin: &[u8], args: &Args, ttrpc_address: String) -> Self {
        let legacy = Self {
            dialect: Dialect::Legacy,
            ttrpc_address,
            grpc_address: args.address.clone(),
            socket_dir: address::SOCKET_DIR.into(),
            debug: args.debug,
            settings: Any::parse_from_bytes(stdin).ok().and_then(|options| settings_path(&options)),
        };
        let Ok(params) = BootstrapParams::parse_from_bytes(stdin) else { return legacy };
        if params.instance_id != args.id || params.namespace != args.namespace {
            return legacy;
        }
        let or = |value: String, default: String| if value.is_empty() { default } else { value };
        let extensions = params.extensions.iter().filter_map(|extension| extension.value.as_ref());
        let level = params.log_level.enum_value_or_default();
        Self {
            dialect: Dialect::Bootstrap,
            ttrpc_address: or(params.containerd_ttrpc_address, legacy.ttrpc_address),
            grpc_address: or(params.containerd_grpc_address, legacy.grpc_address),
            socket_dir: params
                .socket_dir
                .filter(|dir| !dir.is_empty())
                .map_or(legacy.socket_dir, PathBuf::from),
            settings: extensions.filter_map(settings_path).next(),
            debug: legacy.debug || matches!(level, LogLevel::LOG_LEVEL_DEBUG | LogLevel::LOG_LEVEL_TRACE),
        }
    }

    fn reply(&self, address: &str) -> Result<Vec<u8>, protobuf::Error> {
        match self.dialect {
            Dialect::Legacy => Ok(address.into()),
            Dialect::Bootstrap => BootstrapResult {
                version: TASK_API,
                address: address.into(),
                protocol: "ttrpc".into(),
                ..Default::default()
            }
            .write_to_bytes(),
        }
    }
}

/// Finds or starts the shim of the container whose bundle is the current directory, and prints its address. Prints
/// nothing else: containerd reads both standard streams, up to the end of whoever holds them.
pub(crate) fn start(args: &Args) -> Result<(), StartError> {
    let request = Request::parse(&read_stdin()?, args, env::var(TTRPC_ADDRESS).unwrap_or_default());
    let bundle = env::current_dir().map_err(StartError::io("find the bundle"))?;
    let spec = bundle::read_spec(&bundle)?;
    let mut pod = bundle::pod_id(spec.as_ref(), &args.id)?;
    if pod == args.id
        && let Some(joined) = bundle::join_pod(&bundle, spec.as_ref())?
    {
        pod = joined;
    }

    let socket = address::socket_path(&request.socket_dir, &request.grpc_address, &args.namespace, &pod);
    let (address, server) = if pod == args.id {
        let cgroup = bundle::cgroup(spec.as_ref(), &args.id).ok().flatten();
        let server = start_pod(args, &request, &bundle, &socket, cgroup)?;
        (address::to_address(&socket), server)
    } else {
        let found = find_pod(&bundle, &pod, &socket);
        (found.ok_or_else(|| StartError::NoPod { container: args.id.clone(), pod: pod.clone() })?, None)
    };
    bundle::write(&bundle, bundle::ADDRESS, &address)?;

    let reply = request.reply(&address).map_err(io::Error::other);
    let mut stdout = io::stdout();
    let answered = reply.and_then(|reply| stdout.write_all(&reply)).and_then(|()| stdout.flush());
    answered.map_err(StartError::io("answer containerd"))?;
    if let Some(server) = server {
        server.keep();
    }
    Ok(())
}

/// A serving process that containerd has not been told of. It ends when this is dropped, and nothing of it is left.
#[derive(Debug)]
struct Server {
    pid: Pid,
    /// Says by a byte that containerd has been told: should this process die before, nobody else knows of the server, and it ends.
    tell: PipeWriter,
    socket: PathBuf,
    cgroup: Option<Cgroup>,
    kept: bool,
}

impl Server {
    fn keep(mut self) {
        self.kept = true;
        // One that has ended meanwhile is containerd's to find.
        let _ = self.tell.write_all(b"!");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // It is our child, so the pid is still its own. Nobody has asked it for anything: it has started nothing.
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
        let _ = fs::remove_file(&self.socket);
        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.remove();
        }
    }
}

/// Broken options are the creation's to refuse.
fn settings_path(options: &Any) -> Option<String> {
    options::config_path(options).ok().flatten()
}

fn read_stdin() -> Result<Vec<u8>, StartError> {
    let mut input = Vec::new();
    if !io::stdin().is_terminal() {
        io::stdin()
            .take(STDIN_LIMIT)
            .read_to_end(&mut input)
            .map_err(StartError::io("read parameters from standard input"))?;
    }
    Ok(input)
}

/// The address of a running pod's shim: what its own bundle says, which outlives a change of containerd's settings, or
/// else where it should be.
fn find_pod(bundle: &Path, pod: &str, socket: &Path) -> Option<String> {
    let sibling = bundle.parent().map(|all| all.join(pod).join(bundle::ADDRESS));
    let written = sibling.and_then(|path| fs::read_to_string(path).ok());
    [written, Some(address::to_address(socket))]
        .into_iter()
        .flatten()
        .find(|address| address::is_served(address::to_path(address)))
}

/// Makes sure that a shim serves `socket`; returns one that is started now.
fn start_pod(
    args: &Args,
    request: &Request,
    bundle: &Path,
    socket: &Path,
    cgroup: Option<Cgroup>,
) -> Result<Option<Server>, StartError> {
    let listener =
        address::bind(socket).map_err(StartError::io(format!("listen on {}", socket.display())))?;
    let Some(listener) = listener else { return Ok(None) };
    let (pid, tell) = launch(args, request, listener, cgroup.as_ref()).inspect_err(|_| {
        let _ = fs::remove_file(socket);
        if let Some(cgroup) = &cgroup {
            let _ = cgroup.remove();
        }
    })?;
    let server = Server {
        pid: Pid::from_raw(pid.cast_signed()),
        tell,
        socket: socket.to_owned(),
        cgroup,
        kept: false,
    };
    // Best effort: a shim that is as dear to the kernel as containerd still works.
    let _ = lower_oom_priority(pid);
    bundle::write(bundle, bundle::SHIM_PID, &pid.to_string())?;
    template::make(request.settings.as_deref());
    Ok(Some(server))
}

/// Starts the serving process, which has the listening socket for its standard input, as inetd does it, and the pipe of
/// [`Server`] for its standard output: the only descriptors that can be handed over without unsafe code. It is in `cgroup`
/// from its beginning; where that can't be it enters it itself, and says why it can't.
fn launch(
    args: &Args,
    request: &Request,
    listener: UnixListener,
    cgroup: Option<&Cgroup>,
) -> Result<(u32, PipeWriter), StartError> {
    let executable = env::current_exe().map_err(StartError::io("find the shim's own binary"))?;
    let mut command = Command::new(&executable);
    command.args(["-namespace", &args.namespace, "-id", &args.id, "-address", &request.grpc_address]);
    if request.debug {
        command.arg("-debug");
    }
    if let Some(path) = &request.settings {
        command.env(SETTINGS, path);
    }
    let (told, tell) = io::pipe().map_err(StartError::io("make a pipe"))?;
    command
        .env(TTRPC_ADDRESS, &request.ttrpc_address)
        .stdin(OwnedFd::from(listener))
        .stdout(told)
        .stderr(Stdio::null());
    if let (Some(cgroup), Some(own)) = (cgroup, cgroup::own_path())
        && let Ok(Some(directory)) = cgroup.birthplace()
    {
        command.env(STARTED_FROM, own);
        if let Ok(pid) = birth::spawn_in(&mut command, directory.as_fd()) {
            return Ok((pid, tell));
        }
        command.env_remove(STARTED_FROM);
    }
    let child = command.spawn().map_err(StartError::io(format!("start {}", executable.display())))?;
    Ok((child.id(), tell))
}

/// The kernel shall rather kill a shim than containerd: one more than its `oom_score_adj`.
fn lower_oom_priority(pid: u32) -> io::Result<()> {
    let containerd = fs::read_to_string(format!("/proc/{}/oom_score_adj", parent_id()))?;
    let score: i32 = containerd.trim().parse().map_err(io::Error::other)?;
    fs::write(format!("/proc/{pid}/oom_score_adj"), (score + 1).min(1000).to_string())
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::bootstrap_api::Extension;

    use super::*;

    /// Runtime options with this `ConfigPath`.
    fn options(path: &str) -> Any {
        let value = [&[2 << 3 | 2, u8::try_from(path.len()).unwrap()], path.as_bytes()].concat();
        Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Default::default() }
    }

    fn args() -> Args {
        Args { id: "c1".into(), namespace: "n".into(), address: "/run/c.sock".into(), ..Args::default() }
    }

    #[test]
    #[allow(clippy::zombie_processes)] // By its pid it is waited for.
    fn nothing_is_left_of_a_server_that_containerd_was_not_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let server = || {
            fs::write(&socket, "").unwrap();
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            let pid = Pid::from_raw(child.id().cast_signed());
            Server { pid, tell: io::pipe().unwrap().1, socket: socket.clone(), cgroup: None, kept: false }
        };
        let untold = server();
        let pid = untold.pid;
        drop(untold);
        assert!(!socket.exists() && kill(pid, None).is_err(), "killed, and waited for");
        let told = server();
        let pid = told.pid;
        told.keep();
        assert!(socket.exists() && kill(pid, None).is_ok(), "it serves");
        kill(pid, Signal::SIGKILL).unwrap();
    }

    #[test]
    fn bootstrap_params_of_2_3_are_recognised_and_answered_in_protobuf() {
        let params = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "n".into(),
            log_level: LogLevel::LOG_LEVEL_DEBUG.into(),
            containerd_ttrpc_address: "/t".into(),
            containerd_grpc_address: "/g".into(),
            socket_dir: Some("/d".into()),
            extensions: vec![Extension { value: Some(options("/x.toml")).into(), ..Default::default() }],
            ..Default::default()
        };
        let request = Request::parse(&params.write_to_bytes().unwrap(), &args(), "/env".into());
        assert_eq!(
            request,
            Request {
                dialect: Dialect::Bootstrap,
                ttrpc_address: "/t".into(),
                grpc_address: "/g".into(),
                socket_dir: "/d".into(),
                debug: true,
                settings: Some("/x.toml".into()),
            }
        );
        let reply = BootstrapResult::parse_from_bytes(&request.reply("unix:///s").unwrap()).unwrap();
        assert_eq!(
            (reply.version, reply.address.as_str(), reply.protocol.as_str()),
            (3, "unix:///s", "ttrpc")
        );
    }

    #[test]
    fn what_bootstrap_params_leave_out_comes_from_flags_and_environment() {
        let params =
            BootstrapParams { instance_id: "c1".into(), namespace: "n".into(), ..Default::default() };
        let request = Request::parse(&params.write_to_bytes().unwrap(), &args(), "/env".into());
        assert_eq!(request.ttrpc_address, "/env");
        assert_eq!(request.grpc_address, "/run/c.sock");
        assert_eq!(request.socket_dir, Path::new(address::SOCKET_DIR));
    }

    #[test]
    fn options_of_older_containerds_are_answered_with_a_bare_address() {
        // Any and BootstrapParams both begin with two length-delimited fields: this parses as either.
        let options = options("/x.toml").write_to_bytes().unwrap();
        let request = Request::parse(&options, &args(), String::new());
        assert_eq!(request.settings.as_deref(), Some("/x.toml"));
        for stdin in [options, Vec::new(), b"\xff\xff".to_vec()] {
            let request = Request::parse(&stdin, &args(), "/env".into());
            assert_eq!(request.dialect, Dialect::Legacy);
            assert_eq!(request.reply("unix:///s").unwrap(), b"unix:///s");
        }
    }

    #[test]
    fn parameters_of_another_container_are_not_taken() {
        let params =
            BootstrapParams { instance_id: "other".into(), namespace: "n".into(), ..Default::default() };
        let request = Request::parse(&params.write_to_bytes().unwrap(), &args(), String::new());
        assert_eq!(request.dialect, Dialect::Legacy);
    }

    #[test]
    fn a_member_finds_its_pod_by_the_pods_bundle() {
        let root = tempfile::tempdir().unwrap();
        let socket = root.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let [pod, member] = ["pod", "member"].map(|id| root.path().join(id));
        fs::create_dir(&pod).unwrap();
        bundle::write(&pod, bundle::ADDRESS, &address::to_address(&socket)).unwrap();

        let elsewhere = root.path().join("moved");
        assert_eq!(find_pod(&member, "pod", &elsewhere), Some(address::to_address(&socket)));
        assert_eq!(find_pod(&member, "none", &socket), Some(address::to_address(&socket)));
        assert_eq!(find_pod(&member, "none", &elsewhere), None);
    }
}
