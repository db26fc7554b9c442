//! `monohull-fs`: serves one pod's shared directories.

use std::error::Error;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use monohull_fs::jail;
use monohull_fs::relay::Relay;

const HELP: &str = "\
monohull-fs DIRECTORY serves a pod's shared directories to its virtual machine. It is started by the containerd
shim or by `monohull run`, which hand it a socket and a memory file as file descriptors 0 and 1; there is no
other way to use it.

  --version  print the version
  --help     print this";

/// What a program of Rust that panics exits with.
const PANICKED: i32 = 101;

fn main() -> ExitCode {
    exit_on_panic();
    let argument = std::env::args_os().nth(1);
    match argument.as_deref().and_then(|argument| argument.to_str()) {
        Some("--version") => println!("monohull-fs {}", env!("CARGO_PKG_VERSION")),
        Some("--help") => println!("{HELP}"),
        Some(tree) if !tree.starts_with('-') => return serve(Path::new(tree)),
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// Ends the process when any thread panics. Aborting would be another signal than SIGABRT: the first process of a process id
/// namespace gets none that it does not handle.
fn exit_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(PANICKED);
    }));
}

fn serve(tree: &Path) -> ExitCode {
    let run = || {
        jail::die_with_owner()?;
        let channel = std::io::stdin().as_fd().try_clone_to_owned()?;
        let memory = std::io::stdout().as_fd().try_clone_to_owned()?;
        let relay = Relay::new(channel, memory)?;
        relay.serve(jail::enter(tree)?, |error| fail(error))?;
        Ok::<_, Box<dyn Error>>(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error.as_ref()),
    }
}

/// Says why the server ends, and ends it.
fn fail(error: &dyn Error) -> ! {
    let mut text = format!("monohull-fs: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    eprintln!("{text}");
    std::process::exit(1)
}
