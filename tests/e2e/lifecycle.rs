//! Pods outlive their engine, and streams their clients.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use monohull_tests::engine::{Client, Engine, IMAGE, MONOHULL, finish};

use crate::Case;
use crate::containers::id;
use crate::processes::sleeper;

pub(crate) const CASES: &[Case] = &[
    ("input_stays_open_when_its_writer_goes", detached_input),
    ("a_pod_outlives_a_crash_of_containerd", crash),
    ("an_exit_while_containerd_is_away_is_known_when_it_is_back", exit_while_away),
];

/// A container whose standard streams are FIFOs in the test's hands.
struct Detached {
    name: String,
    directory: PathBuf,
    /// Ends the input when it does, so it is kept.
    _client: Child,
}

impl Detached {
    fn start(engine: &Engine, script: &str) -> Self {
        let name = id("detached");
        let directory = engine.scratch().join(&name);
        std::fs::create_dir(&directory).expect("a directory for FIFOs");
        let fifos = directory.display().to_string();
        let args = [
            "run",
            "--detach",
            "--runtime",
            MONOHULL,
            "--fifo-dir",
            &fifos,
            IMAGE,
            &name,
            "sh",
            "-c",
            script,
        ];
        let mut client = engine
            .ctr(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ctr starts");
        let mut complaint = String::new();
        let _ = client.stderr.take().map(|mut stderr| stderr.read_to_string(&mut complaint));
        // Not wait(): that would close its input.
        let started = finish(&mut engine.ctr(&["task", "list"])).text();
        assert!(started.contains(&name), "{complaint}");
        Self { name, directory, _client: client }
    }

    fn fifo(&self, stream: &str) -> PathBuf {
        let mut places = vec![self.directory.clone()];
        while let Some(place) = places.pop() {
            for entry in std::fs::read_dir(place).expect("the FIFOs' directory").flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    places.push(entry.path());
                } else if entry.file_name().to_string_lossy().ends_with(stream) {
                    return entry.path();
                }
            }
        }
        panic!("there is no FIFO for {stream} in {}", self.directory.display());
    }

    /// One client that writes and goes.
    fn write(&self, line: &str) {
        let open = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(self.fifo("stdin"));
        open.and_then(|mut fifo| writeln!(fifo, "{line}")).expect("the shim reads the input");
    }

    fn output(&self) -> impl Iterator<Item = String> + use<> {
        BufReader::new(File::open(self.fifo("stdout")).expect("its output")).lines().map_while(Result::ok)
    }
}

fn detached_input(engine: &Engine) {
    let container = Detached::start(engine, "while read line; do echo got $line; done; echo end");
    let mut output = container.output();
    for line in ["one", "two", "three"] {
        container.write(line);
        assert_eq!(output.next().as_deref(), Some(format!("got {line}").as_str()));
    }
    remove(engine, &container.name);
}

fn remove(engine: &Engine, name: &str) {
    let _ = finish(&mut engine.ctr(&["task", "delete", "--force", name]));
    let _ = finish(&mut engine.ctr(&["container", "delete", name]));
}

fn crash(engine: &Engine) {
    let mut engine = Engine::start(engine.client()).expect("an engine of its own");
    let name = sleeper(&engine, "crash");
    let container = Detached::start(&engine, "while read line; do echo got $line; done");
    let mut output = container.output();
    engine.crash().expect("containerd dies");
    container.write("away");
    assert_eq!(output.next().as_deref(), Some("got away"));
    engine.come_back().expect("containerd comes back");
    container.write("back");
    assert_eq!(output.next().as_deref(), Some("got back"));
    assert_eq!(engine.exec(&name, &["echo", "here"]).text(), "here\n", "{}", engine.log());
    engine.kill(&name, "SIGTERM");
    assert_eq!(engine.wait(&name), 143);
    engine.remove(&name);
    remove(&engine, &container.name);
}

fn exit_while_away(engine: &Engine) {
    let mut engine = Engine::start(engine.client()).expect("an engine of its own");
    let container = Detached::start(&engine, "read code; exit $code");
    let mut output = container.output();
    engine.crash().expect("containerd dies");
    container.write("42");
    // The output ends with the container.
    assert_eq!(output.next(), None);
    engine.come_back().expect("containerd comes back");
    let deleted = finish(&mut engine.ctr(&["task", "delete", &container.name]));
    assert!(deleted.stderr.contains("non-zero exit code 42"), "{}{}", deleted.stderr, engine.log());
    let again = engine.run(&monohull_tests::engine::Run::new(&id("after"), &["true"]));
    assert_eq!(again.code(), 0, "{}", again.stderr);
    if engine.client() == Client::Ctr {
        remove(&engine, &container.name);
    }
}
