//! What the commands that own a pod begin with, and end with.

use monohull_runtime::log::Log;
use monohull_runtime::settings::Settings;

use crate::failure::Failure;
use crate::prepare::random_name;

/// This process as the owner of a pod. Dropping it is for when the pod has ended.
pub(crate) struct Owner {
    pub(crate) settings: Settings,
    /// The pod's.
    pub(crate) name: String,
    log: Log,
}

impl Owner {
    /// Loads the settings, and keeps what is said from now on as the log of the pod with this name, or one that is made up.
    pub(crate) fn begin(name: Option<&str>) -> Result<Self, Failure> {
        let settings = Settings::load().map_err(|e| Failure::of("cannot load the settings", &e))?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => random_name().map_err(|e| Failure::of("cannot make a name", &e))?,
        };
        let log = Log::of_run(&name);
        log.install();
        log.keep(&settings, "");
        Ok(Self { settings, name, log })
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.log.forget_ended();
    }
}
