//! `delete`: containerd runs it whenever its connection to a container's shim has closed, after a normal end just as
//! after a crash. What is left of the container is removed; the pod only if its shim is dead.
//!
//! All mounts, interfaces and other kernel objects of a pod belong to its shim's namespaces or to descriptors of its
//! processes and have gone with them; what remains is the VMM's process, files, redirections of interfaces in a network namespace
//! that the engine keeps, and what hooks have set up.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{env, fs, thread};

use containerd_shim_protos::api::{DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, WaitRequest};
use containerd_shim_protos::shim_async::TaskClient;
use monohull_runtime::cgroup::Cgroup;
use monohull_runtime::network;
use monohull_runtime::settings::Settings;
use monohull_runtime::state::{self, PodState};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime as oci;
use protobuf::Message;
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context;

use crate::address;
use crate::args::Args;
use crate::bootstrap::TTRPC_ADDRESS;
use crate::bundle;
use crate::container::Origin;
use crate::error::chain;
use crate::events::{Publisher, timestamp};
use crate::hooks::Hooks;
use crate::namespaces;

/// The exit code of a container whose end nobody has seen: that of a killed process.
const KILLED: u32 = 137;
/// containerd gives `delete` 5 s. A living shim gets so much to delete the container …
const LIVE_SHIM: Duration = Duration::from_secs(3);
/// … or to finish its own end …
const ENDING_SHIM_MS: u16 = 2500;
/// … and hooks get so much …
const HOOKS: Duration = Duration::from_millis(1500);
/// … and containerd, to take an event.
const EVENTS: Duration = Duration::from_millis(500);

/// Why the answer could not be given. What can't be cleaned up is only reported: containerd deletes the container
/// whatever we say.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeleteError {
    /// A system call failed.
    #[error("cannot {0}")]
    Io(&'static str, #[source] io::Error),
}

/// A container to clean up after.
struct Remains<'a> {
    args: &'a Args,
    bundle: PathBuf,
    spec: Option<oci::Spec>,
    pod: String,
}

/// Cleans up after container `args.id` and prints a protobuf `DeleteResponse`. Warnings go to standard error, which
/// containerd logs.
pub(crate) fn delete(args: &Args) -> Result<(), DeleteError> {
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().map_err(|e| DeleteError::Io("find the bundle", e))?,
    };
    let spec = bundle::read_spec(&bundle).unwrap_or_else(|e| {
        warn(&chain(&e));
        None
    });
    let named = || bundle::pod_id(spec.as_ref(), &args.id).unwrap_or_else(|_| args.id.clone());
    let pod = bundle::joined_pod(&bundle).unwrap_or_else(named);
    let remains = Remains { args, bundle, spec, pod };

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| DeleteError::Io("start the event loop", e))?;
    runtime.block_on(remains.clean_up());
    let response = DeleteResponse {
        exit_status: KILLED,
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..Default::default()
    };
    let bytes = response.write_to_bytes().map_err(io::Error::other);
    bytes
        .and_then(|bytes| io::stdout().write_all(&bytes))
        .map_err(|e| DeleteError::Io("answer containerd", e))
}

fn warn(text: &str) {
    eprintln!("containerd-shim-monohull-v2: {text}");
}

impl Remains<'_> {
    async fn clean_up(&self) {
        let address = fs::read_to_string(self.bundle.join(bundle::ADDRESS)).unwrap_or_default();
        let socket = address::to_path(&address);
        let serving = !address.is_empty() && address::is_served(socket);
        if serving {
            // A sandbox stays while its shim serves: other containers may be in it.
            if bundle::is_sandbox(self.spec.as_ref()) {
                return;
            }
            self.delete_from_living_shim(socket).await;
        }
        if self.pod == self.args.id {
            self.delete_pod(socket).await;
        }
        self.run_owed_hooks().await;
    }

    /// Removes just this container from a pod that lives on, as the shim's own Delete would have; after a normal
    /// end the shim knows nothing of it any more.
    async fn delete_from_living_shim(&self, socket: &Path) {
        match timeout(LIVE_SHIM, delete_container(socket, &self.args.id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn(&format!("the pod's shim does not delete the container: {}", chain(&error)));
            }
            Err(_) => warn("the pod's shim does not delete the container in time"),
        }
    }

    /// Removes the pod of a shim that is dead, or just ending after a Shutdown request.
    async fn delete_pod(&self, socket: &Path) {
        let dir = match self.pod_dir() {
            Ok(dir) => dir,
            Err(text) => return warn(&text),
        };
        if let Err(error) = self.await_shim() {
            return warn(&format!("the pod's shim does not end: {error}"));
        }
        let cgroups = self.cgroups();
        if cgroups.iter().any(Cgroup::has_oom_kills) {
            self.report_oom(&dir).await;
        }
        if let Err(error) = state::cleanup(&dir) {
            warn(&chain(&error));
        }
        for error in cgroups.iter().filter_map(|cgroup| cgroup.remove().err()) {
            warn(&chain(&error));
        }
        if let Some(Err(text)) = namespaces::network_path(self.spec.as_ref()).map(give_back_network) {
            warn(&text);
        }
        if !socket.as_os_str().is_empty() && !address::is_served(socket) {
            let _ = fs::remove_file(socket);
        }
    }

    /// The pod's cgroups on the host: the one that its configuration names, and the one that the kubelet has named.
    fn cgroups(&self) -> Vec<Cgroup> {
        let named =
            [bundle::cgroup(self.spec.as_ref(), &self.pod), bundle::noted_cgroup(&self.bundle, &self.pod)];
        let known = named
            .into_iter()
            .filter_map(|cgroup| cgroup.map_err(|error| warn(&chain(&error))).ok().flatten());
        known.collect()
    }

    /// Tells the engine that the host had no memory left for the pod, which has cost the shim its life too: with
    /// `memory.oom.group` the kernel kills a whole cgroup. containerd reports the exits after this.
    async fn report_oom(&self, pod_dir: &Path) {
        let containers = PodState::read(pod_dir).map(|state| state.containers).unwrap_or_default();
        let events = Publisher::start(&env::var(TTRPC_ADDRESS).unwrap_or_default(), &self.args.namespace);
        for container in containers {
            events.publish_oom(&container.id, container.bundle.as_deref());
        }
        if timeout(EVENTS, events.flush()).await.is_err() {
            warn("containerd does not take events in time");
        }
    }

    /// Waits for a shim whose socket is gone to end.
    fn await_shim(&self) -> io::Result<()> {
        let Some(pid) = self.shim_pid() else { return Ok(()) };
        let Ok(pidfd) = namespaces::pidfd_open(pid) else { return Ok(()) };
        // Only now: the descriptor pins the process, so it can't become another one any more.
        if self.shim_pid() != Some(pid) {
            return Ok(());
        }
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(ENDING_SHIM_MS))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// The pid of this pod's shim, if it still is that: its working directory is the bundle.
    fn shim_pid(&self) -> Option<i32> {
        let pid = fs::read_to_string(self.bundle.join(bundle::SHIM_PID)).ok()?.trim().parse().ok()?;
        let directory = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        (directory == fs::canonicalize(&self.bundle).ok()?).then_some(pid)
    }

    /// The pod's directory, as the shim has noted it, else where it would be.
    fn pod_dir(&self) -> Result<PathBuf, String> {
        if let Ok(dir) = fs::read_link(self.bundle.join(bundle::POD_LINK)) {
            return Ok(dir);
        }
        let settings = Settings::load().map_err(|e| chain(&e))?;
        state::pod_dir(&settings.state_dir, &self.args.namespace, &self.pod).map_err(|e| chain(&e))
    }

    /// Runs the poststop hooks that a dead shim owes.
    async fn run_owed_hooks(&self) {
        let Some(mut spec) = self.spec.clone() else { return };
        let Ok(hooks) = Hooks::take(&mut spec) else { return };
        let origin =
            Origin { id: self.args.id.clone(), bundle: self.bundle.clone(), spec, hooks, shares_pids: false };
        if timeout(HOOKS, origin.run_poststop_hooks(None)).await.is_err() {
            warn("the container's poststop hooks do not end in time");
        }
    }
}

/// Gives the interfaces of a network namespace that outlives its pod back to the host's own stack.
fn give_back_network(path: PathBuf) -> Result<(), String> {
    // Most often the engine has removed it.
    if !path.exists() {
        return Ok(());
    }
    let give_back = move || {
        namespaces::join_network(&path).map_err(|e| chain(&e))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| format!("cannot start the event loop: {e}"))?;
        runtime.block_on(network::give_back()).map_err(|e| chain(&e))
    };
    // A thread of its own: hooks are still to be run where the process is.
    let given_back =
        thread::Builder::new().spawn(give_back).map_err(|e| format!("cannot start a thread: {e}"))?;
    given_back.join().unwrap_or_else(|_| Err("the network is not given back".into()))
}

/// Kills and deletes a container, and offers the shim to end.
async fn delete_container(socket: &Path, id: &str) -> Result<(), ttrpc::Error> {
    let stream = UnixStream::connect(socket).await.map_err(|e| ttrpc::Error::Socket(e.to_string()))?;
    let task = TaskClient::new(Client::new(Socket::from(stream)));
    let context = || context::with_duration(LIVE_SHIM);
    let id = id.to_owned();
    let kill =
        KillRequest { id: id.clone(), signal: libc::SIGKILL.unsigned_abs(), all: true, ..Default::default() };
    // Most often it is gone already, which is as good.
    let _ = task.kill(context(), &kill).await;
    let _ = task.wait(context(), &WaitRequest { id: id.clone(), ..Default::default() }).await;
    let _ = task.delete(context(), &DeleteRequest { id: id.clone(), ..Default::default() }).await;
    task.shutdown(context(), &ShutdownRequest { id, ..Default::default() }).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    /// What a shim that was killed has left: bundle, pod directory, socket, and hooks that it owes.
    struct Crash {
        root: TempDir,
        args: Args,
    }

    impl Crash {
        fn new(annotations: &serde_json::Value) -> Self {
            let root = tempfile::tempdir().unwrap();
            let path = |name: &str| root.path().join(name);
            for dir in ["bundle", "pod"] {
                fs::create_dir(path(dir)).unwrap();
            }
            let script = format!("touch {}", path("poststop").display());
            let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
            let spec =
                json!({"ociVersion": "1.2.0", "annotations": annotations, "hooks": {"poststop": [hook]}});
            fs::write(path("bundle/config.json"), spec.to_string()).unwrap();
            fs::write(path("bundle").join(bundle::HOOKS_PENDING), "").unwrap();
            fs::write(path("bundle").join(bundle::ADDRESS), address::to_address(&path("socket"))).unwrap();
            std::os::unix::fs::symlink(path("pod"), path("bundle").join(bundle::POD_LINK)).unwrap();
            let args = Args { id: "c1".into(), namespace: "n".into(), ..Args::default() };
            drop(UnixListener::bind(path("socket")).unwrap());
            Self { root, args }
        }

        async fn clean_up(&self) {
            let bundle = self.root.path().join("bundle");
            let spec = bundle::read_spec(&bundle).unwrap();
            let pod = bundle::pod_id(spec.as_ref(), "c1").unwrap();
            Remains { args: &self.args, bundle, spec, pod }.clean_up().await;
        }

        /// Which of the pod's directory, its socket and the mark of its hooks exist.
        fn left(&self) -> [bool; 3] {
            ["pod", "socket", "poststop"].map(|name| self.root.path().join(name).exists())
        }
    }

    #[tokio::test]
    async fn a_dead_shims_pod_is_removed_and_its_hooks_are_run_once() {
        let crash = Crash::new(&json!({}));
        crash.clean_up().await;
        assert_eq!(crash.left(), [false, false, true]);
        fs::remove_file(crash.root.path().join("poststop")).unwrap();
        crash.clean_up().await;
        assert_eq!(crash.left(), [false, false, false]);
    }

    #[tokio::test]
    async fn a_member_leaves_the_pod_alone() {
        let annotations = json!({
            "io.kubernetes.cri.sandbox-id": "p1",
            "io.kubernetes.cri.container-type": "container",
        });
        let crash = Crash::new(&annotations);
        crash.clean_up().await;
        assert_eq!(crash.left(), [true, true, true]);
    }

    #[tokio::test]
    async fn a_sandbox_stays_while_its_shim_serves() {
        let annotations = json!({
            "io.kubernetes.cri.sandbox-id": "c1",
            "io.kubernetes.cri.container-type": "sandbox",
        });
        let crash = Crash::new(&annotations);
        let socket = crash.root.path().join("socket");
        fs::remove_file(&socket).unwrap();
        let _shim = UnixListener::bind(&socket).unwrap();
        crash.clean_up().await;
        assert_eq!(crash.left(), [true, true, false]);
    }
}
