//! The rehearsal of a template: a pod is forked from it and a container created, to see which of the guest's pages that
//! takes. All pods do much the same up to there, from the same beginning.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use oci_spec::runtime as oci;

use monohull_vmm::api::WorkingSet;

use super::{Template, TemplateError};
use crate::pagemap::{self, Page};
use crate::pod::{self, ContainerConfig, PodConfig, PodError};
use crate::process::Stdio;
use crate::rootfs::Rootfs;
use crate::settings::Settings;
use crate::size::{Demand, Limits};
use crate::sys;
use crate::timeline::Timeline;

/// Name of the pod and the container.
const NAME: &str = "rehearsal";
/// A container as engines ask for them.
const SPEC: &str = include_str!("rehearsal.json");
/// A limit that makes a pod one of the small ones, in bytes.
const SMALL: i64 = 64 << 20;
/// A working set of more runs is cut off: it travels in a message, and nothing that is left out is lost.
const MAX_RUNS: usize = 2048;
/// Pages in a huge page.
const HUGE: usize = 512;

/// Finds out what a pod that is forked from `template` uses of its memory file. What only reads are made of gets
/// huge pages where the host can: they are there for all pods after one fault. `dir` is for the pod's files.
pub(super) async fn rehearse(
    settings: &Settings,
    template: &Template,
    small: bool,
    dir: &Path,
) -> Result<WorkingSet, TemplateError> {
    // Not the host's state directory: this is no pod that anybody should see.
    let settings = Settings { state_dir: dir.to_owned(), ..settings.clone() };
    let rootfs = dir.join("rootfs");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&rootfs)
        .map_err(TemplateError::io("make", &rootfs))?;
    let program = rootfs.join("program");
    let created = File::options().write(true).create_new(true).mode(0o755).open(&program);
    created.map_err(TemplateError::io("create", &program))?;
    let spec = spec(small).map_err(|error| TemplateError::io("read the spec of", dir)(error.into()))?;
    let mut demand = Demand::default();
    demand.add(NAME, Limits::of_container(&spec));
    let pod = pod::start_from(&pod_config(settings, demand), template).await?;
    let container = ContainerConfig {
        id: NAME.to_owned(),
        spec,
        rootfs: Rootfs::Directory(rootfs),
        bundle: dir.to_owned(),
        pids_of: None,
        stdio: Stdio { stdout: true, stderr: true, ..Stdio::default() },
    };
    let pages = match pod.create_container(container).await {
        Ok(_) => pagemap::of(pod.vmm_pid(), &template.memory)
            .map_err(|error| PodError::from(crate::vm::VmError::Watch(error))),
        Err(error) => Err(error),
    };
    pod.shutdown().await?;
    let pages = pages?;
    make_huge(&template.memory, &pages);
    let written = runs(&pages, |page| page == Page::Own);
    Ok(WorkingSet { written, used: runs(&pages, |page| page != Page::Absent) })
}

fn spec(small: bool) -> Result<oci::Spec, serde_json::Error> {
    let mut spec: serde_json::Value = serde_json::from_str(SPEC)?;
    if small && let Some(resources) = spec.pointer_mut("/linux/resources") {
        *resources = serde_json::json!({ "memory": { "limit": SMALL } });
    }
    serde_json::from_value(spec)
}

fn pod_config(settings: Settings, demand: Demand) -> PodConfig {
    PodConfig {
        settings,
        id: NAME.to_owned(),
        namespace: String::new(),
        kubernetes: None,
        demand,
        hostname: String::new(),
        sysctls: std::collections::HashMap::new(),
        own_pids: false,
        shm_bytes: 0,
        share: true,
        host_mounts: None,
        network: false,
        console: None,
        timeline: Timeline::new(),
    }
}

/// The pages that are `wanted`, as runs: the first one's number and how many.
fn runs(pages: &[Page], wanted: impl Fn(Page) -> bool) -> Vec<(u32, u32)> {
    let blocks = pages.chunk_by(|one, next| wanted(*one) == wanted(*next));
    let placed = blocks.scan(0, |at: &mut u32, block| {
        let (first, length) = (*at, u32::try_from(block.len()).ok()?);
        *at = first.checked_add(length)?;
        Some((first, length, block.first().is_some_and(|page| wanted(*page))))
    });
    let runs = placed.filter(|(.., wanted)| *wanted).map(|(first, length, _)| (first, length));
    runs.take(MAX_RUNS).collect()
}

/// Gives the file huge pages where a guest has used it and written nothing.
fn make_huge(memory: &File, pages: &[Page]) {
    for (number, block) in (0_u64..).zip(pages.chunks_exact(HUGE)) {
        let used = block.contains(&Page::Shared) && !block.contains(&Page::Own);
        if used && let Err(error) = sys::collapse(memory, number) {
            // Linux has it since 6.1, and it fails where the file has holes or memory is in pieces.
            tracing::debug!(%error, number, step = "make a huge page of a template");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run() {
        use Page::{Absent, Own, Shared};
        let pages = [Own, Own, Shared, Own, Absent, Absent, Own];
        assert_eq!(runs(&pages, |page| page == Own), [(0, 2), (3, 1), (6, 1)]);
        assert_eq!(runs(&pages, |page| page != Absent), [(0, 4), (6, 1)]);
        assert_eq!(runs(&[Absent, Shared], |page| page == Own), []);
        let scattered: Vec<_> = (0..3 * MAX_RUNS).map(|i| if i % 2 == 0 { Own } else { Absent }).collect();
        assert_eq!(runs(&scattered, |page| page == Own).len(), MAX_RUNS);
    }

    #[test]
    fn the_container_is_one_of_the_size_that_the_template_is_for() {
        let limit = |small| {
            let spec = spec(small).unwrap();
            crate::spec::rewrite(spec.clone(), "/c", Path::new("/b"), Settings::default().host_namespaces)
                .unwrap();
            spec.linux().as_ref()?.resources().as_ref()?.memory().as_ref()?.limit()
        };
        assert_eq!((limit(true), limit(false)), (Some(SMALL), None));
    }
}
