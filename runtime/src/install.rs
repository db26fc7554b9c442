//! Puts Monohull on a host, or into the tree of an image, and takes it off again so that nothing is left of it.
//!
//! [`install`] and [`uninstall`] first make a plan, which changes nothing and says everything ([`Plan::report`]); [`Plan::apply`]
//! carries it out as a whole or not at all. What was done is in a [`manifest`], so that it can be undone to the byte.
//! All paths are looked up below a root directory that no symbolic link leads out of.

mod engine;
mod error;
mod install_plan;
mod lines;
mod manifest;
mod plan;
mod report;
mod root;
mod transaction;
mod tree;
mod uninstall_plan;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use engine::Kind;
pub use error::InstallError;
pub use install_plan::install;
pub use plan::Plan;
pub use report::{Action, Line, Report};
pub use uninstall_plan::uninstall;

/// The manifest of what is installed, below the root directory.
pub const MANIFEST: &str = "/var/lib/monohull/install.json";
/// RuntimeClass, for `kubectl apply`.
pub const RUNTIME_CLASS: &str = include_str!("../../deploy/runtimeclass.yaml");

/// What to install, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory to install into: `/`, or that of an image.
    pub root: PathBuf,
    /// An unpacked tarball; without one, the tree that the running program is in.
    pub from: Option<PathBuf>,
    /// The engines to configure; `None` for all that are found.
    pub engines: Option<Vec<Kind>>,
    /// The file that containerd is configured by.
    pub containerd_config: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root: "/".into(),
            from: None,
            engines: None,
            containerd_config: engine::CONTAINERD_CONFIG.into(),
        }
    }
}
