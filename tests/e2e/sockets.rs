//! UNIX sockets of the host in a container.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use monohull_tests::engine::{Engine, Run, in_container};
use monohull_tests::leaks::{Census, processes};
use monohull_tests::memory::private_kib;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::Case;
use crate::containers::id;
use crate::leaks::assert_nothing_beyond;
use crate::volumes::{directory, volume};

/// One of them wants a user in the container's spec, for which `ctr run` has no option.
pub(crate) const CASES: &[Case] = &[
    ("the_hosts_server_sees_the_user_that_the_container_was_given", user),
    ("a_socket_of_the_host_answers_in_the_container", answered),
    ("many_connections_one_after_the_other_are_served", many),
    ("a_hundred_connections_at_a_time_take_little_memory", held),
    ("much_data_passes_a_socket_both_ways_and_ends_with_a_half_close", much),
    ("a_socket_has_the_hosts_mode_in_the_container", mode),
    ("a_socket_that_was_made_again_is_not_reached", made_again),
    ("a_socket_beside_the_one_that_was_mounted_is_not_reached", beside),
    ("a_container_with_a_socket_leaves_nothing", leftovers),
];

fn listen(engine: &Engine) -> (UnixListener, PathBuf) {
    let path = directory(engine).join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("chmod");
    (listener, path)
}

/// A container with the host's socket on `/run/socket`; the script finds the client as `connect`.
fn container(engine: &Engine, path: &Path, script: &str) -> Run {
    let script = format!("connect() {{ /bin/in-container connect \"$@\"; }}; {script}");
    let mut run = Run::sh(&id("socket"), &script);
    run.extra = volume(engine, path, "/run/socket", false).into();
    run.extra.extend(volume(engine, Path::new(&in_container()), "/bin/in-container", true));
    run
}

/// Serves so many connections, one after the other.
fn serve<T: Send + 'static>(
    listener: UnixListener,
    connections: usize,
    answer: impl Fn(UnixStream) -> T + Send + 'static,
) -> JoinHandle<Vec<T>> {
    let accept = move || listener.accept().expect("a connection").0;
    thread::spawn(move || (0..connections).map(|_| answer(accept())).collect())
}

fn echo(mut stream: UnixStream) {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("a question");
    stream.write_all(text.to_uppercase().as_bytes()).expect("answered");
}

fn answered(engine: &Engine) {
    let (listener, path) = listen(engine);
    let server = serve(listener, 2, echo);
    let script = "echo one | connect /run/socket; test -S /run/socket && echo two | connect /run/socket";
    let output = engine.run(&container(engine, &path, script));
    assert_eq!(output.text(), "ONE\nTWO\n", "{}{}", output.stderr, engine.log());
    server.join().expect("the server ends");
}

fn many(engine: &Engine) {
    let (listener, path) = listen(engine);
    let server = serve(listener, 100, |mut stream| {
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|read| read == 1) {
            stream.write_all(&byte).expect("answered");
        }
    });
    let output = engine.run(&container(engine, &path, "/bin/in-container ping /run/socket"));
    assert_eq!(output.code(), 0, "{}", output.stderr);
    println!("a socket of the host: {}", output.text().trim_end());
    server.join().expect("the server ends");
}

fn held(engine: &Engine) {
    const CONNECTIONS: u64 = 100;
    let (listener, path) = listen(engine);
    let server = thread::spawn(move || {
        let mut streams = Vec::new();
        let mut first = 0;
        for number in 0..CONNECTIONS {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a byte");
            if number == 0 {
                first = shim_kib();
            }
            // The next connection comes after the answer.
            stream.write_all(&byte).expect("answered");
            streams.push(stream);
        }
        (first, shim_kib())
    });
    let script = format!("/bin/in-container hold /run/socket {CONNECTIONS}");
    let output = engine.run(&container(engine, &path, &script));
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let (first, all) = server.join().expect("the server ends");
    let each = all.saturating_sub(first) / (CONNECTIONS - 1);
    println!("private memory of the shim: {first} KiB with one connection, {all} KiB with {CONNECTIONS}");
    assert!(each <= 32, "{each} KiB for each connection");
}

/// Private memory of the only shim.
fn shim_kib() -> u64 {
    let shims: Vec<_> =
        processes().into_iter().filter(|(_, name)| name == "containerd-shim-monohull-v2").collect();
    let [(pid, _)] = shims[..] else { panic!("{shims:?}") };
    private_kib(pid)
}

fn much(engine: &Engine) {
    const SIZE: usize = 16 << 20;
    let (listener, path) = listen(engine);
    let server = serve(listener, 1, |mut stream| {
        // All of it is read before the answer begins: the ends are of one direction each.
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read");
        let start = Instant::now();
        stream.write_all(&all).expect("answered");
        (all.len(), start.elapsed())
    });
    let script = "dd if=/dev/urandom of=/tmp/a bs=1M count=16 2> /dev/null; \
                  connect /run/socket < /tmp/a > /tmp/b; cmp /tmp/a /tmp/b && echo same";
    let output = engine.run(&container(engine, &path, script));
    assert_eq!(output.text(), "same\n", "{}", output.stderr);
    let answers = server.join().expect("the server ends");
    println!("{} bytes to the container through a socket in {:?}", answers[0].0, answers[0].1);
    assert_eq!(answers[0].0, SIZE);
}

fn user(engine: &Engine) {
    let (listener, path) = listen(engine);
    let server = serve(listener, 1, |stream| {
        let peer = getsockopt(&stream, PeerCredentials).expect("SO_PEERCRED");
        echo(stream);
        (peer.uid(), peer.gid())
    });
    let mut run = container(engine, &path, "echo x | connect /run/socket");
    run.user = Some("1000:1001".into());
    let output = engine.run(&run);
    assert_eq!(output.text(), "X\n", "{}", output.stderr);
    assert_eq!(server.join().expect("the server ends"), [(1000, 1001)]);
}

fn mode(engine: &Engine) {
    let (_listener, path) = listen(engine);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
    let mut run = container(engine, &path, "trap 'exit 143' TERM; sleep 1000 & wait");
    run.detach = true;
    assert_eq!(engine.run(&run).code(), 0, "{}", engine.log());
    let script = "stat -c '%u %g %a' /run/socket; echo x | /bin/in-container connect /run/socket";
    let output = engine.exec_as(&run.id, "1000:1001", &["sh", "-c", script]);
    engine.remove(&run.id);
    assert_eq!(output.text(), "0 0 640\n");
    assert!(output.stderr.contains("PermissionDenied"), "{}", output.stderr);
}

/// As with a bind mount of runc's: the mount is of the socket, not of its path.
fn made_again(engine: &Engine) {
    let (listener, path) = listen(engine);
    let mut run = container(engine, &path, "trap 'exit 143' TERM; sleep 1000 & wait");
    run.detach = true;
    assert_eq!(engine.run(&run).code(), 0, "{}", engine.log());
    drop(listener);
    fs::remove_file(&path).expect("removed");
    let again = UnixListener::bind(&path).expect("a socket");
    again.set_nonblocking(true).expect("set");
    let script = "echo x | /bin/in-container connect /run/socket; echo over";
    let output = engine.exec(&run.id, &["sh", "-c", script]);
    assert_eq!(output.text(), "over\n");
    assert_eq!(again.accept().expect_err("nobody").kind(), std::io::ErrorKind::WouldBlock);
    engine.remove(&run.id);
}

/// In a shared directory a socket is seen, but leads nowhere.
fn beside(engine: &Engine) {
    let (listener, path) = listen(engine);
    listener.set_nonblocking(true).expect("set");
    let mut run = container(engine, &path, "echo x | connect /mnt/socket");
    run.extra.extend(volume(engine, path.parent().expect("a parent"), "/mnt", false));
    let output = engine.run(&run);
    assert!(output.stderr.contains("ConnectionRefused"), "{}", output.stderr);
    assert_eq!(listener.accept().expect_err("nobody").kind(), std::io::ErrorKind::WouldBlock);
}

fn leftovers(engine: &Engine) {
    engine.run(&Run::new(&id("warm-up"), &["true"]));
    let before = Census::take(&engine.bundles());
    let (listener, path) = listen(engine);
    // A connection that nobody ends.
    let server = thread::spawn(move || listener.accept().expect("a connection"));
    let mut run =
        container(engine, &path, "connect /run/socket < /dev/zero > /dev/null & read _ < /dev/tty; wait");
    run.detach = true;
    assert_eq!(engine.run(&run).code(), 0, "{}", engine.log());
    let (_stream, _) = server.join().expect("a connection");
    engine.remove(&run.id);
    assert_nothing_beyond(engine, &before);
}
