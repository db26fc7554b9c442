//! `monohull exec`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use clap::Args;
use monohull_runtime::control::{Answer, Connection, Request};
use monohull_runtime::settings::Settings;
use monohull_runtime::state::{self, PodState};
use oci_spec::runtime as oci;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::failure::Failure;
use crate::run::OWN_FAILURE;
use crate::session::{Event, Signals};
use crate::terminal::{self, Raw};
use crate::{ps, streams, trace};

/// Run a command in a container of a pod, past its engine
///
/// For pods whose engine is away or in the way, and for those of `monohull run`. The command runs in the container, with its user,
/// environment and rights. Only in pods that were made with `debug_exec = true` in the settings. There is no shell in the guest
/// outside of containers: it has the agent's program and no other.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  the command's own; 128 + n if signal n killed it
  125  Monohull failed, or the pod does not allow it, and said so on standard error

Examples:
  monohull exec web -- ps
  monohull exec -it web -- sh
  monohull exec k8s-pod --container 77ab -- cat /etc/resolv.conf")]
pub(crate) struct Arguments {
    /// The pod's id, or the beginning of it
    pod: String,
    /// Look only in this containerd namespace
    #[arg(long)]
    namespace: Option<String>,
    /// The container, or the beginning of its id [default: the pod's only one]
    #[arg(long, short)]
    container: Option<String>,
    /// Give the command our standard input
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs the command.
pub(crate) fn exec(arguments: &Arguments) -> Result<u8, Failure> {
    run(arguments).map_err(|failure| failure.with_code(OWN_FAILURE))
}

fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let settings = Settings::load().map_err(|e| Failure::of("cannot load the settings", &e))?;
    let pods = ps::list_of(&settings)?;
    let pod = trace::find(&pods, &arguments.pod, arguments.namespace.as_deref())?;
    let (container, bundle) = container_of(pod, arguments.container.as_deref())?;
    let process = process(bundle, &arguments.command, arguments.tty)?;
    let request = Request::Exec {
        container: container.to_owned(),
        process: Box::new(process),
        stdin: arguments.interactive,
        size: terminal::size().filter(|_| arguments.tty),
    };
    let dir = state::pod_dir(&settings.state_dir, &pod.namespace, &pod.id)
        .map_err(|e| Failure::of("cannot find the pod", &e))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::of("cannot start the event loop", &e))?;
    let result = runtime.block_on(converse(&dir, &pod.id, &request, arguments.tty));
    // A read from a terminal must not keep us.
    runtime.shutdown_background();
    result
}

/// The container with that id, or the only one whose id begins so; without one, the pod's only container.
fn container_of<'a>(pod: &'a PodState, id: Option<&str>) -> Result<(&'a str, Option<&'a Path>), Failure> {
    let mut found: Vec<_> =
        pod.containers.iter().filter(|container| container.id.starts_with(id.unwrap_or_default())).collect();
    if found.iter().any(|container| Some(container.id.as_str()) == id) {
        found.retain(|container| Some(container.id.as_str()) == id);
    }
    match found.as_slice() {
        [container] => Ok((&container.id, container.bundle.as_deref())),
        [] => Err(Failure::new(format!("pod {} has no such container: `monohull ps` lists them", pod.id))),
        several => {
            let ids: Vec<_> = several.iter().map(|container| container.id.as_str()).collect();
            Err(Failure::new(format!("which container? --container {}", ids.join(", or "))))
        }
    }
}

/// The process: as the container's own, if its configuration can be read, with other arguments.
fn process(bundle: Option<&Path>, command: &[String], tty: bool) -> Result<oci::Process, Failure> {
    let text = bundle.and_then(|bundle| std::fs::read(bundle.join("config.json")).ok());
    let spec: Option<Value> = text.and_then(|text| serde_json::from_slice(&text).ok());
    let own = spec.and_then(|mut spec| spec.get_mut("process").map(Value::take));
    let plain = || {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": [path]})
    };
    let mut process = own.filter(Value::is_object).unwrap_or_else(plain);
    if let Some(process) = process.as_object_mut() {
        process.insert("args".into(), command.into());
        process.insert("terminal".into(), tty.into());
        process.remove("consoleSize");
    }
    serde_json::from_value(process).map_err(|e| Failure::of("cannot use the container's configuration", &e))
}

async fn converse(dir: &Path, pod: &str, request: &Request, tty: bool) -> Result<u8, Failure> {
    let mut signals = Signals::new().map_err(|e| Failure::of("cannot catch signals", &e))?;
    let lost = |e: std::io::Error| Failure::of("lost the pod's owner", &e);
    let connection = Connection::open(dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(format!(
            "pod {pod} does not allow it: set `debug_exec = true` in /etc/monohull/config.toml; pods made after that do"
        )),
        _ => Failure::of(&format!("cannot reach the owner of pod {pod}"), &error),
    })?;
    connection.send(request, &[]).await.map_err(lost)?;
    let fds = match connection.receive().await.map_err(lost)? {
        Some((Answer::Started, fds)) => fds,
        Some((Answer::Refused(reason), _)) => return Err(Failure::new(format!("refused: {reason}"))),
        _ => return Err(Failure::new("the pod's owner has closed the connection")),
    };
    let raw = match streams::on_terminal() {
        (true, _) if tty => Some(
            Raw::enter(std::io::stdin().as_fd())
                .map_err(|e| Failure::of("cannot set the terminal up", &e))?,
        ),
        _ => None,
    };
    let with_stdin = matches!(request, Request::Exec { stdin: true, .. });
    let mut outputs =
        join(fds, with_stdin).map_err(|e| Failure::of("cannot use the command's streams", &e))?;
    let code = wait(&connection, &mut signals).await.map_err(lost)?;
    // The last output may still be on its way; whoever does not want to wait for it sends another signal.
    tokio::select! {
        () = async { while outputs.join_next().await.is_some() {} } => (),
        _ = signals.terminating() => (),
    }
    drop(raw);
    code.ok_or_else(|| Failure::new("the pod has ended")).map(|code| u8::try_from(code).unwrap_or(u8::MAX))
}

/// Joins the command's streams with ours. Returns who copies its output.
fn join(fds: Vec<OwnedFd>, stdin: bool) -> std::io::Result<JoinSet<()>> {
    let mut fds = fds.into_iter().map(|fd| {
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    });
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

/// Waits for the command's end and passes signals on; `None` when the pod has ended first.
async fn wait(connection: &Connection, signals: &mut Signals) -> std::io::Result<Option<u32>> {
    loop {
        let event = tokio::select! {
            answer = connection.receive() => match answer? {
                Some((Answer::Exited(code), _)) => return Ok(Some(code)),
                Some(_) => continue,
                None => return Ok(None),
            },
            event = signals.next() => event,
        };
        let request = match event {
            Event::Resized => terminal::size().map(|(columns, rows)| Request::Resize(columns, rows)),
            Event::Terminating(number) => Some(Request::Signal(number.unsigned_abs())),
        };
        if let Some(request) = request {
            connection.send(&request, &[]).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use monohull_runtime::state::{ContainerState, ProcessId, VERSION};

    use super::*;

    fn pod(containers: &[&str]) -> PodState {
        let container = |id: &&str| ContainerState { id: (*id).to_owned(), bundle: None };
        PodState {
            version: VERSION,
            id: "p1".into(),
            namespace: String::new(),
            kubernetes: None,
            owner: ProcessId { pid: 1, start_time: 1 },
            vmm: None,
            template: None,
            fs_server: None,
            containers: containers.iter().map(container).collect(),
            created_at: 0,
            memory_mib: 1,
            cpus: 1,
            timeline: Vec::new(),
        }
    }

    #[test]
    fn a_container_is_named_when_there_are_several() {
        let several = pod(&["ab", "abc", "d"]);
        let found = |id| container_of(&several, id).map(|(id, _)| id.to_owned());
        assert_eq!(found(Some("ab")).unwrap(), "ab");
        assert_eq!(found(Some("d")).unwrap(), "d");
        assert!(found(None).unwrap_err().message.contains("--container ab, or abc, or d"));
        assert!(found(Some("x")).is_err());
        assert_eq!(container_of(&pod(&["c1"]), None).unwrap().0, "c1");
    }

    #[test]
    fn a_command_has_its_containers_rights_and_its_own_arguments() {
        let dir = tempfile::tempdir().unwrap();
        let spec = json!({"process": {"user": {"uid": 7, "gid": 8}, "cwd": "/x", "args": ["own"], "env": ["A=b"],
            "capabilities": {"bounding": ["CAP_KILL"]}, "noNewPrivileges": true}});
        std::fs::write(dir.path().join("config.json"), spec.to_string()).unwrap();
        let process = super::process(Some(dir.path()), &["ps".into()], true).unwrap();
        assert_eq!((process.user().uid(), process.args().clone().unwrap()), (7, vec!["ps".to_owned()]));
        assert_eq!((process.terminal(), process.no_new_privileges()), (Some(true), Some(true)));
        let plain = super::process(None, &["ps".into()], false).unwrap();
        assert_eq!((plain.user().uid(), plain.cwd().to_str()), (0, Some("/")));
    }
}
