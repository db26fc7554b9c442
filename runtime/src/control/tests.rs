use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::*;
use crate::fake::{Host, Mode};
use crate::pod::tests::{container_config, pod_config};

fn exec(container: &str) -> Request {
    let process = serde_json::json!({"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/"});
    let process = serde_json::from_value(process).unwrap();
    Request::Exec { container: container.into(), process, stdin: false, size: None }
}

async fn start(host: &Host, allowed: bool) -> Arc<Pod> {
    let mut config = pod_config(host);
    config.settings.debug_exec = allowed;
    let (pod, process) = Pod::start_with(config, container_config(host, "c1")).await.unwrap();
    process.start().await.unwrap();
    pod
}

#[tokio::test]
async fn a_command_runs_with_its_streams_signals_and_exit_code() {
    let host = Host::new(Mode::Good);
    let pod = start(&host, true).await;
    let connection = Connection::open(&host.path().join("state/n/p1")).unwrap();
    connection.send(&exec("c1"), &[]).await.unwrap();
    let (answer, fds) = connection.receive::<Answer>().await.unwrap().unwrap();
    assert_eq!((answer, fds.len()), (Answer::Started, 2));
    let output = std::os::unix::net::UnixStream::from(fds.into_iter().next().unwrap());
    output.set_nonblocking(true).unwrap();
    let mut text = String::new();
    UnixStream::from_std(output).unwrap().read_to_string(&mut text).await.unwrap();
    connection.send(&Request::Resize(80, 24), &[]).await.unwrap();
    connection.send(&Request::Signal(15), &[]).await.unwrap();
    let (answer, _) = connection.receive::<Answer>().await.unwrap().unwrap();
    assert_eq!(answer, Answer::Exited(143));
    assert!(connection.receive::<Answer>().await.unwrap().is_none());
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_cannot_run_is_refused_with_the_reason_and_one_that_hangs_up_is_killed() {
    let host = Host::new(Mode::Good);
    let pod = start(&host, true).await;
    let dir = host.path().join("state/n/p1");
    let connection = Connection::open(&dir).unwrap();
    connection.send(&exec("none"), &[]).await.unwrap();
    let (answer, _) = connection.receive::<Answer>().await.unwrap().unwrap();
    assert_eq!(answer, Answer::Refused("container none does not exist".into()));

    let connection = Connection::open(&dir).unwrap();
    connection.send(&exec("c1"), &[]).await.unwrap();
    drop(connection.receive::<Answer>().await.unwrap());
    drop(connection);
    tokio::task::spawn_blocking(move || {
        host.wait_for("signal c1 9 all=false");
        host
    })
    .await
    .unwrap();
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn without_permission_there_is_no_socket_and_with_it_it_is_roots_and_goes_with_the_pod() {
    use std::os::unix::fs::MetadataExt;
    let host = Host::new(Mode::Good);
    let socket = host.path().join("state/n/p1").join(SOCKET);
    let pod = start(&host, false).await;
    assert!(!socket.exists());
    assert!(Connection::open(&host.path().join("state/n/p1")).is_err());
    pod.shutdown().await.unwrap();
    let pod = start(&host, true).await;
    assert_eq!(std::fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    pod.shutdown().await.unwrap();
    assert!(!socket.exists());
}
