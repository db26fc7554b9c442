//! What is to be done, decided and not yet done.

use super::root::Root;
use super::transaction::{self, Step};
use super::{InstallError, Report};

/// What is to be done below a root directory, which is locked meanwhile.
#[derive(Debug)]
pub struct Plan {
    pub(super) root: Root,
    pub(super) steps: Vec<Step>,
    pub(super) report: Report,
}

impl Plan {
    /// What it does.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Whether it is about the running system.
    pub fn is_for_this_host(&self) -> bool {
        self.root.is_the_hosts()
    }

    /// Does all of it, or nothing.
    pub fn apply(self) -> Result<Report, InstallError> {
        transaction::apply(&self.root, &self.steps)?;
        Ok(self.report)
    }
}
