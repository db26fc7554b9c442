//! `monohull run`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use monohull_runtime::settings::Settings;
use monohull_runtime::template;
use monohull_runtime::timeline::Timeline;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::block::{self, Block};
use crate::failure::{Failure, note};
use crate::owner::Owner;
use crate::session::{self, Session, Signals};
use crate::volume::{self, Volume};
use crate::{prepare, size, terminal, trace};

/// Docker's exit code for failures that are not the container's.
pub(crate) const OWN_FAILURE: u8 = 125;
const MIB: u64 = 1 << 20;
/// Less than this is most likely a forgotten unit.
const MIN_MEMORY: u64 = 4 * MIB;

/// Run a command in a container, in a microVM of its own
///
/// Needs no daemon, only root. The container sees the image's files (what it changes of them vanishes with it), the volumes, and a
/// network with nothing but its own loopback interface.
///
/// Without -- and a command, the image's is run; with an image that has an entrypoint, the command is the entrypoint's
/// arguments, as docker has it.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  the command's own; 128 + n if signal n killed it
  125  Monohull itself failed, and said why on standard error
  126  the command can't be executed
  127  the command was not found

Signals: INT, TERM, HUP and QUIT go to the command; the third ends the pod.

Examples:
  docker save busybox > busybox.tar
  monohull run --image busybox.tar -- echo hello
  monohull run --image busybox.tar                     (a shell, on a terminal)
  monohull run --rootfs ./tree -- /bin/sh -c 'uname -r'
  monohull run --image app/ --memory 1G --cpus 2 --env DEBUG=1 --volume ./data:/data:ro
  monohull run --image busybox.tar --timeline -- true
  monohull run --image app.tar --block --name web       (can be copied: monohull snapshot web)")]
#[command(group = clap::ArgGroup::new("root").required(true))]
pub(crate) struct Arguments {
    /// An OCI image layout (directory or tar), or an archive of `docker save`
    #[arg(long, value_name = "PATH", group = "root")]
    pub(crate) image: Option<PathBuf>,
    /// A directory with the container's files; what the command writes is kept elsewhere, and vanishes with the pod
    #[arg(long, value_name = "DIR", group = "root")]
    pub(crate) rootfs: Option<PathBuf>,
    /// Give the container its files as a file system in a file, for `monohull snapshot`; with a size, such as 1G, changes are
    /// kept in that file and not in memory
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = block::parse)]
    pub(crate) block: Option<Block>,
    /// Name of the pod and container [default: random]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// CPUs of the VM [default: from the settings]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) cpus: Option<u8>,
    /// Memory limit of the container, such as 512M; the VM gets some more for its kernel [default: from the settings]
    #[arg(long, short, value_name = "SIZE", value_parser = memory)]
    pub(crate) memory: Option<u64>,
    /// A host directory or file in the container: what either side writes the other sees; with :ro the container can't write
    #[arg(long, short, value_name = "HOST:GUEST[:ro]", value_parser = volume::parse)]
    pub(crate) volume: Vec<Volume>,
    /// An environment variable; without a value, this process's
    #[arg(long, short, value_name = "KEY[=VALUE]", value_parser = variable)]
    pub(crate) env: Vec<String>,
    /// Run this in place of the image's entrypoint and command; empty for no entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Working directory [default: the image's, or /]
    #[arg(long, short, value_name = "DIR", value_parser = absolute)]
    pub(crate) workdir: Option<String>,
    /// User, by name or number, with an optional group [default: the image's, or root]
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Host name [default: the pod's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Give the command our standard input [default: unless it is a terminal that -t does not use]
    #[arg(long, short, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) interactive: Option<bool>,
    /// Give the command a terminal [default: if standard input and output are one]
    #[arg(long, short, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) tty: Option<bool>,
    /// Append the guest's console to this file; for debugging, it slows the start down
    #[arg(long, value_name = "FILE")]
    pub(crate) console: Option<PathBuf>,
    /// Print to standard error afterwards how the start went, step by step
    #[arg(long)]
    timeline: bool,
    /// The command and its arguments
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<u8, Failure> {
    let timeline = Timeline::new();
    timeline.mark("run called");
    let print_timeline = arguments.timeline;
    let result = in_event_loop(arguments, &timeline).map_err(|failure| match failure.code {
        1 => failure.with_code(OWN_FAILURE),
        _ => failure,
    });
    if print_timeline {
        trace::render(&timeline.marks(), terminal::width()).lines().for_each(note);
    }
    result
}

/// Has a template made for the next pods if there is none.
fn make_template(settings: &Settings) {
    let Ok(own) = std::env::current_exe() else { return };
    let mut builder = Command::new(own);
    builder.args(["template", "build"]);
    template::make_in_background(settings, builder);
}

fn in_event_loop(arguments: Arguments, timeline: &Timeline) -> Result<u8, Failure> {
    let owner = Owner::begin(arguments.name.as_deref())?;
    make_template(&owner.settings);
    // A collector of spans is in the host's network.
    let network = std::fs::File::open("/proc/self/ns/net").ok().map(|file| Arc::new(OwnedFd::from(file)));
    // Before there are other threads: they inherit the namespaces.
    private_namespaces()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::of("cannot start the event loop", &e))?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new().map_err(|e| Failure::of("cannot catch signals", &e))?;
        match prepared(arguments, &owner, timeline.clone(), &mut signals).await? {
            Ok(session) => session::run(session, network, &mut signals).await,
            Err(signal) => Ok(session::killed_by(signal)),
        }
    });
    // A read from a terminal or a write to a stalled pipe must not keep us.
    runtime.shutdown_background();
    result
}

/// Prepares the session beside the event loop, because it may take long. The inner error is the signal that ended it.
async fn prepared(
    arguments: Arguments,
    owner: &Owner,
    timeline: Timeline,
    signals: &mut Signals,
) -> Result<Result<Session, i32>, Failure> {
    let named = (owner.settings.clone(), owner.name.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let mut task =
        tokio::task::spawn_blocking(move || prepare::session(&arguments, named, timeline, &stopped));
    let signal = tokio::select! {
        session = &mut task => {
            return session.map_err(|e| Failure::of("cannot prepare the container", &e))?.map(Ok);
        }
        signal = signals.terminating() => signal,
    };
    // Its end, also by success, removes the scratch directory.
    stop.store(true, Ordering::Relaxed);
    drop(task.await);
    Ok(Err(signal))
}

/// Leaves the host's mount and network namespaces, so that nothing done for the pod is seen or left there.
pub(crate) fn private_namespaces() -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).map_err(|error| {
        let fix = if rustix::process::geteuid().is_root() { "" } else { ": run it as root" };
        Failure::new(format!("cannot make private namespaces: {}{fix}", io::Error::from(error)))
    })?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|e| Failure::of("cannot make this process's mounts private", &e))
}

fn memory(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text)?;
    if bytes < MIN_MEMORY {
        return Err(format!("{bytes} bytes are too few for a container: write 512M for megabytes"));
    }
    Ok(bytes)
}

fn variable(text: &str) -> Result<String, String> {
    match text.split('=').next() {
        Some("") | None => Err("write KEY=VALUE".into()),
        Some(_) => Ok(text.to_owned()),
    }
}

fn absolute(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("it must be an absolute path".into()) }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        let command = Arguments::augment_args(clap::Command::new("run"));
        let matches = command.try_get_matches_from(std::iter::once("run").chain(line.split_whitespace()))?;
        Arguments::from_arg_matches(&matches)
    }

    #[test]
    fn command_line_is_consistent() {
        crate::Cli::command().debug_assert();
    }

    #[test]
    fn exactly_one_source_of_files_is_wanted() {
        assert!(parse("-- true").is_err());
        assert!(parse("--image a --rootfs b").is_err());
        assert!(parse("--image a").is_ok());
    }

    #[test]
    fn flags_of_docker_mean_the_same() {
        let arguments =
            parse("-it -m 64m -e A=1 -e B -v /a:/b:ro -w /w -u 1:2 --rootfs / -- sh -c -x").unwrap();
        assert_eq!((arguments.interactive, arguments.tty), (Some(true), Some(true)));
        assert_eq!(arguments.memory, Some(64 * MIB));
        assert_eq!(arguments.env, ["A=1", "B"]);
        assert_eq!(arguments.command, ["sh", "-c", "-x"]);
        assert_eq!(parse("--image a -t=false").unwrap().tty, Some(false));
        assert_eq!(parse("--image a").unwrap().tty, None);
    }

    #[test]
    fn forgotten_units_and_bad_values_are_refused() {
        for line in ["-m 512", "--cpus 0", "--cpus 1.5", "-e =x", "-w here", "-v /a"] {
            assert!(parse(&format!("--image a {line}")).is_err(), "{line}");
        }
    }
}
