//! The VM as its owner sees it: a child process, a socket of messages, and a task that owns both.
//!
//! The VMM is untrusted once its guest runs: what it sends is bounded, a breach of the protocol ends it, and nothing
//! here waits for it without a deadline or its process descriptor.

mod owner;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use monohull_vmm::api::{Action, Done, ExitReason, FdRole, VmConfig};
use monohull_vmm::client::{SpawnError, Vmm};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::log::{Part, Words};
use crate::patience;
use crate::settings::Settings;
use crate::sockets::Sockets;
use crate::tally::Tally;
use crate::timeline::Timeline;
use owner::Owner;

/// Within what the VMM answers a request ([`patience`]); only one that is stuck or hostile needs longer.
const REPLY_DEADLINE: Duration = Duration::from_secs(30);
/// The same for a snapshot, which is as large as the guest's memory.
const SAVE_DEADLINE: Duration = Duration::from_secs(600);
/// Turns a guest that does not take the memory it was given into an error.
const MEMORY_DEADLINE: Duration = Duration::from_secs(30);
/// A kernel takes half a minute to report all that is free (`page_reporting_cycle` in mm/page_reporting.c).
const REPORTS_DEADLINE: Duration = Duration::from_secs(60);

/// Why something could not be done with a VM.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A file that the VM is made of can't be opened.
    #[error("cannot open {what} {path}{hint}")]
    Open {
        /// "the guest kernel", …
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What to do about it; begins with a separator.
        hint: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The VMM does not start.
    #[error("the pod's VM is not started (`vmm` in the settings names its program)")]
    Spawn(#[source] SpawnError),
    /// The VMM's socket or process can't be watched.
    #[error("cannot watch over the VMM")]
    Watch(#[source] io::Error),
    /// The VMM could not do what it was asked for.
    #[error("the VMM cannot {what}: {reason}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// The VMM's words.
        reason: String,
    },
    /// The guest has not taken the memory it was given.
    #[error("the guest takes only {plugged_mib} of the {wanted_mib} MiB of memory that its containers need")]
    Memory {
        /// What it should have.
        wanted_mib: u32,
        /// What it has.
        plugged_mib: u32,
    },
    /// The VMM has not answered in time.
    #[error("the VMM does not answer to \"{0}\"")]
    Timeout(&'static str),
    /// The VM is gone.
    #[error("the VM has ended: {0}")]
    Ended(ExitReason),
}

/// How and when a VM ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) reason: ExitReason,
    pub(crate) at: SystemTime,
}

/// What the owner task is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Ask the VMM for something.
    Request { action: Action, fds: Vec<OwnedFd>, reply: oneshot::Sender<Result<Done, String>> },
    /// Kill the VMM; this is why.
    Kill(ExitReason),
}

/// A VM. Dropping it kills the VMM.
#[derive(Debug)]
pub(crate) struct Vm {
    commands: mpsc::UnboundedSender<Command>,
    watch: VmWatch,
    /// Memory in MiB that the guest has been given, and that it has taken.
    given: AtomicU32,
    taken: watch::Receiver<u32>,
    /// Whether the guest has reported the free memory that was asked for.
    reported: watch::Receiver<bool>,
}

/// Sees the end of a VM, and can bring it about, without keeping it alive.
#[derive(Clone, Debug)]
pub(crate) struct VmWatch {
    ended: watch::Receiver<Option<Ended>>,
    commands: mpsc::WeakUnboundedSender<Command>,
    /// The VMM's.
    pid: i32,
}

/// The descriptors a VM is made of.
#[derive(Debug)]
pub(crate) struct VmFiles(Vec<(FdRole, OwnedFd)>);

impl VmFiles {
    /// Opens what the settings name, for a VM that goes on where one was `saved` (its state and memory) or else boots. `vsock`
    /// is the listening socket of the guest's vsock.
    pub(crate) fn open(
        settings: &Settings,
        vsock: OwnedFd,
        console: Option<&Path>,
        saved: Option<(&File, &File)>,
    ) -> Result<Self, VmError> {
        const KVM_HINT: &str = ": is virtualization switched on (firmware, kvm module, nested virtualization)? \
                                `monohull check` tells";
        // Unit tests run a fake VMM, also where there is no KVM.
        let kvm = Path::new(if cfg!(test) { "/dev/null" } else { "/dev/kvm" });
        let open = |what, path: &Path, hint, write| {
            let file = File::options().read(true).write(write).open(path);
            file.map(OwnedFd::from).map_err(|source| VmError::Open {
                what,
                path: path.to_owned(),
                hint,
                source,
            })
        };
        let mut files =
            vec![(FdRole::Kvm, open("the KVM device", kvm, KVM_HINT, true)?), (FdRole::Vsock, vsock)];
        if let Some((state, memory)) = saved {
            let copy = |file: &File| file.try_clone().map(OwnedFd::from).map_err(VmError::Watch);
            files.extend([(FdRole::State, copy(state)?), (FdRole::Memory, copy(memory)?)]);
        } else {
            let (kernel, initramfs) = (" (`kernel` in the settings)", " (`initramfs` in the settings)");
            files.extend([
                (FdRole::Kernel, open("the guest kernel", &settings.kernel, kernel, false)?),
                (FdRole::Initramfs, open("the initramfs", &settings.initramfs, initramfs, false)?),
            ]);
        }
        if let Some(path) = console {
            let file = File::options().append(true).create(true).open(path);
            let error =
                |source| VmError::Open { what: "the console file", path: path.to_owned(), hint: "", source };
            files.push((FdRole::Console, file.map_err(error)?.into()));
        }
        Ok(Self(files))
    }

    /// In the order in which they are sent.
    pub(crate) fn roles(&self) -> Vec<FdRole> {
        self.0.iter().map(|(role, _)| *role).collect()
    }
}

impl Vm {
    /// Starts the VMM and the VM, which boots or goes on from a template, as `files` have it. The receiver gets the agent's
    /// connection, which means that the agent serves; it fails when the VM ends before. `sockets` serves the guest's
    /// connections to those of the host. The VM's end is counted in `tally`, if it is a pod's.
    ///
    /// The VMM dies with the calling *thread*, which must live as long as the pod.
    pub(crate) fn start(
        vmm: &Path,
        config: &VmConfig,
        files: VmFiles,
        sockets: Arc<Sockets>,
        timeline: Timeline,
        tally: Option<Tally>,
    ) -> Result<(Self, oneshot::Receiver<UnixStream>), VmError> {
        let fds: Vec<_> = files.0.iter().map(|(_, fd)| fd.as_fd()).collect();
        let (words, stderr) = Words::new(Part::Vmm).map_err(VmError::Watch)?;
        let process = Vmm::spawn(vmm, config, &fds, stderr.into()).map_err(VmError::Spawn)?;
        timeline.mark("vmm started");
        let pid = i32::try_from(process.pid()).map_err(|e| VmError::Watch(io::Error::other(e)))?;
        let (commands, command_receiver) = mpsc::unbounded_channel();
        let (ended_sender, ended) = watch::channel(None);
        let (agent, ready) = oneshot::channel();
        let (memory, taken) = watch::channel(0);
        let (reports, reported) = watch::channel(false);
        let expected = owner::Expected::new(agent, sockets, memory, reports, timeline);
        let owner = Owner::new((process, words), command_receiver, ended_sender, expected, tally);
        tokio::spawn(owner.map_err(VmError::Watch)?.run());
        let watch = VmWatch { ended, commands: commands.downgrade(), pid };
        Ok((Self { commands, watch, given: AtomicU32::new(0), taken, reported }, ready))
    }

    /// Host pid of the VMM.
    pub(crate) fn pid(&self) -> i32 {
        self.watch.pid
    }

    /// For those who must see the VM's end.
    pub(crate) fn watch(&self) -> VmWatch {
        self.watch.clone()
    }

    /// Appends a file or block device to the image disk: its first sector and its length in sectors.
    pub(crate) async fn add_extent(&self, file: OwnedFd, read_only: bool) -> Result<(u64, u64), VmError> {
        let what = "add a file to the image disk";
        match self.request(what, Action::AddExtent { read_only }, vec![file]).await? {
            Done::ExtentAdded { start, sectors } => Ok((start, sectors)),
            _ => Err(VmError::Refused { what, reason: "it answered without an extent".into() }),
        }
    }

    /// Gives network interface `nic` a tap device and brings its link up.
    pub(crate) async fn attach_nic(&self, nic: u8, tap: OwnedFd) -> Result<(), VmError> {
        self.request("attach a network interface", Action::AttachNic { nic }, vec![tap]).await.map(drop)
    }

    /// Connects the guest's device for host directories to the fs server: the VMM's end of the socket, and the memory.
    pub(crate) async fn attach_fs(&self, channel: OwnedFd, memory: OwnedFd) -> Result<(), VmError> {
        self.request("attach the fs server", Action::AttachFs, vec![channel, memory]).await.map(drop)
    }

    /// Gives the guest memory beyond what it has booted with, so many MiB in all, or asks it to give some back.
    pub(crate) async fn set_memory(&self, mib: u32) -> Result<(), VmError> {
        self.given.store(mib, Ordering::Relaxed);
        self.request("change the guest's memory", Action::SetMemory { mib }, Vec::new()).await.map(drop)
    }

    /// Waits until the guest has taken the memory it was given, `mib` or less: it may have been asked for some since.
    pub(crate) async fn memory_taken(&self, mib: u32) -> Result<(), VmError> {
        let mut taken = self.taken.clone();
        let enough = taken.wait_for(|taken| *taken >= mib.min(self.given.load(Ordering::Relaxed)));
        let waited = patience::within(MEMORY_DEADLINE, Some(self.pid()), enough).await;
        match waited.map(|taken| taken.is_ok()) {
            Some(true) => Ok(()),
            Some(false) => Err(VmError::Ended(self.watch.ended().await.reason)),
            None => Err(VmError::Memory { wanted_mib: mib, plugged_mib: *self.taken.borrow() }),
        }
    }

    /// Waits until the guest has reported so much of its memory free.
    pub(crate) async fn free_reported(&self, mib: u32) -> Result<(), VmError> {
        let what = "wait for the guest's free memory";
        self.request(what, Action::AwaitReports { mib }, Vec::new()).await?;
        let mut reported = self.reported.clone();
        let all = reported.wait_for(|reported| *reported);
        let waited = patience::unasked(REPORTS_DEADLINE, self.pid(), all).await;
        match waited.map(|reported| reported.is_ok()) {
            Some(true) => Ok(()),
            Some(false) => Err(VmError::Ended(self.watch.ended().await.reason)),
            None => Err(VmError::Timeout(what)),
        }
    }

    /// Stops the guest's CPUs.
    pub(crate) async fn pause(&self) -> Result<(), VmError> {
        self.request("pause", Action::Pause, Vec::new()).await.map(drop)
    }

    /// Lets the CPUs of a paused guest run on.
    pub(crate) async fn resume(&self) -> Result<(), VmError> {
        self.request("resume", Action::Resume, Vec::new()).await.map(drop)
    }

    /// Gives a copy that has not run yet the file of an extent that its original had.
    pub(crate) async fn restore_extent(
        &self,
        file: OwnedFd,
        start: u64,
        read_only: bool,
    ) -> Result<(), VmError> {
        let action = Action::RestoreExtent { start, read_only };
        self.request("restore a file of the image disk", action, vec![file]).await.map(drop)
    }

    /// Saves the paused VM into empty files. Returns how many bytes they hold.
    pub(crate) async fn snapshot(&self, state: OwnedFd, memory: OwnedFd) -> Result<u64, VmError> {
        let what = "save the VM";
        match self.request(what, Action::Snapshot, vec![state, memory]).await? {
            Done::Saved(saved) => Ok(saved.state_bytes.saturating_add(saved.memory_bytes)),
            _ => Err(VmError::Refused { what, reason: "it answered without a size".into() }),
        }
    }

    /// Ends the VM without the guest's help; queued disk writes are flushed.
    pub(crate) async fn stop(&self) -> Result<(), VmError> {
        self.request("stop", Action::Stop, Vec::new()).await.map(drop)
    }

    async fn request(&self, what: &'static str, action: Action, fds: Vec<OwnedFd>) -> Result<Done, VmError> {
        let (reply, answer) = oneshot::channel();
        let deadline = if action == Action::Snapshot { SAVE_DEADLINE } else { REPLY_DEADLINE };
        // A send that fails drops `reply`: the answer below then says that the VM has ended.
        let _ = self.commands.send(Command::Request { action, fds, reply });
        answered(what, answer, &self.watch, deadline).await
    }
}

/// An extent's removal that is under way.
#[derive(Debug)]
pub(crate) struct Removal {
    answer: oneshot::Receiver<Result<Done, String>>,
    vm: VmWatch,
}

impl Removal {
    /// Waits for the VMM's answer: the extent's file is closed then.
    pub(crate) async fn done(self) -> Result<(), VmError> {
        let what = "remove a file from the image disk";
        answered(what, self.answer, &self.vm, REPLY_DEADLINE).await.map(drop)
    }
}

/// Waits for the answer to a request.
async fn answered(
    what: &'static str,
    answer: oneshot::Receiver<Result<Done, String>>,
    vm: &VmWatch,
    deadline: Duration,
) -> Result<Done, VmError> {
    match patience::within(deadline, Some(vm.pid), answer).await {
        Some(Ok(Ok(done))) => Ok(done),
        Some(Ok(Err(reason))) => Err(VmError::Refused { what, reason }),
        Some(Err(_)) => Err(VmError::Ended(vm.ended().await.reason)),
        None => Err(VmError::Timeout(what)),
    }
}

impl VmWatch {
    /// Asks the VMM to take the extent that begins at sector `start` off the image disk; nothing in a VM that has ended.
    pub(crate) fn remove_extent(&self, start: u64) -> Option<Removal> {
        let commands = self.commands.upgrade()?;
        let (reply, answer) = oneshot::channel();
        let action = Action::RemoveExtent { start };
        commands.send(Command::Request { action, fds: Vec::new(), reply }).ok()?;
        Some(Removal { answer, vm: self.clone() })
    }

    /// Waits for the end of the VM. Its process is gone then.
    pub(crate) async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        let value = ended.wait_for(Option::is_some).await.ok().and_then(|value| value.clone());
        // The owner task always says why, unless the whole runtime is being torn down.
        value.unwrap_or_else(|| Ended {
            reason: ExitReason::Failure("its owner was torn down".into()),
            at: SystemTime::now(),
        })
    }

    /// Whether the VM has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Kills the VM. The first reason counts.
    pub(crate) fn kill(&self, reason: ExitReason) {
        if let Some(commands) = self.commands.upgrade() {
            // Fails only when the VM has ended.
            let _ = commands.send(Command::Kill(reason));
        }
    }
}
