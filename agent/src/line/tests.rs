use tokio::io::DuplexStream;

use super::*;

/// A line, its plug, the switch, and the host's end of its first connection.
fn line() -> (Line, Plug, watch::Sender<bool>, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(64);
    let frozen = watch::Sender::new(false);
    let (line, plug) = Line::new(Some(Box::new(ours)), frozen.subscribe());
    (line, plug, frozen, theirs)
}

async fn read(mut from: DuplexStream, bytes: usize) -> Vec<u8> {
    let mut all = vec![0; bytes];
    from.read_exact(&mut all).await.unwrap();
    all
}

#[tokio::test]
async fn output_goes_on_in_a_copy_where_it_was_cut_off() {
    let (mut line, plug, frozen, first) = line();
    line.write_all(b"before ").await.unwrap();
    assert_eq!(read(first, 7).await, b"before ");
    frozen.send_replace(true);
    let writing = tokio::spawn(async move {
        line.write_all(b"after").await.unwrap();
        line
    });
    tokio::task::yield_now().await;
    let (ours, second) = tokio::io::duplex(64);
    plug.send(Some(Box::new(ours))).unwrap();
    frozen.send_replace(false);
    assert_eq!(read(second, 5).await, b"after");

    // The other end has gone, and nothing comes in its place.
    let mut line = writing.await.unwrap();
    assert_eq!(line.write_all(b"lost").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_writer_that_is_held_up_goes_on_with_the_new_connection() {
    let (mut line, plug, frozen, first) = line();
    frozen.send_replace(true);
    let writing = tokio::spawn(async move { line.write_all(&[7; 100]).await });
    tokio::task::yield_now().await;
    let (ours, second) = tokio::io::duplex(64);
    plug.send(Some(Box::new(ours))).unwrap();
    assert_eq!(read(second, 36).await, [7; 36], "what the first has not taken");
    writing.await.unwrap().unwrap();
    drop(first);
}

#[tokio::test]
async fn output_that_leads_nowhere_is_dropped_until_it_leads_somewhere() {
    let (mut line, plug, _frozen, _first) = line();
    plug.send(None).unwrap();
    line.write_all(&[0; 1000]).await.unwrap();
    let (ours, second) = tokio::io::duplex(64);
    plug.send(Some(Box::new(ours))).unwrap();
    line.write_all(b"here").await.unwrap();
    assert_eq!(read(second, 4).await, b"here");
}

#[tokio::test]
async fn input_comes_from_the_new_connection_although_the_old_one_is_silent() {
    let (mut line, plug, _frozen, _silent) = line();
    let reading = tokio::spawn(async move {
        let mut buffer = Vec::new();
        line.read(&mut buffer).await.unwrap();
        (buffer, line)
    });
    tokio::task::yield_now().await;
    let (ours, mut second) = tokio::io::duplex(64);
    plug.send(Some(Box::new(ours))).unwrap();
    second.write_all(b"hello").await.unwrap();
    let (buffer, mut line) = reading.await.unwrap();
    assert_eq!(buffer, b"hello");
    plug.send(None).unwrap();
    assert_eq!(line.read(&mut Vec::new()).await.unwrap(), 0, "nobody's input is at its end");
}

#[tokio::test]
async fn an_end_in_a_frozen_pod_is_one_only_if_nothing_else_comes() {
    for other in [false, true] {
        let (mut line, plug, frozen, first) = line();
        frozen.send_replace(true);
        drop(first);
        let reading = tokio::spawn(async move { line.read(&mut Vec::new()).await.unwrap() });
        tokio::task::yield_now().await;
        let (ours, mut second) = tokio::io::duplex(64);
        second.write_all(b"more").await.unwrap();
        if other {
            plug.send(Some(Box::new(ours))).unwrap();
        }
        frozen.send_replace(false);
        assert_eq!(reading.await.unwrap(), if other { 4 } else { 0 });
    }
}
