use containerd_shim_protos::sandbox_api::ShutdownSandboxRequest;
use containerd_shim_protos::sandbox_async::SandboxClient;
use tokio::net::UnixStream;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;

use super::*;

fn event_loop() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn the_request_that_ends_the_shim_is_answered_on_a_connection_that_its_client_closes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let (starter, _start) = nix::unistd::pipe().unwrap();
    let info = PodInfo {
        id: "p1".into(),
        namespace: "n".into(),
        pid: std::process::id(),
        outside: Ok(None),
        timeline: Timeline::new(),
        log: Log::unread("p1"),
        spans: Spans::new("p1", "n", None),
    };
    // The process ends with its event loop.
    let shim =
        std::thread::spawn(move || event_loop().block_on(run(listener, starter, info, None)).map(drop));
    event_loop().block_on(async {
        let client = UnixStream::connect(&path).await.unwrap();
        let client = SandboxClient::new(Client::new(Socket::new(client)));
        let mut other = UnixStream::connect(&path).await.unwrap();
        let request = ShutdownSandboxRequest { sandbox_id: "p1".into(), ..Default::default() };
        client.shutdown_sandbox(ttrpc::context::Context::default(), &request).await.unwrap();
        assert!(!path.exists(), "nobody is to come any more");
        drop(client);
        // It waits for all.
        let read = timeout(Duration::from_millis(100), other.read_u8()).await;
        assert!(read.is_err() && !shim.is_finished(), "{read:?}");
    });
    shim.join().unwrap().unwrap();
}
