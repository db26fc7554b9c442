//! `monohull exec`.

use std::os::fd::OwnedFd;
use std::path::Path;

use clap::Args;
use monohull_runtime::exec::{Answer, Connection, Request};
use monohull_runtime::settings::Settings;
use monohull_runtime::state;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::failure::Failure;
use crate::run::OWN_FAILURE;
use crate::session::{Event, Signals, killed_by};
use crate::terminal::{self, Raw};
use crate::{ps, streams, trace};

/// Run a command in a pod's guest, outside of its containers, if the settings allow it
///
/// For when the guest itself is in question: its kernel, mounts, network, and the processes of all containers as the guest sees
/// them. For a command in a container use the engine's exec. The guest has no program but the agent, so the command is one of
/// busybox's, with the busybox that `debug_shell` of the settings names: `sh` without a command. Only in pods that were started
/// with that setting. The command ends when this ends.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  the command's own; 128 + n if signal n killed it, or this
  125  there was no command, and standard error tells why, or the pod has ended under it

Examples:
  monohull exec web                     (a shell)
  monohull exec web -- ps
  monohull exec web -- sh -c 'cat /proc/meminfo; dmesg | tail'
  monohull exec -i web -- tar xC /tmp < tools.tar")]
pub(crate) struct Arguments {
    /// The pod's id, or the beginning of it
    pod: String,
    /// Look only in this containerd namespace
    #[arg(long)]
    namespace: Option<String>,
    /// Give the command our standard input
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// A command of busybox and its arguments [default: a shell, with -i, and with -t on a terminal]
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs the command.
pub(crate) fn exec(arguments: Arguments) -> Result<u8, Failure> {
    run(arguments).map_err(|failure| failure.with_code(OWN_FAILURE))
}

fn run(arguments: Arguments) -> Result<u8, Failure> {
    let settings = Settings::load().map_err(|e| Failure::of("cannot load the settings", &e))?;
    let pods = ps::list_of(&settings)?;
    let pod = trace::find(&pods, &arguments.pod, arguments.namespace.as_deref())?;
    let dir = state::pod_dir(&settings.state_dir, &pod.namespace, &pod.id)
        .map_err(|e| Failure::of("cannot find the pod", &e))?;
    let on_terminal = streams::on_terminal() == (true, true);
    let request = request(arguments, on_terminal, std::env::var("TERM").ok(), terminal::size());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::of("cannot start the event loop", &e))?;
    let result = runtime.block_on(converse(&dir, &pod.id, &request));
    // A read from a terminal must not keep us.
    runtime.shutdown_background();
    result
}

fn request(
    arguments: Arguments,
    on_terminal: bool,
    term: Option<String>,
    size: Option<(u16, u16)>,
) -> Request {
    let shell = arguments.command.is_empty();
    let terminal = arguments.tty || (shell && on_terminal);
    Request::Run {
        args: if shell { vec!["sh".into()] } else { arguments.command },
        env: term.filter(|_| terminal).map(|term| format!("TERM={term}")).into_iter().collect(),
        stdin: arguments.interactive || shell,
        terminal,
        size: size.filter(|_| terminal),
    }
}

async fn converse(dir: &Path, pod: &str, request: &Request) -> Result<u8, Failure> {
    let mut signals = Signals::new().map_err(|e| Failure::of("cannot catch signals", &e))?;
    let connection = connect(dir, pod)?;
    let talk = async {
        let sent = connection.send(request, &[]).await;
        sent.map_err(|e| Failure::of(&format!("cannot ask the process that owns pod {pod}"), &e))?;
        connection.receive().await.map_err(|e| lost(pod, &e))
    };
    // Our end closes the connection, and that ends the command.
    let answer = tokio::select! {
        answer = talk => answer?,
        number = signals.terminating() => return Ok(killed_by(number)),
    };
    let fds = match answer {
        Some((Answer::Started, fds)) => fds,
        Some((Answer::Refused(reason), _)) => return Err(Failure::new(format!("pod {pod}: {reason}"))),
        _ => return Err(gone(pod)),
    };
    let Request::Run { stdin, terminal, .. } = *request else { return Err(gone(pod)) };
    let raw = Raw::of_stdin(terminal, stdin)?;
    let joined = join(fds, stdin);
    let mut outputs = joined.map_err(|e| Failure::of("cannot use the command's streams", &e))?;
    let code = match wait(&connection, pod, &mut signals).await? {
        Ok(code) => code,
        Err(number) => return Ok(killed_by(number)),
    };
    // The last output may still be on its way; whoever does not want to wait for it sends a signal.
    tokio::select! {
        () = async { while outputs.join_next().await.is_some() {} } => (),
        _ = signals.terminating() => (),
    }
    drop(raw);
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

fn connect(dir: &Path, pod: &str) -> Result<Connection, Failure> {
    Connection::open(dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(format!(
            "pod {pod} was started without a debug shell: set `debug_shell = \"/bin/busybox\"` (a static one) in \
             /etc/monohull/config.toml, and start the pod anew"
        )),
        _ => Failure::of(&format!("cannot reach the process that owns pod {pod}"), &error),
    })
}

fn lost(pod: &str, error: &std::io::Error) -> Failure {
    Failure::of(&format!("lost the process that owns pod {pod}"), error)
}

fn gone(pod: &str) -> Failure {
    Failure::new(format!("the process that owns pod {pod} has ended, and the pod with it"))
}

/// Joins the command's streams with ours. Returns who copies its output.
fn join(fds: Vec<OwnedFd>, stdin: bool) -> std::io::Result<JoinSet<()>> {
    let mut fds = fds.into_iter().map(|fd| UnixStream::from_std(fd.into()));
    if stdin && let Some(stream) = fds.next().transpose()? {
        tokio::spawn(streams::feed(tokio::io::stdin(), stream));
    }
    let mut outputs = JoinSet::new();
    if let Some(stream) = fds.next().transpose()? {
        outputs.spawn(streams::drain(stream, tokio::io::stdout()));
    }
    if let Some(stream) = fds.next().transpose()? {
        outputs.spawn(streams::drain(stream, tokio::io::stderr()));
    }
    Ok(outputs)
}

/// Waits for the command's end, and meanwhile passes sizes of the terminal on. The inner error is a signal that is to end us.
async fn wait(
    connection: &Connection,
    pod: &str,
    signals: &mut Signals,
) -> Result<Result<u32, i32>, Failure> {
    loop {
        let event = tokio::select! {
            answer = connection.receive() => match answer.map_err(|e| lost(pod, &e))? {
                Some((Answer::Exited(code), _)) => return Ok(Ok(code)),
                Some((Answer::Ended(reason), _)) => return Err(Failure::new(format!("pod {pod}: {reason}"))),
                _ => return Err(gone(pod)),
            },
            event = signals.next() => event,
        };
        match event {
            Event::Terminating(number) => return Ok(Err(number)),
            Event::Resized => {
                if let Some((columns, rows)) = terminal::size() {
                    let sent = connection.send(&Request::Resize(columns, rows), &[]).await;
                    sent.map_err(|e| lost(pod, &e))?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    fn asked(line: &str, on_terminal: bool) -> Request {
        let command = Arguments::augment_args(clap::Command::new("exec"));
        let matches = command.get_matches_from(std::iter::once("exec").chain(line.split_whitespace()));
        let arguments = Arguments::from_arg_matches(&matches).unwrap();
        request(arguments, on_terminal, Some("xterm".into()), Some((80, 24)))
    }

    #[test]
    fn without_a_command_it_is_a_shell_with_a_terminal_if_there_is_one() {
        let shell = |terminal: bool| Request::Run {
            args: vec!["sh".into()],
            env: terminal.then(|| "TERM=xterm".into()).into_iter().collect(),
            stdin: true,
            terminal,
            size: terminal.then_some((80, 24)),
        };
        assert_eq!(asked("web", true), shell(true));
        assert_eq!(asked("web", false), shell(false), "a script may come by a pipe");
        assert_eq!(asked("-t web", false), shell(true));
    }

    #[test]
    fn a_command_has_neither_input_nor_terminal_unless_it_is_asked_for() {
        let plain = Request::Run {
            args: vec!["ps".into(), "-o".into(), "pid".into()],
            env: Vec::new(),
            stdin: false,
            terminal: false,
            size: None,
        };
        assert_eq!(asked("web -- ps -o pid", true), plain);
        let Request::Run { stdin, terminal, .. } = asked("-it web -- vi", false) else { panic!() };
        assert!(stdin && terminal);
    }

    #[test]
    fn a_pod_without_the_setting_is_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let failure = connect(dir.path(), "p1").unwrap_err();
        assert!(failure.message.contains("`debug_shell = \"/bin/busybox\"`"), "{}", failure.message);
    }
}
