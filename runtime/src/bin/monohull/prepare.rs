//! What `monohull run` does before the pod starts: the container's files, process and spec.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use monohull_runtime::image::{Image, ImageConfig, Tree};
use monohull_runtime::pod::{ContainerConfig, PodConfig};
use monohull_runtime::process::Stdio;
use monohull_runtime::rootfs::{Mount, Rootfs};
use monohull_runtime::settings::Settings;
use monohull_runtime::size::Demand;
use monohull_runtime::timeline::Timeline;

use crate::block;
use crate::failure::Failure;
use crate::process::{self, Process};
use crate::run::Arguments;
use crate::scratch::Scratch;
use crate::session::Session;
use crate::spec::{self, Bind, Container};
use crate::volume::Volume;
use crate::{streams, terminal, user};

/// Does everything up to the pod's start: makes the files and the spec. Setting `stop` makes it fail soon.
pub(crate) fn session(
    arguments: &Arguments,
    (settings, name): (Settings, String),
    timeline: Timeline,
    stop: &AtomicBool,
) -> Result<Session, Failure> {
    let scratch = Scratch::new(&settings.scratch_dir).map_err(|e| {
        Failure::of(&format!("cannot use {} for scratch files", settings.scratch_dir.display()), &e)
    })?;
    let Root { directory, rootfs, image } = root(arguments, &scratch, stop)?;
    timeline.mark("root unpacked");
    let hostname = arguments.hostname.clone().unwrap_or_else(|| name.clone());
    let process = resolve(arguments, &image, &directory, &hostname)?;
    let mut binds = match arguments.block {
        Some(_) => Vec::new(),
        None => own_files(scratch.path(), &hostname)
            .map_err(|e| Failure::of("cannot write the container's /etc/hosts", &e))?,
    };
    for volume in &arguments.volume {
        binds.push(bind(volume)?);
    }
    let spec = spec::build(&Container {
        id: &name,
        hostname: &hostname,
        rootfs: &directory,
        process: &process,
        binds: &binds,
        memory_limit: arguments.memory,
    });
    let spec = spec.map_err(|e| Failure::of("cannot make the container's OCI spec", &e))?;
    let mut demand = Demand::of_pod(&spec).map_err(|e| Failure::of("cannot size the pod", &e))?;
    demand.pod.millicpus = arguments.cpus.map(|cpus| u64::from(cpus) * 1000);
    let container = ContainerConfig {
        id: name.clone(),
        spec,
        rootfs,
        bundle: scratch.path().to_owned(),
        pids_of: None,
        stdio: stdio(process.terminal, arguments.interactive),
    };
    let pod = PodConfig {
        id: name,
        namespace: String::new(),
        kubernetes: None,
        own_pids: false,
        demand,
        hostname,
        sysctls: std::collections::HashMap::new(),
        shm_bytes: 0,
        share: arguments.block.is_none(),
        host_mounts: None,
        network: false,
        console: arguments.console.clone(),
        timeline,
        settings,
    };
    Ok(Session { pod, container, scratch })
}

/// A container's root.
struct Root {
    /// Where its files are to be read before the container has it.
    directory: PathBuf,
    rootfs: Rootfs,
    /// The image's configuration.
    image: ImageConfig,
}

fn root(arguments: &Arguments, scratch: &Scratch, stop: &AtomicBool) -> Result<Root, Failure> {
    if let Some(directory) = &arguments.rootfs {
        let failed = |e| Failure::of(&format!("cannot use --rootfs {}", directory.display()), &e);
        let directory = fs::canonicalize(directory)
            .and_then(|path| if path.is_dir() { Ok(path) } else { Err(io::ErrorKind::NotADirectory.into()) });
        let directory = directory.map_err(failed)?;
        let rootfs = match arguments.block {
            Some(block) => block::root(block, &directory, scratch.path())?,
            None => written_elsewhere(&directory, scratch.path())?,
        };
        return Ok(Root { directory, rootfs, image: ImageConfig::default() });
    }
    let path = arguments.image.as_deref().unwrap_or(Path::new(""));
    let failed = |error| Failure::of(&format!("cannot use --image {}", path.display()), &error);
    let image = Image::open(path, scratch.path()).map_err(failed)?;
    let directory = scratch.path().join("rootfs");
    make_directory(&directory)?;
    image.unpack(&directory, stop).map_err(failed)?;
    let config = image.config().clone();
    // Docker makes an image's missing working directory.
    if let Some(wanted) = arguments.workdir.as_deref().or(config.working_dir.as_deref()) {
        let made = Tree::open(&directory)
            .and_then(|tree| tree.make_directory(Path::new(wanted.trim_start_matches('/')), |_, _| Ok(())));
        made.map_err(|e| Failure::of(&format!("cannot make the working directory {wanted}"), &e))?;
    }
    let rootfs = match arguments.block {
        Some(block) => {
            block::write_hosts(&directory)
                .map_err(|e| Failure::of("cannot write the container's /etc/hosts", &e))?;
            block::root(block, &directory, scratch.path())?
        }
        None => Rootfs::Directory(directory.clone()),
    };
    Ok(Root { rootfs, directory, image: config })
}

/// A root that has the files of `directory` and leaves it as it is: what is written goes to `scratch`.
fn written_elsewhere(directory: &Path, scratch: &Path) -> Result<Rootfs, Failure> {
    if scratch.starts_with(directory) {
        let text = format!(
            "cannot use --rootfs {}: it holds `scratch_dir`, where what the command writes is kept; set that elsewhere",
            directory.display()
        );
        return Err(Failure::new(text));
    }
    let (upper, work) = (scratch.join("upper"), scratch.join("work"));
    make_directory(&upper)?;
    make_directory(&work)?;
    // The root of the view has the upper directory's owner and mode.
    let copied = fs::metadata(directory).and_then(|like| {
        std::os::unix::fs::chown(&upper, Some(like.uid()), Some(like.gid()))?;
        fs::set_permissions(&upper, like.permissions())
    });
    copied.map_err(|e| Failure::of("cannot make the container's root", &e))?;
    let escaped = directory.to_string_lossy().replace('\\', r"\\").replace(':', r"\:");
    let options = vec![
        format!("lowerdir={escaped}"),
        format!("upperdir={}", upper.display()),
        format!("workdir={}", work.display()),
    ];
    Ok(Rootfs::Mounts(vec![Mount { fstype: "overlay".into(), options, ..Mount::default() }]))
}

fn make_directory(path: &Path) -> Result<(), Failure> {
    fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(|e| Failure::of("cannot make the container's root", &e))
}

fn resolve(
    arguments: &Arguments,
    image: &ImageConfig,
    rootfs: &Path,
    hostname: &str,
) -> Result<Process, Failure> {
    let args = process::command(image, arguments.entrypoint.as_deref(), &arguments.command)
        .ok_or_else(|| Failure::new("nothing to run: the image has no command, give one after --"))?;
    let wanted = arguments.user.as_deref().or(image.user.as_deref()).unwrap_or_default();
    let tree = Tree::open(rootfs).map_err(|e| Failure::of("cannot open the container's root", &e))?;
    let user = user::resolve(wanted, &tree).map_err(|e| Failure::of("cannot tell who to run as", &e))?;
    let (stdin, stdout) = streams::on_terminal();
    let terminal = arguments.tty.unwrap_or(stdin && stdout);
    let mut defaults = vec![format!("HOSTNAME={hostname}"), format!("HOME={}", user.home)];
    if terminal {
        defaults.push("TERM=xterm".to_owned());
    }
    let env = process::environment(image, &arguments.env, &defaults, |key| std::env::var(key).ok());
    let cwd = arguments.workdir.as_ref().or(image.working_dir.as_ref());
    let cwd = cwd.filter(|cwd| !cwd.is_empty()).cloned().unwrap_or_else(|| "/".to_owned());
    Ok(Process { args, env, cwd, user, terminal })
}

/// Which streams the process gets.
pub(crate) fn stdio(terminal: bool, interactive: Option<bool>) -> Stdio {
    // Reading from a terminal without need stops a job in the background.
    let stdin = interactive.unwrap_or(terminal || !streams::on_terminal().0);
    let size = if terminal { terminal::size() } else { None };
    Stdio { terminal, stdin, stdout: true, stderr: !terminal, size }
}

/// The files that docker puts into every container.
fn own_files(directory: &Path, hostname: &str) -> io::Result<Vec<Bind>> {
    let hosts =
        format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback {hostname}\n");
    let file = |name: &str, contents: String| {
        let source = directory.join(name);
        fs::write(&source, contents)?;
        fs::set_permissions(&source, fs::Permissions::from_mode(0o644))?;
        Ok::<_, io::Error>(Bind { source, destination: format!("/etc/{name}"), read_only: false })
    };
    Ok(vec![file("hosts", hosts)?, file("hostname", format!("{hostname}\n"))?])
}

fn bind(volume: &Volume) -> Result<Bind, Failure> {
    let source = fs::canonicalize(&volume.source).map_err(|e| {
        Failure::of(&format!("cannot use --volume {}: make it first", volume.source.display()), &e)
    })?;
    Ok(Bind { source, destination: volume.destination.clone(), read_only: volume.read_only })
}

/// Twelve hexadecimal digits, as docker's short ids.
pub(crate) fn random_name() -> io::Result<String> {
    let mut bytes = [0; 6];
    let count = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if count < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_are_short() {
        let (one, two) = (random_name().unwrap(), random_name().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.len(), 12);
    }
}
