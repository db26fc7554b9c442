use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::task::yield_now;

use super::*;

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

/// A thread in a splice(2) that waits for a socket, and all the while has the mutex of a pipe.
struct Holder {
    thread: JoinHandle<rustix::io::Result<usize>>,
    /// The wait, and with it the thread, ends when this is dropped; or after 10 s, for a test that is held up itself.
    _until: mpsc::Sender<()>,
}

impl Holder {
    /// `peer` is the socket's other end.
    fn start(from: OwnedFd, to: OwnedFd, peer: UnixStream) -> Self {
        let (tell, thread_id) = mpsc::channel();
        let thread = thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
            splice(from, None, to, None, BUFFER, SpliceFlags::empty())
        });
        let state = format!("/proc/self/task/{}/syscall", thread_id.recv().unwrap());
        // A thread that runs has no number there.
        while !std::fs::read_to_string(&state).unwrap().starts_with(&format!("{} ", libc::SYS_splice)) {
            thread::yield_now();
        }
        let (until, ended) = mpsc::channel::<()>();
        thread::spawn(move || {
            let _ = ended.recv_timeout(Duration::from_secs(10));
            drop(peer);
        });
        Self { thread, _until: until }
    }

    /// Holds `pipe`, the end to write to.
    fn of_writer(pipe: OwnedFd) -> Self {
        let (silent, peer) = UnixStream::pair().unwrap();
        Self::start(silent.into(), pipe, peer)
    }

    /// Holds `pipe`, the end to read from, which is not empty.
    fn of_reader(pipe: OwnedFd) -> Self {
        let (full, peer) = UnixStream::pair().unwrap();
        full.set_nonblocking(true).unwrap();
        while (&full).write(&[0; BUFFER]).is_ok() {}
        full.set_nonblocking(false).unwrap();
        Self::start(pipe, full.into(), peer)
    }

    fn holds(&self) -> bool {
        !self.thread.is_finished()
    }
}

/// Asserts that `held` does not end, nor hold up the thread, while `holder` has the pipe, and returns what it ends with
/// after that.
async fn outlasts<T>(held: impl Future<Output = T>, holder: Holder) -> T {
    tokio::pin!(held);
    for _ in 0..100 {
        tokio::select! {
            biased;
            _ = &mut held => panic!("it went past the holder"),
            () = yield_now() => assert!(holder.holds(), "it held up its thread"),
        }
    }
    drop(holder);
    held.await
}

#[tokio::test]
async fn who_reads_is_not_held_up_by_a_process_that_keeps_the_pipe() {
    let (read, write) = pipe();
    let reader = Pipe::reader(read).unwrap();
    rustix::io::write(&write, b"x").unwrap();
    let mut buffer = Vec::new();
    outlasts(reader.read(&mut buffer), Holder::of_writer(write)).await.unwrap();
    assert_eq!(buffer, b"x");
    reader.read(&mut buffer).await.unwrap();
    assert_eq!(buffer, b"");
}

#[tokio::test]
async fn who_writes_is_not_held_up_by_a_process_that_keeps_the_pipe() {
    let (read, write) = pipe();
    rustix::io::write(&write, b"x").unwrap();
    let writer = Pipe::writer(write).unwrap();
    let holder = Holder::of_reader(read.try_clone().unwrap());
    outlasts(writer.write_all(b"yz".to_vec()), holder).await.unwrap();
    drop(writer);
    let text = spawn_blocking(|| std::io::read_to_string(File::from(read)).unwrap()).await.unwrap();
    assert!(text.ends_with("yz"), "{text:?}");
}

#[tokio::test]
async fn who_closes_is_not_held_up_by_a_process_that_keeps_the_pipe() {
    let (read, write) = pipe();
    let holder = Holder::of_writer(write);
    drop(Pipe::reader(read).unwrap());
    assert!(holder.holds());
}

#[tokio::test]
async fn what_is_more_than_a_pipe_holds_passes_whole() {
    let data: Vec<u8> = (0..4_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let (read, write) = pipe();
    let writer = Pipe::writer(write).unwrap();
    let received = spawn_blocking(|| {
        let mut all = Vec::new();
        File::from(read).read_to_end(&mut all).unwrap();
        all
    });
    writer.write_all(data.clone()).await.unwrap();
    drop(writer);
    assert_eq!(received.await.unwrap(), data);
}

#[tokio::test]
async fn an_end_that_nobody_reads_any_more_is_broken() {
    let (read, write) = pipe();
    let writer = Pipe::writer(write).unwrap();
    drop(read);
    writer.broken().await;
    assert_eq!(writer.write_all(b"x".to_vec()).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}
