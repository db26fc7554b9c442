//! What templates do when the host is short of memory: those that no pod uses go, and none is made.

use std::collections::HashSet;
use std::fs;

use super::build::remove_dir;
use super::{TemplateError, dir, list};
use crate::meminfo::Meminfo;
use crate::settings::Settings;
use crate::state;
use crate::text;

/// The host is short of memory when less than one part in so many is available.
const PARTS: u64 = 20;

/// Whether the host is short of memory. One that does not tell is not.
pub(super) fn is_short() -> bool {
    fs::read_to_string("/proc/meminfo").is_ok_and(|text| Meminfo::parse(&text).is_some_and(is_little))
}

fn is_little(memory: Meminfo) -> bool {
    memory.available_kib < memory.total_kib / PARTS
}

/// Gives the memory of templates that no pod uses back to a host that is short of it. A pod has ended.
pub(crate) fn give_back(settings: &Settings) {
    if is_short()
        && let Err(error) = remove_unused(settings)
    {
        tracing::warn!(error = %text::chain(&error), step = "remove the templates that no pod uses");
    }
}

/// Removes the templates that no pod was forked from. One that is used keeps its memory until its last pod ends, removed or not, and
/// the next pod would take more without it.
pub(super) fn remove_unused(settings: &Settings) -> Result<(), TemplateError> {
    let pods = state::list(&settings.state_dir)?;
    let used: HashSet<_> = pods.into_iter().filter_map(|pod| pod.template).collect();
    for info in list(settings)?.into_iter().filter(|info| !used.contains(&info.key)) {
        remove_dir(&dir(settings).join(&info.key))?;
        tracing::info!(key = info.key, bytes = info.bytes, "the host is short of memory: a template is gone");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_a_twentieth_is_little() {
        let little = |available_kib| is_little(Meminfo { total_kib: 4_000_000, available_kib });
        assert_eq!((little(199_999), little(200_000)), (true, false));
    }
}
