//! The container helper: the agent's binary executed again, single-threaded, to make one container process.
//!
//! libcontainer clones itself without exec, changes its caller's oom_score_adj, dumpable flag and working directory,
//! and blocks: none of which PID 1 and its async runtime would survive. So each create and exec has a short-lived
//! process. Its standard streams are the container process's; with `as_sibling`, the processes it makes are the agent's
//! children, not its own.
//!
//! Agent and helper share one socket: a [`Request`] as JSON, end of file, then [`Reply`]s, one line of JSON each. The
//! container process inherits it until its exec succeeds (close-on-exec), so the end of the replies says "executed", and
//! a [`Reply::Refused`] before it says why not.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::{SyscallType, create_syscall};
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Process, Spec};
use serde::{Deserialize, Serialize};

use crate::error::chain;
use crate::executable;

/// First argument that makes the binary a helper; the second is the number of the inherited socket.
pub(crate) const ARGUMENT: &str = "container-helper";
/// Where libcontainer keeps its state, a directory per container.
pub(crate) const STATE: &str = "/run/monohull/oci";

/// What to make.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Request {
    pub(crate) container: String,
    /// libcontainer's state directory: [`STATE`], except in tests.
    pub(crate) state: PathBuf,
    /// A listening socket that gets the terminal's master, when the process has a terminal.
    pub(crate) console: Option<PathBuf>,
    pub(crate) action: Action,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Action {
    /// The container of the bundle in this directory, with an init process that waits for its start.
    Create { bundle: PathBuf },
    /// A process in a running container: an OCI Process in this file.
    Exec { process: PathBuf, privileges: Box<Privileges> },
    /// No process of a container: the helper itself becomes this program.
    Become(Program),
}

/// A program that runs in the guest itself.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Directory of the cgroup that it enters.
    pub(crate) cgroup: PathBuf,
    /// Its standard input is a terminal, which it is to control.
    pub(crate) terminal: bool,
}

impl Program {
    /// Executes it. Returns only if that is not possible.
    fn execute(&self, socket: &UnixStream) -> Reply {
        match self.prepare(socket) {
            Ok(()) => Reply::Created(std::process::id()).send(socket),
            Err(error) => return Reply::Failed(format!("prepare for {}: {error}", self.path.display())),
        }
        let mut command = std::process::Command::new(&self.path);
        command.args(&self.args).env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        // What a dynamic program lacks here is its loader.
        let error = command.current_dir("/").exec();
        Reply::Refused(format!("the program can't be executed in the guest, is it static? {error}"))
    }

    fn prepare(&self, socket: &UnixStream) -> std::io::Result<()> {
        std::fs::write(self.cgroup.join("cgroup.procs"), "0")?;
        rustix::process::setsid()?;
        if self.terminal {
            rustix::process::ioctl_tiocsctty(std::io::stdin())?;
        }
        Ok(rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::CLOEXEC)?)
    }
}

/// What an exec'ed process has to give up before its exec, beyond what libcontainer makes it give up: libcontainer
/// applies a container's seccomp profile to its init process only, and once it has dropped capabilities it would be
/// too late. So its Process comes without capabilities, and [`Workload`] drops them.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Privileges {
    no_new_privileges: bool,
    capabilities: Option<LinuxCapabilities>,
    seccomp: Option<LinuxSeccomp>,
}

impl Privileges {
    /// Takes them out of `process`, which joins a container with this seccomp profile.
    pub(crate) fn take(process: &mut Process, seccomp: Option<LinuxSeccomp>) -> Self {
        let capabilities = process.capabilities().clone();
        process.set_capabilities(None);
        Self { no_new_privileges: process.no_new_privileges().unwrap_or_default(), capabilities, seccomp }
    }

    /// Without no_new_privs, installing a filter takes CAP_SYS_ADMIN, so it comes first; with it, the filter comes
    /// last, where it has the fewest system calls to allow.
    fn give_up(&self) -> Result<(), String> {
        if self.no_new_privileges {
            self.drop_capabilities()?;
            self.install_filter()
        } else {
            self.install_filter()?;
            self.drop_capabilities()
        }
    }

    fn drop_capabilities(&self) -> Result<(), String> {
        let Some(capabilities) = &self.capabilities else { return Ok(()) };
        libcontainer::capabilities::drop_privileges(capabilities, create_syscall().as_ref())
            .map_err(|error| format!("drop capabilities: {}", chain(&error)))
    }

    fn install_filter(&self) -> Result<(), String> {
        let Some(seccomp) = &self.seccomp else { return Ok(()) };
        libcontainer::seccomp::initialize_seccomp(seccomp)
            .map(|_| ())
            .map_err(|error| format!("install the seccomp filter: {}", chain(&error)))
    }
}

/// What became of it.
#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) enum Reply {
    /// The process exists: its pid.
    Created(u32),
    /// The executable can't be executed; no fault of ours.
    Refused(String),
    /// Something else went wrong.
    Failed(String),
}

impl Reply {
    fn send(&self, to: &UnixStream) {
        // The agent may be gone; then there is nobody to tell.
        if let Ok(mut line) = serde_json::to_vec(self) {
            line.push(b'\n');
            let mut to = to;
            let _ = to.write_all(&line);
        }
    }
}

/// Serves the one request that the agent has written to the inherited socket `fd`.
pub(crate) fn main(fd: Option<&str>) -> Result<(), String> {
    let fd = fd.and_then(|number| number.parse().ok()).ok_or("no socket was inherited")?;
    let socket =
        UnixStream::from(crate::sys::inherited(fd).map_err(|error| format!("inherited socket: {error}"))?);
    let mut json = Vec::new();
    (&socket).read_to_end(&mut json).map_err(|error| format!("read the request: {error}"))?;
    let request: Request =
        serde_json::from_slice(&json).map_err(|error| format!("parse the request: {error}"))?;
    // The agent's is -1000; libcontainer sets what the spec has, if it has any.
    std::fs::write("/proc/self/oom_score_adj", "0")
        .map_err(|error| format!("reset oom_score_adj: {error}"))?;
    if let Action::Become(program) = &request.action {
        program.execute(&socket).send(&socket);
        return Ok(());
    }
    let socket = Arc::new(socket);
    let reply = match make(request, Arc::clone(&socket)) {
        Ok(pid) => Reply::Created(pid),
        Err(error) => Reply::Failed(chain(&error)),
    };
    reply.send(&socket);
    Ok(())
}

fn make(request: Request, socket: Arc<UnixStream>) -> Result<u32, libcontainer::error::LibcontainerError> {
    let privileges = match &request.action {
        Action::Exec { privileges, .. } => Some(privileges.clone()),
        Action::Create { .. } | Action::Become(_) => None,
    };
    let builder = ContainerBuilder::new(request.container, SyscallType::default())
        .with_root_path(request.state)?
        .with_console_socket(request.console)
        .with_executor(Workload { socket, privileges })
        .validate_id()?;
    let pid = match request.action {
        Action::Create { bundle } => {
            let builder = builder.as_init(bundle).with_systemd(false).with_detach(true).as_sibling(true);
            builder.build()?.pid().map(|pid| pid.as_raw())
        }
        Action::Exec { process, .. } => {
            let builder = builder.as_tenant().with_process(Some(process)).with_detach(true).as_sibling(true);
            Some(builder.build()?.as_raw())
        }
        Action::Become(_) => None,
    };
    pid.and_then(|pid| u32::try_from(pid).ok())
        .ok_or_else(|| libcontainer::error::LibcontainerError::Other("the process has no pid".into()))
}

/// The last steps of a container process before its own program runs.
#[derive(Clone)]
struct Workload {
    socket: Arc<UnixStream>,
    privileges: Option<Box<Privileges>>,
}

impl Workload {
    fn find(&self, spec: &Spec) -> Result<(PathBuf, Vec<String>), String> {
        let process = spec.process().as_ref().ok_or("spec: no process")?;
        let arguments = process.args().clone().unwrap_or_default();
        let name = arguments.first().ok_or("process.args: nothing to execute")?;
        let path = executable::search_path(process.env().as_deref().unwrap_or_default());
        Ok((executable::find(name, path)?, arguments))
    }

    fn execute(&self, spec: &Spec) -> Result<(), String> {
        let (path, arguments) = self.find(spec)?;
        if let Some(privileges) = &self.privileges {
            privileges.give_up()?;
        }
        let mut command = std::process::Command::new(&path);
        if let Some((name, rest)) = arguments.split_first() {
            command.arg0(name).args(rest);
        }
        // Restores the default of SIGPIPE, too, which Rust's runtime ignores.
        let error = command.exec();
        Err(executable::refusal(Path::new(&path), &error))
    }
}

impl Executor for Workload {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.find(spec).map(|_| ()).map_err(|reason| {
            Reply::Refused(reason.clone()).send(&self.socket);
            ExecutorValidationError::ArgValidationError(reason)
        })
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        self.execute(spec).map_err(|reason| {
            Reply::Refused(reason.clone()).send(&self.socket);
            ExecutorError::Other(reason)
        })
    }
}
