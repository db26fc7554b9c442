//! k3s and RKE2: they write the configuration of their containerd at every start, from a template if there is one.

use std::path::Path;

use super::config::{Config, Form};
use super::{Found, Kind, Wanted, What};
use crate::install::InstallError;
use crate::install::root::Root;

/// Where k3s has its files.
pub(super) const K3S: &str = "/var/lib/rancher/k3s";
/// Where RKE2 has its files.
pub(super) const RKE2: &str = "/var/lib/rancher/rke2";
/// Below those, the generated configuration and its templates.
const CONFIG: &str = "agent/etc/containerd/config.toml";
const TEMPLATE_V2: &str = "agent/etc/containerd/config.toml.tmpl";
const TEMPLATE_V3: &str = "agent/etc/containerd/config-v3.toml.tmpl";
/// What a template starts with that only adds to the one that is built in.
const BASE: &str = "{{ template \"base\" . }}\n";

/// What `kind`, which has its files in `directory`, wants.
pub(super) fn find(root: &Root, kind: Kind, directory: &str, found: &mut Found) -> Result<(), InstallError> {
    let in_directory = |name: &str| Path::new(directory).join(name);
    let generated = Config::read(root, &root.resolve(&in_directory(CONFIG))?)?;
    let has = |name: &str| root.exists(&in_directory(name));
    // What its containerd has read tells which one it is; else the templates do.
    let form = match generated.as_ref().map(Config::version) {
        Some(2) => Form::V2,
        Some(3..) => Form::V3,
        _ if has(TEMPLATE_V3)? => Form::V3,
        _ if has(TEMPLATE_V2)? => Form::V2,
        _ => {
            found.notes.push(format!(
                "{kind} has never run here, so nothing tells which containerd it has: start it once, and run 'monohull install' again"
            ));
            return Ok(());
        }
    };
    let template = match form {
        Form::V2 => in_directory(TEMPLATE_V2),
        Form::V3 => in_directory(TEMPLATE_V3),
    };
    let template = root.resolve(&template)?;
    let text = root.text(&template)?.unwrap_or_default();
    if crate::install::lines::split(&text).rest.contains("runtimes.monohull]") {
        found
            .left
            .push((template, "defines the runtime 'monohull' already, and not by 'monohull install'".into()));
        return Ok(());
    }
    let what = What::Lines { initial: BASE.into(), lines: form.section().into() };
    found.wanted.push(Wanted { path: template, what, engine: kind });
    Ok(())
}
