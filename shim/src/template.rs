//! The template that pods are forked from, made by a process of its own.
//!
//! `start` begins it, and not the serving process: `start` is in containerd's cgroup and namespaces, where what outlives a pod
//! belongs.

use std::error::Error;
use std::path::Path;
use std::process::Command;

use monohull_runtime::settings::Settings;
use monohull_runtime::template::{self, TemplateError};

use crate::args::TEMPLATE;
use crate::bootstrap::SETTINGS;

/// Makes a template in the background if there is none for the next pods. `settings` is the runtime options' file.
pub(crate) fn make(settings: Option<&str>) {
    let loaded = match settings {
        Some(path) => Settings::read(Path::new(path)),
        None => Settings::load(),
    };
    // Broken settings are the creation's to refuse.
    let (Ok(loaded), Ok(executable)) = (loaded, std::env::current_exe()) else { return };
    let mut builder = Command::new(executable);
    builder.arg(TEMPLATE);
    if let Some(path) = settings {
        builder.env(SETTINGS, path);
    }
    template::make_in_background(&loaded, builder);
}

/// Makes it, in a process for that.
pub(crate) fn build() -> Result<(), Box<dyn Error>> {
    let settings = Settings::load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(template::build(&settings)) {
        Ok(_) | Err(TemplateError::Busy) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
