//! The serving process: one per pod, from `start` to Shutdown.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use monohull_runtime::cgroup::Entered;
use monohull_runtime::log::Log;
use monohull_runtime::pod::Pod;
use monohull_runtime::spans::Spans;
use monohull_runtime::timeline::Timeline;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{dup2_stdin, dup2_stdout, setsid};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;
use ttrpc::asynchronous::Server;

use crate::abandonment;
use crate::args::Args;
use crate::bootstrap::{STARTED_FROM, TTRPC_ADDRESS};
use crate::bundle;
use crate::connections::Connections;
use crate::error::chain;
use crate::events::Publisher;
use crate::namespaces::{self, Outside};
use crate::pod::{PodInfo, PodTasks};
use crate::{rights, sandbox, task};

/// tokio's helper threads, which write `file://` logs: enough, and small.
const HELPER_THREADS: usize = 4;
const HELPER_STACK: usize = 128 * 1024;
/// For an engine to close its connections once its pod has ended. Who keeps one open has no use for the shim.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Why the process can't serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// Somebody runs the shim by hand.
    #[error("nothing to serve: the shim takes an action, start or delete, and is run by a container engine")]
    NoSocket,
    /// A system call failed.
    #[error("cannot {0}")]
    Io(&'static str, #[source] io::Error),
    /// The RPC server failed.
    #[error("cannot serve requests")]
    Rpc(#[source] ttrpc::Error),
}

impl ServeError {
    fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io(what, source.into())
    }
}

/// Serves the pod of container `args.id`, whose bundle is the current directory, on the listening socket that is
/// standard input. The process must be single-threaded when it comes here.
pub(crate) fn serve(args: &Args) -> Result<(), ServeError> {
    let timeline = Timeline::new();
    timeline.mark("shim started");
    namespaces::close_inherited().map_err(ServeError::io("close inherited descriptors"))?;
    let listener = take_listener()?;
    let starter = take_starter()?;
    // In a session of its own no terminal's signal reaches it. It fails for a session leader, which has that already.
    let _ = setsid();
    let log = Log::of_shim(Path::new("log"), &args.id, args.debug);
    log.install();

    // An error here is the answer to Create, where the engine shows it.
    let (outside, cgroup) = match enter_pod(&args.id) {
        Ok((outside, cgroup)) => (Ok(Some(outside)), cgroup),
        Err(error) => {
            tracing::error!(error, "pod can't be prepared");
            (Err(error), None)
        }
    };
    let network = outside.as_ref().ok().and_then(Option::as_ref).map(Outside::network);
    let spans = Spans::new(&args.id, &args.namespace, network);
    let info = PodInfo {
        id: args.id.clone(),
        namespace: args.namespace.clone(),
        pid: std::process::id(),
        outside,
        timeline,
        log: log.clone(),
        spans,
    };
    let left = event_loop()?.block_on(run(listener, starter, info, cgroup))?;
    // `delete` removes what could not be.
    for cgroup in left {
        if let Err(error) = cgroup.remove() {
            tracing::warn!(error = chain(&error), "pod's cgroup is not removed");
        }
    }
    log.forget_ended();
    Ok(())
}

/// Takes the socket away from standard input, where `start` has put it, and leaves `/dev/null` there.
fn take_listener() -> Result<UnixListener, ServeError> {
    let stdin = io::stdin();
    if !getsockopt(&stdin, sockopt::AcceptConn).unwrap_or(false) {
        return Err(ServeError::NoSocket);
    }
    let listener = stdin.as_fd().try_clone_to_owned().map_err(ServeError::io("take the socket"))?;
    dup2_stdin(null()?).map_err(ServeError::io("leave standard input"))?;
    Ok(listener.into())
}

/// Takes the pipe on which `start` says that containerd knows of this process away from standard output.
fn take_starter() -> Result<OwnedFd, ServeError> {
    let starter = io::stdout().as_fd().try_clone_to_owned().map_err(ServeError::io("take the pipe"))?;
    dup2_stdout(null()?).map_err(ServeError::io("leave standard output"))?;
    Ok(starter)
}

/// Makes the event loop. Where no descriptors are left tokio panics (`tokio::signal`, its pipe), and nothing but its own attempt
/// can tell: this panic, too, ends the process with an error in words.
fn event_loop() -> Result<runtime::Runtime, ServeError> {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let reason = payload.downcast_ref::<String>().map(String::as_str);
        let reason = reason.or(payload.downcast_ref::<&str>().copied()).unwrap_or_default();
        tracing::error!(reason, "cannot start the event loop");
        std::process::exit(1);
    }));
    let made = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(HELPER_THREADS)
        .thread_stack_size(HELPER_STACK)
        .build();
    panic::set_hook(usual);
    made.map_err(ServeError::io("start the event loop"))
}

fn null() -> Result<File, ServeError> {
    File::options().read(true).write(true).open("/dev/null").map_err(ServeError::io("open /dev/null"))
}

/// Waits for the end of a `start` that dies before containerd knows of this process.
async fn starter_dies(starter: OwnedFd) {
    // Whoever starts the server by hand has no pipe.
    if let Ok(mut pipe) = pipe::Receiver::from_owned_fd(starter)
        && matches!(pipe.read(&mut [0]).await, Ok(0))
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Enters the pod's cgroup and namespaces, and gives up rights; returns the cgroup and the namespaces that were left.
fn enter_pod(id: &str) -> Result<(Outside, Option<Entered>), String> {
    let bundle = env::current_dir().map_err(|e| format!("cannot find the bundle: {e}"))?;
    let spec = bundle::read_spec(&bundle).map_err(|e| chain(&e))?;
    let cgroup = bundle::cgroup(spec.as_ref(), id).and_then(|cgroup| {
        let parents = env::var_os(STARTED_FROM).map(PathBuf::from);
        cgroup.map(|cgroup| cgroup.enter(parents.as_deref())).transpose()
    });
    let cgroup = cgroup.map_err(|e| chain(&e))?;
    let outside = Outside::open().map_err(|e| format!("cannot open the host's namespaces: {e}"))?;
    namespaces::enter(spec.as_ref()).map_err(|e| chain(&e))?;
    rights::give_up().map_err(|e| format!("cannot give up rights that the pod does not need: {e}"))?;
    Ok((outside, cgroup))
}

/// Serves until the pod has ended. Returns the pod's cgroups, `cgroup` or one that was entered meanwhile; the process has left
/// them.
async fn run(
    listener: UnixListener,
    starter: OwnedFd,
    info: PodInfo,
    cgroup: Option<Entered>,
) -> Result<Vec<Entered>, ServeError> {
    let socket = listener.local_addr().ok().and_then(|address| address.as_pathname().map(PathBuf::from));
    let socket = socket.unwrap_or_default();
    let events = Publisher::start(&env::var(TTRPC_ADDRESS).unwrap_or_default(), &info.namespace);
    let id = info.id.clone();
    let pod = Arc::new(PodTasks::<Pod>::new(info, events));

    listener.set_nonblocking(true).map_err(ServeError::io("make the socket non-blocking"))?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(ServeError::io("listen"))?;
    let connections = Connections::default();
    let mut server = Server::new()
        .add_listener(connections.accept(listener))
        .register_service(task::services(&pod, &socket))
        .register_service(sandbox::services(&pod, &socket));
    server.start().await.map_err(ServeError::Rpc)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "shim serves");

    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::io("wait for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::io("wait for signals"))?;
    let given_up = async {
        abandonment::bundle_is_taken(&connections, Path::new("."), &id).await;
        // Members outlive the pod's first container, whose bundle goes with it.
        if pod.has_had_its_end() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = pod.stop_requested() => {}
        () = given_up => tracing::warn!("the engine has removed the pod's bundle and wants nothing of the shim, which ends"),
        () = starter_dies(starter) => tracing::warn!("`start` has died before containerd knew of the shim, which ends"),
        _ = terminate.recv() => tracing::warn!("shim is terminated by a signal"),
        _ = interrupt.recv() => tracing::warn!("shim is terminated by a signal"),
    }
    let _ = fs::remove_file(&socket);
    // That takes some time, and so does the end of a VMM: the kernel's time, in both.
    let left = leave([cgroup, pod.take_cgroup()].into_iter().flatten().collect());
    pod.close().await;
    // containerd's client takes an answer for lost that it finds together with the end of its connection. It closes that
    // itself when it has the answer to Shutdown.
    if timeout(CLOSE_LIMIT, connections.closed()).await.is_err() {
        tracing::info!("a connection to the shim is still open; the shim ends");
    }
    Ok(left.await.unwrap_or_default())
}

/// Leaves the pod's cgroups, in a thread of its own where there is one to be had: the pod's `pids.max` counts threads, and where
/// it has none left `spawn_blocking` panics. Sends the cgroups that have been left.
fn leave(cgroups: Vec<Entered>) -> oneshot::Receiver<Vec<Entered>> {
    let (give, take) = mpsc::channel::<Vec<Entered>>();
    let (tell, left) = oneshot::channel();
    let worker = move || {
        let cgroups = take.recv().unwrap_or_default();
        let _ = tell.send(cgroups.into_iter().filter(step_out).collect());
    };
    if thread::Builder::new().stack_size(HELPER_STACK).spawn(worker).is_ok() {
        let _ = give.send(cgroups);
        return left;
    }
    let (tell, left) = oneshot::channel();
    let _ = tell.send(cgroups.into_iter().filter(step_out).collect());
    left
}

fn step_out(cgroup: &Entered) -> bool {
    let stepped = cgroup.step_out();
    if let Err(error) = &stepped {
        tracing::warn!(error = chain(error), "shim stays in the pod's cgroup");
    }
    stepped.is_ok()
}

#[cfg(test)]
mod tests;
