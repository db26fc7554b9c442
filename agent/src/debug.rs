//! Programs of the host that run in the guest itself, for whoever debugs it: outside of all containers, with the processes and
//! mounts of all of them in sight.
//!
//! The guest has no program but the agent, so each comes over a stream, and is a file in memory for as long as it runs. Its process
//! has a cgroup of its own: with it ends whatever it has started.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use monohull_protocol::agent::{DebugRequest, Stdio};
use rustix::pty::{OpenptFlags, openpt, unlockpt};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use crate::cgroup::Cgroup;
use crate::error::{Doing, Error, Result, chain};
use crate::helper::{Action, Program, Request};
use crate::process::{Launcher, Process};
use crate::stdio::{ChildEnds, Connection, Connections, Pipes};
use crate::terminal::Terminal;
use crate::{kmsg, paths, sys};

/// Below it each program has a directory.
const DIRECTORY: &str = "/run/monohull/debug";
/// What each is called there: busybox looks at the name that it is called by.
const NAME: &str = "busybox";
/// Most bytes of a program.
const MAX_PROGRAM: u64 = 16 << 20;

/// Those that run, by their exec ids.
#[derive(Debug, Default)]
pub(crate) struct Debuggers(Mutex<HashMap<String, Debugger>>);

#[derive(Debug)]
enum Debugger {
    /// It is being made; the name is taken.
    Starting,
    /// The receiver's sender goes when nothing is left of it.
    Running(Arc<Process>, watch::Receiver<()>),
}

impl Debuggers {
    /// Starts one; returns its pid.
    pub(crate) async fn start(
        &self,
        launcher: &Launcher,
        request: &DebugRequest,
        program: Connection,
        connections: Connections,
    ) -> Result<u32> {
        let id = &request.exec_id;
        if !paths::valid_id(id) {
            return Err(Error::Invalid(format!("exec_id: {id:?} is not an id")));
        }
        match self.lock().entry(id.clone()) {
            Entry::Occupied(_) => return Err(Error::AlreadyExists(format!("exec {id} exists"))),
            Entry::Vacant(slot) => {
                slot.insert(Debugger::Starting);
            }
        }
        let place = Place { directory: Path::new(DIRECTORY).join(id), cgroup: Cgroup::of_debugger(id) };
        let made = async {
            place.make(program).await?;
            place.launch(launcher, request, connections).await.map(Arc::new)
        };
        match made.await {
            Ok(process) => {
                let pid = process.pid();
                let (left, gone) = watch::channel(());
                self.lock().insert(id.clone(), Debugger::Running(Arc::clone(&process), gone));
                tokio::spawn(async move {
                    process.wait().await;
                    place.remove().await;
                    drop(left);
                });
                Ok(pid)
            }
            Err(error) => {
                // Its name is free when nothing is left that has it.
                place.remove().await;
                self.lock().remove(id);
                Err(error)
            }
        }
    }

    /// One that has been started, until it is forgotten.
    pub(crate) fn process(&self, id: &str) -> Result<Arc<Process>> {
        match self.lock().get(id) {
            Some(Debugger::Running(process, _)) => Ok(Arc::clone(process)),
            Some(Debugger::Starting) => Err(Error::Precondition(format!("exec {id} is being created"))),
            None => Err(Error::NotFound(format!("the guest has no exec {id}"))),
        }
    }

    /// Forgets one that has ended.
    pub(crate) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Whether any has not ended.
    pub(crate) fn are_there(&self) -> bool {
        self.lock().values().any(|debugger| match debugger {
            Debugger::Starting => true,
            Debugger::Running(process, _) => process.exit().is_none(),
        })
    }

    /// Kills all, and waits until nothing that they have started is left.
    pub(crate) async fn stop(&self) {
        let running = |(id, debugger): (&String, &Debugger)| match debugger {
            Debugger::Starting => None,
            Debugger::Running(_, gone) => Some((id.clone(), gone.clone())),
        };
        let all: Vec<_> = self.lock().iter().filter_map(running).collect();
        for (id, mut gone) in all {
            if let Err(error) = Cgroup::of_debugger(&id).kill() {
                kmsg::error(chain(&error));
            }
            // An error is what it waits for.
            let _ = gone.changed().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Debugger>> {
        // The map is consistent at every point where a holder could have panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one has of the guest.
struct Place {
    directory: PathBuf,
    cgroup: Cgroup,
}

impl Place {
    fn program(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    /// Makes its cgroup and its file, from what the host sends.
    async fn make(&self, program: Connection) -> Result<()> {
        let mut bytes = Vec::new();
        program.take(MAX_PROGRAM + 1).read_to_end(&mut bytes).await.doing(|| "receive the program".into())?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_PROGRAM {
            return Err(Error::Invalid(format!("program: it has more than {MAX_PROGRAM} bytes")));
        }
        let path = self.program();
        let written = fs::create_dir_all(&self.directory)
            .and_then(|()| fs::write(&path, bytes))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)));
        written.doing(|| format!("write {}", path.display()))?;
        let cgroup = self.cgroup.directory();
        fs::create_dir(&cgroup).doing(|| format!("make {}", cgroup.display()))
    }

    async fn launch(
        &self,
        launcher: &Launcher,
        request: &DebugRequest,
        connections: Connections,
    ) -> Result<Process> {
        let stdio = request.stdio.get_or_default();
        let action = Action::Become(Program {
            path: self.program(),
            args: request.args.clone(),
            env: self.environment(&request.env),
            cgroup: self.cgroup.directory(),
            terminal: stdio.terminal,
        });
        let (streams, ends) = Streams::new(stdio, connections)?;
        let state = launcher.state.clone();
        let request = Request { container: String::new(), state, console: None, action };
        let launch = launcher.reaper.launch();
        let mut replies = launcher.spawn(&request, ends)?;
        let child = launch.claim(replies.created().await?)?;
        drop(launch);
        replies.executed().await?;
        let joined = match streams {
            Streams::Pipes(pipes) => (None, pipes.join()),
            Streams::Terminal(terminal, connections) => {
                let plugs = terminal.join(connections);
                (Some(terminal), plugs)
            }
        };
        let cgroup = self.cgroup.clone();
        Ok(Process::new(child, joined, move || {
            if let Err(error) = cgroup.kill() {
                kmsg::error(chain(&error));
            }
            0
        }))
    }

    fn environment(&self, given: &[String]) -> Vec<(String, String)> {
        let own = [("PATH", self.directory.display().to_string()), ("HOME", "/".into())];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        let given = given.iter().filter_map(|variable| variable.split_once('='));
        own.chain(given.map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
    }

    /// Leaves nothing of it.
    async fn remove(&self) {
        if let Err(error) = self.cgroup.remove().await {
            kmsg::error(chain(&error));
        }
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                kmsg::error(format!("remove {}: {error}", self.directory.display()));
            }
            _ => {}
        }
    }
}

/// Our side of its streams, before it runs.
enum Streams {
    Pipes(Pipes),
    Terminal(Terminal, Connections),
}

impl Streams {
    fn new(stdio: &Stdio, connections: Connections) -> Result<(Self, ChildEnds)> {
        if !stdio.terminal {
            let (pipes, ends) = Pipes::new(connections, 0)?;
            return Ok((Self::Pipes(pipes), ends));
        }
        let what = || "make a terminal".to_owned();
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).doing(what)?;
        unlockpt(&master).doing(what)?;
        let stdin = sys::terminal_peer(&master).doing(what)?;
        let (stdout, stderr) = (stdin.try_clone().doing(what)?, stdin.try_clone().doing(what)?);
        let terminal = Terminal::new(master, 0)?;
        terminal.resize(stdio.width, stdio.height)?;
        Ok((Self::Terminal(terminal, connections), ChildEnds { stdin, stdout, stderr }))
    }
}
