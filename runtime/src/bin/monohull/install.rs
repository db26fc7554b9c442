//! `monohull install` and `monohull uninstall`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use monohull_runtime::install::{self, InstallError, Kind, Options, Plan, Report};
use monohull_runtime::settings::Settings;
use monohull_runtime::state::PodState;
use monohull_runtime::{log, tally, template, text, turn};

use crate::failure::{Failure, print, print_json, say};
use crate::ps;
use crate::table::Table;
use crate::terminal;

/// The word for no engine at all.
const NONE: &str = "none";

/// Install Monohull, or upgrade it, and tell the container engines of it
///
/// Copies the programs, guest kernel and initramfs of an unpacked release, unless the command is run from where it is installed,
/// and adds the runtime class `monohull` to the configuration of each engine that it finds: containerd, CRI-O, k3s, RKE2, microk8s.
/// All of it is done, or nothing. Pods that run go on, with the programs they were started with.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  0  installed, or so already      1  nothing was changed: standard error tells why      2  wrong usage

Examples:
  ./usr/local/bin/monohull install --dry-run         # from an unpacked tarball
  monohull install                                   # after 'make install' or 'apt install': the engines only
  monohull install --engine containerd --restart
  monohull install --from unpacked --root image
  monohull install --host /host --restart            # in a container that has the host's root directory at /host
  monohull install --runtime-class | kubectl apply -f -")]
pub(crate) struct Arguments {
    /// An unpacked release; by default the one that this program is in
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Install into this directory instead: that of an image
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Install on this host, from within a container that has the host's root directory here
    #[arg(long, value_name = "DIR", conflicts_with = "root")]
    host: Option<PathBuf>,
    /// Configure this engine instead of all that are found: containerd, crio, k3s, rke2, microk8s, or none. May be repeated
    #[arg(long = "engine", value_name = "ENGINE", value_parser = engine)]
    engines: Vec<EngineName>,
    /// The file that containerd is configured by
    #[arg(long, value_name = "FILE")]
    containerd_config: Option<PathBuf>,
    #[command(flatten)]
    how: How,
    /// Print the manifest of the RuntimeClass, for kubectl, and do nothing else
    #[arg(long)]
    runtime_class: bool,
}

/// Undo what `monohull install` has done
///
/// Removes what it has made and restores what it has changed. What others have changed since is kept, and the output says so.
/// Refused while there are pods. Where nothing is installed there is nothing to do.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  0  removed      1  nothing was changed: standard error tells why      2  wrong usage

Examples:
  monohull uninstall --dry-run
  monohull uninstall --restart
  monohull uninstall --root image
  monohull uninstall --host /host --restart          # in a container that has the host's root directory at /host")]
pub(crate) struct UninstallArguments {
    /// Remove it from this directory instead: that of an image
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Remove it from this host, from within a container that has the host's root directory here
    #[arg(long, value_name = "DIR", conflicts_with = "root")]
    host: Option<PathBuf>,
    /// Also while there are pods: they lose what they need to end in order
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    how: How,
}

/// How either is carried out.
#[derive(Args, Debug)]
struct How {
    /// Show what would be done, with the changes of every file, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Restart the engines whose configuration has changed
    #[arg(long)]
    restart: bool,
    /// Print an object {files: [{action, path, why, diff}], notes, restart}
    #[arg(long)]
    json: bool,
}

/// An engine, or the word for none.
#[derive(Clone, Copy, Debug)]
struct EngineName(Option<Kind>);

fn engine(text: &str) -> Result<EngineName, String> {
    if text == NONE {
        return Ok(EngineName(None));
    }
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == text);
    let names = || Kind::ALL.map(Kind::name).join(", ");
    kind.map(|kind| EngineName(Some(kind))).ok_or_else(|| format!("it is one of {}, {NONE}", names()))
}

/// Runs `monohull install`.
pub(crate) fn install(arguments: &Arguments) -> Result<u8, Failure> {
    if arguments.runtime_class {
        print(install::RUNTIME_CLASS)?;
        return Ok(0);
    }
    let defaults = Options::default();
    let engines = arguments.engines.iter().filter_map(|name| name.0).collect();
    let options = Options {
        root: arguments.host.as_ref().unwrap_or(&arguments.root).clone(),
        from: arguments.from.clone(),
        engines: if arguments.engines.is_empty() { None } else { Some(engines) },
        containerd_config: arguments.containerd_config.clone().unwrap_or(defaults.containerd_config),
    };
    let plan = install::install(&options).map_err(|e| failed("installed", &e))?;
    let host = plan.is_for_this_host() || arguments.host.is_some();
    let report = carry_out(plan, arguments.how.dry_run).map_err(|e| failed("installed", &e))?;
    tell(&report, &arguments.how)?;
    if report.changes_nothing() {
        say("all is as it should be: nothing to do");
        return Ok(0);
    }
    if arguments.how.dry_run {
        return Ok(0);
    }
    if host {
        // The programs are copied from the container: its root directory was needed until now.
        enter(arguments.host.as_deref())?;
        restart(&report, arguments.how.restart);
    }
    say("for Kubernetes, once per cluster: monohull install --runtime-class | kubectl apply -f -");
    Ok(0)
}

/// Runs `monohull uninstall`.
pub(crate) fn uninstall(arguments: &UninstallArguments) -> Result<u8, Failure> {
    enter(arguments.host.as_deref())?;
    let plan = match install::uninstall(&arguments.root) {
        Err(error @ InstallError::NotInstalled(_)) => {
            say(&format!("{}: nothing to do", text::chain(&error)));
            return Ok(0);
        }
        other => other.map_err(|e| failed("removed", &e))?,
    };
    let host = plan.is_for_this_host();
    // An image has neither pods nor templates.
    let settings = if host { Some(load()?) } else { None };
    if let Some(settings) = &settings
        && !arguments.force
        && !arguments.how.dry_run
    {
        refuse_with_pods(settings)?;
    }
    let report = carry_out(plan, arguments.how.dry_run).map_err(|e| failed("removed", &e))?;
    tell(&report, &arguments.how)?;
    if arguments.how.dry_run {
        return Ok(0);
    }
    if let Some(settings) = &settings {
        restart(&report, arguments.how.restart);
        template::remove_all(settings).map_err(|e| Failure::of("the templates are not removed", &e))?;
        log::remove_all(&settings.state_dir)
            .map_err(|e| Failure::of("the logs of ended pods are not removed", &e))?;
        tally::remove(&settings.state_dir)
            .map_err(|e| Failure::of("what was counted of pods is not removed", &e))?;
        turn::remove(&settings.state_dir)
            .map_err(|e| Failure::of("the turns of pods that start are not removed", &e))?;
        remove_empty(&settings.state_dir);
    }
    Ok(0)
}

fn failed(done: &str, error: &InstallError) -> Failure {
    Failure::new(format!("nothing is {done}: {}", text::chain(error)))
}

fn carry_out(plan: Plan, dry_run: bool) -> Result<Report, InstallError> {
    if dry_run { Ok(plan.report().clone()) } else { plan.apply() }
}

fn load() -> Result<Settings, Failure> {
    Settings::load().map_err(|e| Failure::of("cannot load the settings", &e))
}

/// Makes the root directory of the host that this container is on, if it is in one, that of this process: settings, pods and
/// `systemctl` are the host's then.
fn enter(host: Option<&Path>) -> Result<(), Failure> {
    let Some(host) = host else { return Ok(()) };
    rustix::process::chroot(host)
        .and_then(|()| rustix::process::chdir("/"))
        .map_err(|e| Failure::of(&format!("cannot make {} the root directory", host.display()), &e))
}

/// Pods need Monohull's files until they end.
fn refuse_with_pods(settings: &Settings) -> Result<(), Failure> {
    let pods = ps::list_of(settings)?;
    if pods.is_empty() {
        return Ok(());
    }
    let name = |pod: &PodState| match pod.namespace.as_str() {
        "" => pod.id.clone(),
        namespace => format!("{namespace}/{}", pod.id),
    };
    let names: Vec<_> = pods.iter().map(name).collect();
    Err(Failure::new(format!(
        "nothing is removed: pods are here ({}): end them, or move them away, or use --force",
        names.join(", ")
    )))
}

/// The empty directories of pods' namespaces, and their own. Those that pods are in, by --force, stay.
fn remove_empty(state_dir: &Path) {
    for entry in fs::read_dir(state_dir).into_iter().flatten().flatten() {
        let _ = fs::remove_dir(entry.path());
    }
    let _ = fs::remove_dir(state_dir);
}

/// Prints what is done to each file, and how texts change when nothing is done yet.
fn tell(report: &Report, how: &How) -> Result<(), Failure> {
    if how.json {
        return print_json(report);
    }
    let mut table = Table::new(&["ACTION", "FILE", ""]);
    for line in &report.files {
        table.push([line.action.name().to_owned(), line.path.display().to_string(), line.why.clone()]);
    }
    let mut output = if report.files.is_empty() { String::new() } else { table.render(terminal::width()) };
    if how.dry_run {
        for line in report.files.iter().filter(|line| !line.diff.is_empty()) {
            output.push('\n');
            output.push_str(&line.diff);
        }
    }
    print(&output)?;
    for note in &report.notes {
        say(note);
    }
    Ok(())
}

/// Restarts the engines whose configuration has changed, or says how. What runs in them goes on.
fn restart(report: &Report, now: bool) {
    for engine in &report.restart {
        let units = engine.units();
        let command = format!("systemctl try-restart {}", units.join(" "));
        if !now {
            say(&format!(
                "{engine} reads its configuration when it starts (what it runs goes on): {command}"
            ));
            continue;
        }
        // In a host's root directory that is not this process's first one, systemctl does nothing unless it is told to.
        let status =
            Command::new("systemctl").arg("try-restart").args(units).env("SYSTEMD_OFFLINE", "0").status();
        match status {
            Ok(status) if status.success() => say(&format!("{engine} is restarted")),
            Ok(status) => say(&format!("{engine} is not restarted: {command}: {status}")),
            Err(error) => say(&format!("{engine} is not restarted: {command}: {error}")),
        }
    }
}
