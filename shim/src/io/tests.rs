use std::io::{Read, Write};
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::AsyncReadExt;

use super::*;

const OWNER: Owner<'static> = Owner { container: "c1", namespace: "n", outside: None };

fn fifo(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What a client does: open its end without waiting for the other.
fn client(path: &str, write: bool) -> File {
    OpenOptions::new().read(!write).write(write).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
}

/// The guest's ends and ours of the streams that `paths` want.
fn guest(paths: &StdioPaths) -> (Streams, Streams) {
    let wanted = paths.wanted(None);
    let pair = |wanted: bool| {
        let (ours, theirs) =
            if wanted { UnixStream::pair().map(|(a, b)| (Some(a), Some(b))).unwrap() } else { (None, None) };
        (ours, theirs)
    };
    let ((stdin, a), (stdout, b), (stderr, c)) =
        (pair(wanted.stdin), pair(wanted.stdout), pair(wanted.stderr));
    (Streams { stdin, stdout, stderr }, Streams { stdin: a, stdout: b, stderr: c })
}

async fn read_exactly(stream: &mut UnixStream, n: usize) -> String {
    let mut buffer = vec![0; n];
    stream.read_exact(&mut buffer).await.unwrap();
    String::from_utf8(buffer).unwrap()
}

#[tokio::test]
async fn stdin_survives_detach_and_ends_with_close_io() {
    let dir = tempfile::tempdir().unwrap();
    let paths = StdioPaths { stdin: fifo(dir.path(), "in"), ..Default::default() };
    let endpoints = Endpoints::open(&paths, OWNER).await.unwrap();
    let (ours, theirs) = guest(&paths);
    let mut copies = endpoints.connect(ours);
    copies.open_stdin();
    let mut stdin = theirs.stdin.unwrap();

    client(&paths.stdin, true).write_all(b"first\n").unwrap();
    assert_eq!(read_exactly(&mut stdin, 6).await, "first\n");
    // The client has gone: the process must not notice.
    let mut second = client(&paths.stdin, true);
    second.write_all(b"second\n").unwrap();
    assert_eq!(read_exactly(&mut stdin, 7).await, "second\n");

    copies.close_stdin();
    copies.close_stdin();
    second.write_all(b"last").unwrap();
    drop(second);
    let mut rest = String::new();
    stdin.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "last");
}

#[tokio::test]
async fn stdin_has_no_reader_until_the_process_can_be_told_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let paths = StdioPaths { stdin: fifo(dir.path(), "in"), ..Default::default() };
    let endpoints = Endpoints::open(&paths, OWNER).await.unwrap();
    let (ours, theirs) = guest(&paths);
    let mut copies = endpoints.connect(ours);
    let open = || OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&paths.stdin);
    assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::ENXIO));

    copies.open_stdin();
    open().unwrap().write_all(b"short").unwrap();
    copies.close_stdin();

    let mut all = String::new();
    theirs.stdin.unwrap().read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "short");
}

#[tokio::test]
async fn stdin_that_is_closed_before_the_start_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let paths = StdioPaths { stdin: fifo(dir.path(), "in"), ..Default::default() };
    let endpoints = Endpoints::open(&paths, OWNER).await.unwrap();
    let (ours, theirs) = guest(&paths);
    let mut copies = endpoints.connect(ours);
    copies.close_stdin();
    copies.open_stdin();
    let mut all = String::new();
    theirs.stdin.unwrap().read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "");
}

#[tokio::test]
async fn stdin_whose_writer_never_comes_blocks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let paths =
        StdioPaths { stdin: fifo(dir.path(), "in"), stdout: fifo(dir.path(), "out"), ..Default::default() };
    let endpoints = Endpoints::open(&paths, OWNER).await.unwrap();
    let (ours, theirs) = guest(&paths);
    let mut copies = endpoints.connect(ours);
    copies.open_stdin();
    drop(theirs);
    copies.process_ended();
    copies.finish("c1").await;
}

#[tokio::test]
async fn a_large_output_arrives_whole_and_ends_the_fifo_without_a_delete() {
    let dir = tempfile::tempdir().unwrap();
    let paths = StdioPaths { stdout: fifo(dir.path(), "out"), ..Default::default() };
    let mut reader = tokio::fs::File::from_std(client(&paths.stdout, false));
    let endpoints = Endpoints::open(&paths, OWNER).await.unwrap();
    // From here on reads may block: there is a writer.
    let blocking = OpenOptions::new().read(true).open(&paths.stdout).unwrap();
    reader = {
        drop(reader);
        tokio::fs::File::from_std(blocking)
    };
    let (ours, theirs) = guest(&paths);
    let copies = endpoints.connect(ours);

    let data: Vec<u8> = (0..8 << 20).map(|i: u32| i.to_le_bytes()[(i % 3) as usize]).collect();
    let mut stdout = theirs.stdout.unwrap();
    let expected = data.clone();
    let writer = tokio::spawn(async move { stdout.write_all(&data).await.unwrap() });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).await.unwrap();
    writer.await.unwrap();
    assert!(received == expected, "{} of {} bytes", received.len(), expected.len());
    copies.finish("c1").await;
}

#[tokio::test]
async fn output_settles_when_the_reader_has_taken_all() {
    let dir = tempfile::tempdir().unwrap();
    let paths = StdioPaths { stdout: fifo(dir.path(), "out"), ..Default::default() };
    let mut reader = client(&paths.stdout, false);
    let endpoints = Endpoints::open(&paths, OWNER).await.unwrap();
    let (ours, theirs) = guest(&paths);
    let progress = endpoints.connect(ours).progress();
    let mut stdout = theirs.stdout.unwrap();
    let read = std::thread::spawn(move || {
        let (mut buffer, mut total) = ([0; 4096], 0);
        while total < 1 << 20 {
            total += reader.read(&mut buffer).unwrap_or(0);
        }
    });
    stdout.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
    drop(stdout);
    progress.settle().await;
    assert_eq!(*progress.open.borrow(), 0);
    assert_eq!(progress.written.load(Ordering::Relaxed), 1 << 20);
    read.join().unwrap();
}

#[tokio::test(start_paused = true)]
async fn output_that_does_not_end_is_not_waited_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let paths = StdioPaths { stdout: fifo(dir.path(), "out"), ..Default::default() };
    let endpoints = Endpoints::open(&paths, OWNER).await.unwrap();
    let (ours, _theirs) = guest(&paths);
    let progress = endpoints.connect(ours).progress();
    timeout(SETTLED * 2, progress.settle()).await.expect("a process left behind keeps it open");
    assert_eq!(*progress.open.borrow(), 1);
}

#[tokio::test]
async fn output_survives_a_reader_that_goes_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let paths = StdioPaths { stdout: fifo(dir.path(), "out"), ..Default::default() };
    let first = client(&paths.stdout, false);
    let endpoints = Endpoints::open(&paths, OWNER).await.unwrap();
    let (ours, theirs) = guest(&paths);
    let copies = endpoints.connect(ours);
    drop(first);
    let mut stdout = theirs.stdout.unwrap();
    stdout.write_all(b"while away").await.unwrap();
    let mut again = OpenOptions::new().read(true).open(&paths.stdout).unwrap();
    drop(stdout);
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        again.read_to_string(&mut text).map(|_| text)
    });
    copies.finish("c1").await;
    assert_eq!(read.await.unwrap().unwrap(), "while away");
}

#[tokio::test]
async fn deleting_does_not_wait_for_a_fifo_that_nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    let paths = StdioPaths { stdout: fifo(dir.path(), "out"), ..Default::default() };
    let endpoints = Endpoints::open(&paths, OWNER).await.unwrap();
    let (ours, theirs) = guest(&paths);
    let copies = endpoints.connect(ours);
    let mut stdout = theirs.stdout.unwrap();
    let writer = tokio::spawn(async move { stdout.write_all(&vec![b'x'; 1 << 20]).await });
    timeout(STALLED / 2, copies.finish("c1")).await.expect("a broken FIFO is noticed at once");
    assert!(writer.await.unwrap().is_err(), "the process is told");
}

#[tokio::test(start_paused = true)]
async fn output_that_moves_for_ever_is_not_waited_for_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let uri = format!("file://{}", dir.path().join("log").display());
    let paths = StdioPaths { stdout: uri, ..Default::default() };
    let endpoints = Endpoints::open(&paths, OWNER).await.unwrap();
    let (ours, theirs) = guest(&paths);
    let copies = endpoints.connect(ours);
    let mut stdout = theirs.stdout.unwrap();
    let writer = tokio::spawn(async move {
        while stdout.write_all(b"x").await.is_ok() {
            tokio::time::sleep(STALLED / 5).await;
        }
    });
    copies.finish("c1").await;
    writer.await.expect("the process is told");
}

#[tokio::test]
async fn a_terminal_has_no_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let stdout = fifo(dir.path(), "out");
    let paths = StdioPaths { terminal: true, stdout, stderr: "/nonexistent".into(), ..Default::default() };
    assert!(!paths.wanted(None).stderr);
    assert!(Endpoints::open(&paths, OWNER).await.unwrap().stderr.is_none());
}

#[tokio::test]
async fn file_addresses_are_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/log");
    let uri = format!("file://{}", path.display());
    let paths = StdioPaths { stdout: uri.clone(), stderr: uri, ..Default::default() };
    for word in ["one ", "two "] {
        let endpoints = Endpoints::open(&paths, OWNER).await.unwrap();
        let (ours, theirs) = guest(&paths);
        let copies = endpoints.connect(ours);
        theirs.stdout.unwrap().write_all(word.as_bytes()).await.unwrap();
        theirs.stderr.unwrap().write_all(b"").await.unwrap();
        copies.finish("c1").await;
    }
    assert_eq!(fs::read_to_string(path).unwrap(), "one two ");
}

#[tokio::test]
async fn a_logging_program_gets_both_streams_and_its_environment() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("logger");
    let log = dir.path().join("log");
    let text = format!(
        "exec 5>&-\nread -r out <&3\nread -r err <&4\n\
         echo \"$CONTAINER_NAMESPACE/$CONTAINER_ID $* $out $err\" >{}\n",
        log.display()
    );
    fs::write(&script, text).unwrap();

    let uri = format!("binary:///bin/sh?{}=value", script.display());
    let paths = StdioPaths { stdout: uri, ..Default::default() };
    let endpoints = Endpoints::open(&paths, OWNER).await.unwrap();
    let (ours, theirs) = guest(&paths);
    let copies = endpoints.connect(ours);
    theirs.stdout.unwrap().write_all(b"out\n").await.unwrap();
    theirs.stderr.unwrap().write_all(b"err\n").await.unwrap();
    copies.finish("c1").await;
    assert_eq!(fs::read_to_string(log).unwrap(), "n/c1 value out err\n");
}

#[tokio::test]
async fn paths_that_cannot_be_used_are_named() {
    let refused = |paths| async move {
        match Endpoints::open(&paths, OWNER).await {
            Err(error) => crate::error::chain(&error),
            Ok(_) => panic!("opened"),
        }
    };
    let scheme = refused(StdioPaths { stdout: "stream://x".into(), ..Default::default() }).await;
    assert_eq!(scheme, "stdout stream://x is not supported: it is a path, file:// or binary://");
    let missing = refused(StdioPaths { stderr: "/nonexistent/e".into(), ..Default::default() }).await;
    assert_eq!(missing, "cannot open stderr /nonexistent/e: No such file or directory (os error 2)");
    let program =
        refused(StdioPaths { stdout: "binary:///nonexistent/b".into(), ..Default::default() }).await;
    assert_eq!(
        program,
        "cannot start the logging program /nonexistent/b: No such file or directory (os error 2)"
    );
}
