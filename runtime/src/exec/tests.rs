use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::*;
use crate::fake::{Host, Mode};
use crate::pod::tests::pod_config;

fn run(command: &str) -> Request {
    Request::Run { args: vec![command.into()], env: Vec::new(), stdin: false, terminal: true, size: None }
}

async fn start(host: &Host, allowed: bool) -> Arc<Pod> {
    let mut config = pod_config(host);
    if allowed {
        config.settings.debug_shell = host.path().join("image");
    }
    Pod::start(config).await.unwrap()
}

fn directory(host: &Host) -> std::path::PathBuf {
    host.path().join("state/n/p1")
}

async fn asked(host: &Host, command: &str) -> (Connection, Answer, Vec<OwnedFd>) {
    let connection = Connection::open(&directory(host)).unwrap();
    connection.send(&run(command), &[]).await.unwrap();
    let (answer, fds) = connection.receive().await.unwrap().unwrap();
    (connection, answer, fds)
}

/// Waits beside the event loop, which has to go on meanwhile.
async fn wait_for(host: &Arc<Host>, call: &'static str) {
    let host = Arc::clone(host);
    tokio::task::spawn_blocking(move || host.wait_for(call)).await.unwrap();
}

#[tokio::test]
async fn a_command_has_its_program_its_streams_and_the_size_of_its_terminal() {
    let host = Arc::new(Host::new(Mode::Good));
    let pod = start(&host, true).await;
    let (connection, answer, fds) = asked(&host, "ps").await;
    assert_eq!((answer, fds.len()), (Answer::Started, 1));
    let mut output = UnixStream::from_std(fds.into_iter().next().unwrap().into()).unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "ps");
    connection.send(&Request::Resize(80, 24), &[]).await.unwrap();
    wait_for(&host, "resize 80x24").await;
    assert!(host.calls().contains(&"debug 4096 ps".to_owned()), "{:?}", host.calls());
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_cannot_run_is_refused_with_the_reason_and_one_whose_client_goes_is_killed() {
    let host = Arc::new(Host::new(Mode::Good));
    let pod = start(&host, true).await;
    let (_, answer, _) = asked(&host, "none").await;
    assert_eq!(answer, Answer::Refused("no such program".into()));
    let (connection, answer, _) = asked(&host, "sleep").await;
    assert_eq!(answer, Answer::Started);
    drop(connection);
    wait_for(&host, "signal  9 all=false").await;
    std::fs::remove_file(host.path().join("image")).unwrap();
    let (_, answer, _) = asked(&host, "ps").await;
    assert!(matches!(&answer, Answer::Refused(reason) if reason.starts_with("debug_shell: /")), "{answer:?}");
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_command_that_is_too_long_is_told_from_a_pod_that_has_gone() {
    let host = Arc::new(Host::new(Mode::Good));
    let pod = start(&host, true).await;
    let connection = Connection::open(&directory(&host)).unwrap();
    let error = connection.send(&run(&"x".repeat(MAX_MESSAGE)), &[]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(error.to_string().starts_with("a command and its arguments"), "{error}");
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_pods_end_is_told_and_does_not_wait_for_a_command() {
    let host = Arc::new(Host::new(Mode::Good));
    let pod = start(&host, true).await;
    let (connection, answer, _) = asked(&host, "sleep").await;
    assert_eq!(answer, Answer::Started);
    pod.shutdown().await.unwrap();
    let (answer, _) = connection.receive::<Answer>().await.unwrap().unwrap();
    assert!(matches!(answer, Answer::Ended(_)), "{answer:?}");
    assert!(connection.receive::<Answer>().await.unwrap().is_none());
}

#[tokio::test]
async fn without_the_setting_there_is_no_socket_and_with_it_it_is_roots() {
    use std::os::unix::fs::MetadataExt;
    for allowed in [false, true] {
        let host = Host::new(Mode::Good);
        let pod = start(&host, allowed).await;
        let found = std::fs::metadata(directory(&host).join(SOCKET));
        assert_eq!(found.is_ok(), allowed);
        assert!(found.is_ok_and(|found| found.mode() & 0o777 == 0o600) || !allowed);
        pod.shutdown().await.unwrap();
        assert!(!directory(&host).exists());
    }
}
