//! containerd: a drop-in where one is read and does no harm, else lines in the configuration.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::config::{Config, Form};
use super::{Found, Kind, Wanted, What, program};
use crate::install::InstallError;
use crate::install::root::Root;

/// The name of a drop-in.
const DROP_IN: &str = "monohull.toml";
const RUNTIME: &str = "monohull";
/// containerd 1.x has this runtime when its configuration names none, and no longer as soon as it names another.
const RUNC_V2: &str = "\
# containerd 1.x has it by default, but not beside another one.
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
  runtime_type = \"io.containerd.runc.v2\"
";

/// containerd as distributions have it.
pub(super) fn find(root: &Root, path: &Path, found: &mut Found) -> Result<(), InstallError> {
    let path = root.resolve(path)?;
    match Config::read(root, &path)? {
        None => found.wanted.push(new_file(root, path)?),
        Some(config) => existing(root, &config, Kind::Containerd, found)?,
    }
    Ok(())
}

/// microk8s, which makes the configuration of a template that is TOML but for its variables. It imports nothing.
pub(super) fn microk8s(root: &Root, path: &Path, found: &mut Found) -> Result<(), InstallError> {
    let path = root.resolve(path)?;
    match Config::read(root, &path)? {
        Some(config) => existing(root, &config, Kind::Microk8s, found),
        None => Ok(()),
    }
}

/// Without a configuration, containerd has its defaults; it has them as well for all that a file does not name.
fn new_file(root: &Root, path: PathBuf) -> Result<Wanted, InstallError> {
    let form = match release(root)? {
        Some(2..) => Form::V3,
        // Every release reads it.
        _ => Form::V2,
    };
    let (initial, lines) = match form {
        Form::V2 => ("version = 2\n", format!("{}{RUNC_V2}", form.section())),
        Form::V3 => ("version = 3\n", form.section().to_owned()),
    };
    Ok(Wanted { path, what: What::Lines { initial: initial.into(), lines }, engine: Kind::Containerd })
}

/// The first number of the version of the host's containerd. That of an image can't be asked.
fn release(root: &Root) -> Result<Option<u32>, InstallError> {
    let Some(program) = program(root, "containerd")?.filter(|_| root.is_the_hosts()) else { return Ok(None) };
    let output = Command::new(program).arg("--version").output();
    Ok(output.ok().and_then(|output| release_of(&String::from_utf8_lossy(&output.stdout))))
}

/// "containerd github.com/containerd/containerd/v2 v2.3.4 0a1b2c", "containerd containerd.io 1.6.20 0a1b2c".
fn release_of(output: &str) -> Option<u32> {
    output.split_whitespace().nth(2)?.trim_start_matches('v').split('.').next()?.parse().ok()
}

fn existing(root: &Root, config: &Config, engine: Kind, found: &mut Found) -> Result<(), InstallError> {
    if config.disables_cri() {
        let path = config.path().to_owned();
        found.left.push((
            path,
            "turns the CRI plugin off, so there is no Kubernetes to tell of a runtime class".into(),
        ));
        return Ok(());
    }
    match config.version() {
        2 => v2(root, config, engine, found),
        3 | 4 => v3(root, config, engine, found),
        version => Err(InstallError::ConfigVersion { path: config.path().to_owned(), version }),
    }
}

/// Of version 2: containerd 1.x takes a plugin's settings as a whole from the last file that has any, so the lines have to go
/// into that one.
fn v2(root: &Root, main: &Config, engine: Kind, found: &mut Found) -> Result<(), InstallError> {
    let form = Form::V2;
    let imported = main.imported(root)?;
    let all = || std::iter::once(main).chain(&imported);
    if let Some(config) = all().find(|config| defines(config, form)) {
        found.left.push(already(config));
        return Ok(());
    }
    let config = all()
        .find(|config| config.has_lines)
        .or_else(|| all().rfind(|config| config.has(form.plugin())))
        .unwrap_or(main);
    let runc = if config.runtimes(form).is_empty() { RUNC_V2 } else { "" };
    found.wanted.push(lines(config, format!("{}{runc}", form.section()), engine)?);
    Ok(())
}

/// Of version 3 or 4: containerd 2.x merges the settings of all files.
fn v3(root: &Root, main: &Config, engine: Kind, found: &mut Found) -> Result<(), InstallError> {
    let form = Form::V3;
    let drop_in = main.place_for(DROP_IN).filter(|_| !main.has_lines);
    let imported = main.imported(root)?;
    let others = imported.iter().filter(|config| Some(config.path()) != drop_in.as_deref());
    if let Some(config) = std::iter::once(main).chain(others).find(|config| defines(config, form)) {
        found.left.push(already(config));
        return Ok(());
    }
    found.wanted.push(match drop_in {
        Some(path) => Wanted { path, what: What::File(form.drop_in().into()), engine },
        None => lines(main, form.section().into(), engine)?,
    });
    Ok(())
}

fn defines(config: &Config, form: Form) -> bool {
    config.runtimes(form).iter().any(|name| name == RUNTIME)
}

fn already(config: &Config) -> (PathBuf, String) {
    (
        config.path().to_owned(),
        format!("defines the runtime '{RUNTIME}' already, and not by 'monohull install'"),
    )
}

fn lines(config: &Config, lines: String, engine: Kind) -> Result<Wanted, InstallError> {
    let path = config.path().to_owned();
    if !config.takes(&lines) {
        return Err(InstallError::Inline(path));
    }
    Ok(Wanted { path, what: What::Lines { initial: String::new(), lines }, engine })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_told_by_what_containerd_says() {
        assert_eq!(release_of("containerd github.com/containerd/containerd/v2 v2.3.4 abc\n"), Some(2));
        assert_eq!(
            release_of("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n"),
            Some(1)
        );
        assert_eq!(release_of("nonsense"), None);
    }
}
