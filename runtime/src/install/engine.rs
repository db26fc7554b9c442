//! The container engines of a host, and what each has to be told of Monohull.

mod config;
mod containerd;
mod rancher;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::root::Root;
use super::{InstallError, Options};

/// Where containerd looks for its configuration.
pub(super) const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";
/// microk8s makes containerd's configuration of it.
const MICROK8S_TEMPLATE: &str = "/var/snap/microk8s/current/args/containerd-template.toml";
const CRIO_DIRECTORY: &str = "/etc/crio";
const CRIO_DROP_IN: &str = "/etc/crio/crio.conf.d/50-monohull.conf";
/// One source of truth: the examples for those who do it by hand.
const CRIO: &str = include_str!("../../../deploy/crio-monohull.conf");
/// Where the example for CRI-O says that the shim is.
const CRIO_SHIM: &str = "/usr/local/bin/containerd-shim-monohull-v2";
/// Where programs are looked for.
const BINS: [&str; 5] = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/bin", "/opt/bin"];

/// A kind of engine.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// containerd, which Docker, nerdctl and Kubernetes use.
    Containerd,
    /// CRI-O.
    Crio,
    /// k3s, with a containerd of its own.
    K3s,
    /// RKE2, likewise.
    Rke2,
    /// microk8s, likewise.
    Microk8s,
}

/// A file that an engine should find.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) path: PathBuf,
    pub(super) what: What,
    pub(super) engine: Kind,
}

/// What it should have.
#[derive(Debug)]
pub(super) enum What {
    /// This, and nothing else.
    File(String),
    /// These lines, among others'.
    Lines {
        /// What a new file starts with.
        initial: String,
        lines: String,
    },
}

/// What the engines of a host want.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) wanted: Vec<Wanted>,
    /// Files that are right as they are, and why.
    pub(super) left: Vec<(PathBuf, String)>,
    pub(super) notes: Vec<String>,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Containerd, Self::Crio, Self::K3s, Self::Rke2, Self::Microk8s];

    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Crio => "crio",
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
            Self::Microk8s => "microk8s",
        }
    }

    /// systemd's units of it, of which a host runs one.
    pub fn units(self) -> &'static [&'static str] {
        match self {
            Self::Containerd => &["containerd"],
            Self::Crio => &["crio"],
            Self::K3s => &["k3s", "k3s-agent"],
            Self::Rke2 => &["rke2-server", "rke2-agent"],
            Self::Microk8s => &["snap.microk8s.daemon-containerd"],
        }
    }

    fn is_on(self, root: &Root, options: &Options) -> Result<bool, InstallError> {
        let directory = |path: &str| root.is_directory(Path::new(path));
        Ok(match self {
            Self::Containerd => {
                root.exists(&options.containerd_config)? || program(root, "containerd")?.is_some()
            }
            Self::Crio => directory(CRIO_DIRECTORY) || program(root, "crio")?.is_some(),
            Self::K3s => directory(rancher::K3S) || program(root, "k3s")?.is_some(),
            Self::Rke2 => directory(rancher::RKE2) || program(root, "rke2")?.is_some(),
            Self::Microk8s => root.exists(Path::new(MICROK8S_TEMPLATE))?,
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The path of an engine's program.
fn program(root: &Root, name: &str) -> Result<Option<PathBuf>, InstallError> {
    for bin in BINS {
        let path = Path::new(bin).join(name);
        if root.exists(&path)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// What the engines want that `options` asks for, or that are there.
pub(super) fn find(root: &Root, options: &Options, shim: &Path) -> Result<Found, InstallError> {
    let mut found = Found::default();
    let mut any = false;
    for kind in Kind::ALL {
        let asked = options.engines.as_ref().map(|engines| engines.contains(&kind));
        if asked == Some(false) {
            continue;
        }
        if !kind.is_on(root, options)? {
            if asked == Some(true) {
                return Err(InstallError::NoEngine(kind.name(), root.path().to_owned()));
            }
            continue;
        }
        any = true;
        match kind {
            Kind::Containerd => containerd::find(root, &options.containerd_config, &mut found)?,
            Kind::Crio => found.wanted.push(crio(shim)),
            Kind::K3s => rancher::find(root, kind, rancher::K3S, &mut found)?,
            Kind::Rke2 => rancher::find(root, kind, rancher::RKE2, &mut found)?,
            Kind::Microk8s => containerd::microk8s(root, Path::new(MICROK8S_TEMPLATE), &mut found)?,
        }
    }
    if !any && options.engines.is_none() {
        let names = Kind::ALL.map(Kind::name).join(", ");
        found.notes.push(format!("no engine is here to be configured: neither of {names}"));
    }
    Ok(found)
}

fn crio(shim: &Path) -> Wanted {
    let text = CRIO.replace(CRIO_SHIM, &shim.display().to_string());
    Wanted { path: CRIO_DROP_IN.into(), what: What::File(text), engine: Kind::Crio }
}
