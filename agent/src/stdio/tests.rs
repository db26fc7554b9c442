use super::*;
use monohull_protocol::agent::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

fn owner() -> u32 {
    rustix::process::getuid().as_raw()
}

/// A connection and the host's end of it.
fn connection() -> (Option<Connection>, UnixStream) {
    let (guest, host) = UnixStream::pair().unwrap();
    (Some(Box::new(guest)), host)
}

#[tokio::test]
async fn a_stream_is_found_by_its_name_even_when_it_arrives_late() {
    let streams = Streams::default();
    let (guest, mut host) = UnixStream::pair().unwrap();
    let wanted = Stdio { stdout: "out".into(), ..Default::default() };
    let take = streams.take(&wanted);
    let arrive = async {
        host.write_all(b"\x03out").await.unwrap();
        streams.admit(Box::new(guest)).await.unwrap();
    };
    let (taken, ()) = tokio::join!(take, arrive);
    let taken = taken.unwrap();
    assert!(taken.stdout.is_some() && taken.stdin.is_none() && taken.stderr.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_arrives_is_an_error_that_names_it() {
    let wanted = Stdio { stdin: "nope".into(), ..Default::default() };
    let error = Streams::default().take(&wanted).await.err().unwrap();
    assert!(error.to_string().contains("stdin") && error.to_string().contains("nope"), "{error}");
}

#[tokio::test]
async fn output_written_before_a_sudden_end_is_delivered_whole() {
    let (stdout, mut host) = connection();
    let (pipes, ends) = Pipes::new(Connections { stdout, ..Default::default() }, owner()).unwrap();
    pipes.join();
    let data = vec![7; 8 << 20];
    let expected = data.clone();
    let writer = std::thread::spawn(move || {
        io::Write::write_all(&mut std::fs::File::from(ends.stdout), &data).unwrap();
    });
    let mut received = Vec::new();
    host.read_to_end(&mut received).await.unwrap();
    writer.join().unwrap();
    assert_eq!(received, expected);
}

#[tokio::test]
async fn the_end_of_the_input_reaches_the_process() {
    let (stdin, mut host) = connection();
    let (pipes, ends) = Pipes::new(Connections { stdin, ..Default::default() }, owner()).unwrap();
    pipes.join();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(ends.stdin), &mut text).unwrap();
        text
    });
    host.write_all(b"all of it").await.unwrap();
    host.shutdown().await.unwrap();
    let text = tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    assert_eq!(text, "all of it");
}

#[tokio::test]
async fn the_host_learns_that_nobody_reads_the_input() {
    let (stdin, mut host) = connection();
    let (pipes, ends) = Pipes::new(Connections { stdin, ..Default::default() }, owner()).unwrap();
    pipes.join();
    drop(ends);
    assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_process_whose_output_nobody_wants_gets_a_broken_pipe() {
    let (stdout, host) = connection();
    let (pipes, ends) = Pipes::new(Connections { stdout, ..Default::default() }, owner()).unwrap();
    pipes.join();
    drop(host);
    let broken = tokio::task::spawn_blocking(move || {
        let mut pipe = std::fs::File::from(ends.stdout);
        loop {
            if let Err(error) = io::Write::write_all(&mut pipe, &[0; 4096]) {
                return error.kind();
            }
        }
    });
    assert_eq!(broken.await.unwrap(), io::ErrorKind::BrokenPipe);
}
