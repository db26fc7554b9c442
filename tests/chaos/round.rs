//! A round: a pod's life, with one fault in it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use monohull_tests::watch::Watch;
use serde_json::Value;

use crate::client::{Client, Ended};
use crate::events::Events;
use crate::fault::Active;
use crate::host::{Host, STATE, log_of};
use crate::plan::{Operation, Plan, Sign, Subject};

/// What a call may take. The longest deadline on the way is that of a guest's boot, 60 s.
const CALL: Duration = Duration::from_secs(90);
/// How long after a call its later signs may come.
const AFTERMATH: Duration = Duration::from_secs(10);
/// How long a container may take to say something, which a stopped process keeps back for 6 s.
const OUTPUT: Duration = Duration::from_secs(30);
/// How long after SIGTERM comes SIGKILL: the kubelet's default.
const TERMINATION: Duration = Duration::from_secs(30);
/// How long clients try again to remove a pod, as the kubelet does …
const REMOVAL: Duration = Duration::from_secs(45);
/// … and from when on without the fault.
const LIFTING: Duration = Duration::from_secs(8);
/// The exit code of a process that was killed.
const KILLED: i32 = 137;
/// Name of a round's exec.
const EXEC: &str = "exec";

/// Why a pod's life was not as planned.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Somebody said so.
    Told(String),
    /// Nobody said anything for too long.
    Stuck(String),
    /// The harness can't go on.
    Broken(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// A pod and its fault.
pub(crate) struct Round<'a> {
    host: &'a mut Host,
    plan: &'a Plan,
    id: String,
    watch: Watch,
    active: Option<Active>,
}

impl<'a> Round<'a> {
    pub(crate) fn new(host: &'a mut Host, plan: &'a Plan) -> io::Result<Self> {
        host.begin_round();
        let id = format!("chaos-{}-{}", plan.seed, plan.round);
        let bundles = host.engine.bundles();
        let (bundle, pods) = (bundles.join(&id), PathBuf::from(STATE).join("default"));
        let pod = pods.join(&id);
        let logs = log_of(&id).parent().map(PathBuf::from).unwrap_or_default();
        let watch = Watch::new(vec![bundles, bundle, STATE.into(), pods, pod, logs])?;
        Ok(Self { host, plan, id, watch, active: None })
    }

    /// Whether there was something for the fault to meet; `None` when its step did not come.
    pub(crate) fn met(&self) -> Option<bool> {
        self.active.as_ref().map(|active| active.met)
    }

    /// The pod's life, up to the first trouble.
    pub(crate) fn live(&mut self) -> Result<(), Trouble> {
        let run = self.host.run_command(&self.id, self.plan.root);
        self.call(Some(Operation::Run), run)?;
        self.wait_for_output()?;
        if self.plan.at().operation == Operation::Exec {
            let words = ["task", "exec", "--exec-id", EXEC, &self.id, "echo", "hello"];
            let exec = self.host.engine.ctr(&words);
            let ended = self.call(Some(Operation::Exec), exec)?;
            if ended.stdout != "hello\n" {
                return Err(Trouble::Told(format!("exec: its output is {:?}", ended.stdout)));
            }
        }
        let kill = self.host.engine.ctr(&["task", "kill", "--signal", "SIGTERM", &self.id]);
        self.call(Some(Operation::Stop), kill)?;
        if !self.wait_for_exit(TERMINATION)? {
            // As every engine does it. A guest that is starved does not get to it before.
            let kill = self.host.engine.ctr(&["task", "kill", "--signal", "SIGKILL", &self.id]);
            self.call(None, kill)?;
            if !self.wait_for_exit(CALL)? {
                let words = format!("no end is announced {} s after SIGKILL", CALL.as_secs());
                return Err(Trouble::Stuck(words));
            }
        }
        let delete = self.host.engine.ctr(&["task", "delete", &self.id]);
        let ended = self.call(Some(Operation::Delete), delete)?;
        if !ended.stderr.contains("non-zero exit code 7") {
            return Err(Trouble::Told(format!("its end: {}", ended.stderr.trim())));
        }
        Ok(())
    }

    /// Removes what is there of the pod, its task too if `running`, and lifts the fault if that is in the way.
    pub(crate) fn remove(&mut self, running: bool) -> Result<(), Trouble> {
        let begun = Instant::now();
        loop {
            let mut words = String::new();
            if running {
                let delete = self.host.engine.ctr(&["task", "delete", "--force", &self.id]);
                words = self.run(delete)?.stderr;
            }
            let delete = self.host.engine.ctr(&["container", "delete", &self.id]);
            let container = self.run(delete)?;
            if container.status.success() || container.stderr.contains("not found") {
                break;
            }
            if begun.elapsed() > REMOVAL {
                let words = format!("the pod can't be removed: {words}{}", container.stderr);
                return Err(Trouble::Stuck(words));
            }
            if begun.elapsed() > LIFTING {
                self.lift()?;
            }
        }
        self.lift()?;
        let _ = fs::remove_file(log_of(&self.id));
        // Nobody else's are the FIFOs that ctr has made for an exec and leaves when its call fails.
        let _ = fs::remove_dir_all("/run/containerd/fifo");
        Ok(())
    }

    /// The pod's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Ends the fault, if it is there.
    pub(crate) fn lift(&mut self) -> io::Result<()> {
        self.active.as_mut().map_or(Ok(()), Active::lift)
    }

    /// Makes a call, with the fault in it if its step belongs to `operation`. Refusals are troubles.
    fn call(&mut self, operation: Option<Operation>, mut command: Command) -> Result<Ended, Trouble> {
        let name = words_of(&command);
        let mut client = Client::start(&mut command)?;
        if Some(self.plan.at().operation) == operation
            && self.active.is_none()
            && self.reached(&mut client)?
        {
            // When exactly it comes is the fault's parameter.
            thread::sleep(self.plan.delay);
            self.active = Some(Active::inject(self.host, self.plan)?);
        }
        let ended = self.wait_for(client, &name)?;
        if ended.status.success() {
            return Ok(ended);
        }
        let words = match ended.stderr.trim() {
            "" => match self.host.end_of(&self.id) {
                // That is how engines say it, as of any container that is killed.
                Some(reason) if ended.status.code() == Some(KILLED) => {
                    format!("ended with {KILLED}: {reason}")
                }
                _ => format!("{}, without a word", ended.status),
            },
            words => words.into(),
        };
        Err(Trouble::Told(format!("{name}: {words}")))
    }

    /// A command to its end, whatever that is.
    fn run(&mut self, mut command: Command) -> Result<Ended, Trouble> {
        let name = words_of(&command);
        let client = Client::start(&mut command)?;
        self.wait_for(client, &name)
    }

    fn wait_for(&mut self, mut client: Client, name: &str) -> Result<Ended, Trouble> {
        let end = client.end().try_clone_to_owned()?;
        let ended = wait(&mut self.active, &self.watch, CALL, &[end.as_fd()], || client.status().is_some())?;
        let left = client.finish()?;
        if ended {
            Ok(left)
        } else {
            Err(Trouble::Stuck(format!("{name}: no end after {} s", CALL.as_secs())))
        }
    }

    /// Waits for the step of the fault; false when it does not come any more.
    fn reached(&mut self, client: &mut Client) -> Result<bool, Trouble> {
        let sign = self.plan.at().sign;
        let (id, bundles) = (self.id.clone(), self.host.engine.bundles());
        let events = &mut self.host.events;
        let told = events.descriptor().try_clone_to_owned()?;
        let end = client.end().try_clone_to_owned()?;
        let either = |events: &mut Events, client: &mut Client| {
            shows(sign, &id, &bundles, events) || client.status().is_some()
        };
        let deadline = Instant::now() + CALL;
        self.watch.until(deadline, &[told.as_fd(), end.as_fd()], || either(events, client))?;
        if client.status().is_some_and(|status| !status.success()) {
            return Ok(shows(sign, &id, &bundles, events));
        }
        let deadline = Instant::now() + AFTERMATH;
        Ok(self.watch.until(deadline, &[told.as_fd()], || shows(sign, &id, &bundles, events))?)
    }

    /// Waits for the container's first word: before, it does not catch the signal that is to stop it. One that has ended, or that
    /// has lost what it needs to say something, has none; what follows tells.
    fn wait_for_output(&mut self) -> Result<(), Trouble> {
        let told: OwnedFd = self.host.events.descriptor().try_clone_to_owned()?;
        let (id, bundles, events) = (&self.id, self.host.engine.bundles(), &mut self.host.events);
        let ended = Sign::Event("/tasks/exit", Subject::Container);
        let condition = || [Sign::Output, ended].into_iter().any(|sign| shows(sign, id, &bundles, events));
        wait(&mut self.active, &self.watch, OUTPUT, &[told.as_fd()], condition)?;
        Ok(())
    }

    /// Waits for the container's end to be announced; whether it was.
    fn wait_for_exit(&mut self, limit: Duration) -> Result<bool, Trouble> {
        let told: OwnedFd = self.host.events.descriptor().try_clone_to_owned()?;
        let (id, events) = (&self.id, &mut self.host.events);
        let ended = || events.tell("/tasks/exit", "id", id);
        Ok(wait(&mut self.active, &self.watch, limit, &[told.as_fd()], ended)?)
    }
}

/// Waits for `condition`, no longer than `limit`, and lets what the fault has stopped go on when its time is over.
fn wait(
    active: &mut Option<Active>,
    watch: &Watch,
    limit: Duration,
    others: &[BorrowedFd<'_>],
    mut condition: impl FnMut() -> bool,
) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    if let Some(active) = active
        && let Some(until) = active.until
    {
        if watch.until(until.min(deadline), others, &mut condition)? {
            return Ok(true);
        }
        active.go_on();
    }
    watch.until(deadline, others, condition)
}

/// Whether a step has been reached.
fn shows(sign: Sign, id: &str, bundles: &std::path::Path, events: &mut Events) -> bool {
    let pod = PathBuf::from(STATE).join("default").join(id);
    match sign {
        Sign::Asked => true,
        Sign::InBundle(name) => bundles.join(id).join(name).exists(),
        Sign::InPod(name) => pod.join(name).exists(),
        Sign::State(says) => fs::read(pod.join("state.json"))
            .is_ok_and(|text| serde_json::from_slice::<Value>(&text).is_ok_and(|state| says(&state))),
        // Only this event is about both kinds of process.
        Sign::Event(topic @ "/tasks/exit", Subject::Container) => events.tell(topic, "id", id),
        Sign::Event(topic @ "/tasks/exit", Subject::Exec) => events.tell(topic, "id", EXEC),
        Sign::Event(topic, Subject::Container) => events.tell(topic, "container_id", id),
        Sign::Event(topic, Subject::Exec) => events.tell(topic, "exec_id", EXEC),
        Sign::Output => fs::metadata(log_of(id)).is_ok_and(|log| log.len() > 0),
        Sign::NoPod => !pod.exists(),
        Sign::NoBundle => !bundles.join(id).exists(),
    }
}

/// The words of a command that tell what it does.
fn words_of(command: &Command) -> String {
    let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
    // After the options of every call.
    words.skip_while(|word| word != "default").skip(1).take(2).collect::<Vec<_>>().join(" ")
}
