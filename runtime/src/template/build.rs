//! Making a template: boots a VM, lets its agent get ready, and saves it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use monohull_vmm::api::VmConfig;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};

use super::{
    BUILDING, INFO, Info, LOCK, MAX_AGE, MEMORY, STATE, Template, TemplateError, WORKING_SET, dir,
    failure_path, files, key, now, read_info, rehearsal,
};
use crate::pod;
use crate::settings::{Settings, Templates};
use crate::text;
use crate::timeline::Timeline;
use crate::vm::{Vm, VmFiles};
use crate::vsock::Vsock;

/// What a template's rehearsal needs, while it is made.
const REHEARSAL: &str = "rehearsal";

/// Bytes of the largest block of free memory: one may be in use by the time that it is its turn to be reported.
const LARGEST_BLOCK: u64 = 4 << 20;

/// Makes the templates of pods without particular needs anew, and removes all others. Refused as busy while another process
/// does that. A failure is noted for [`super::last_failure`].
///
/// The VMM dies with the calling thread.
pub async fn build(settings: &Settings) -> Result<Vec<Info>, TemplateError> {
    if settings.templates == Templates::Off {
        return Err(TemplateError::Off);
    }
    let dir = dir(settings);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.map_err(TemplateError::io("make", &dir))?;
    let _lock = lock(&dir.join(LOCK))?;
    let made = make_all(settings, &dir).await;
    if let Err(error) = &made {
        // The error that matters is the first.
        if let Some(key) = super::current_keys(settings).ok().and_then(|keys| keys.into_iter().next()) {
            let _ = fs::write(failure_path(settings, &key), text::chain(error));
        }
    }
    made
}

async fn make_all(settings: &Settings, dir: &Path) -> Result<Vec<Info>, TemplateError> {
    let building = dir.join(BUILDING);
    let files = files(settings)?;
    let mut all = Vec::new();
    // What most pods are forked from comes first.
    for config in pod::standard(settings).into_iter().rev() {
        let key = key(&files, &config);
        remove_dir(&building)?;
        match make(settings, config, (&key, &files), &building).await {
            Ok(info) => all.push(info),
            Err(error) => {
                remove_dir(&building)?;
                return Err(error);
            }
        }
        take_place(&building, &dir.join(&key))?;
    }
    remove_others(dir, &all);
    Ok(all)
}

async fn make(
    settings: &Settings,
    config: VmConfig,
    (key, hash): (&str, &str),
    building: &Path,
) -> Result<Info, TemplateError> {
    let begun = Instant::now();
    let timeline = Timeline::new();
    DirBuilder::new().mode(0o700).create(building).map_err(TemplateError::io("make", building))?;
    let (vsock, listener) = Vsock::listen(building)?;
    let files = VmFiles::open(settings, listener, None, None)?;
    let config = VmConfig { fds: files.roles(), ..config };
    let (vm, ready) =
        Vm::start(&settings.vmm, &config, files, std::sync::Arc::default(), timeline.clone(), None)?;
    let agent = pod::agent_of(&vm, ready, &timeline).await?;
    // Its answer also tells that the connection is made on both sides: one that the guest is making fails in the copies.
    let reportable = agent.prepare_template().await.map_err(pod::PodError::from)?;
    // The first time that a kernel reports a free block it visits all its pages' structs, some seconds after its boot: in each copy
    // that would be time, and 1.6 % of its memory.
    let all = u32::try_from(reportable.saturating_sub(LARGEST_BLOCK) >> 20).unwrap_or(u32::MAX);
    if let Err(error) = vm.free_reported(all).await {
        tracing::warn!(error = %text::chain(&error), step = "wait for free memory; pods will take more than they need");
    }
    vm.pause().await?;
    let [state, memory] = [create(building, STATE)?, create(building, MEMORY)?];
    let bytes = vm.snapshot(state.into(), memory.into()).await?;
    drop(vm);
    vsock.remove()?;
    rehearse(settings, config.memory_mib == settings.overhead_memory_mib, key, building).await?;
    let info = Info {
        key: key.to_owned(),
        kernel: settings.kernel.clone(),
        files: hash.to_owned(),
        memory_mib: config.memory_mib,
        cpus: config.vcpus,
        nics: config.nics,
        created_at: now(),
        took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        bytes,
    };
    let path = building.join(INFO);
    let text = serde_json::to_vec(&info).map_err(io::Error::from);
    text.and_then(|text| fs::write(&path, text)).map_err(TemplateError::io("write", &path))?;
    Ok(info)
}

/// Finds the template's working set, which makes pods start faster and is nothing that they need.
async fn rehearse(settings: &Settings, small: bool, key: &str, building: &Path) -> Result<(), TemplateError> {
    let Some(template) = Template::open(building.to_owned(), key.to_owned()) else { return Ok(()) };
    let dir = building.join(REHEARSAL);
    match rehearsal::rehearse(settings, &template, small, &dir).await {
        Ok(runs) => {
            let path = building.join(WORKING_SET);
            let text = serde_json::to_vec(&runs).map_err(io::Error::from);
            text.and_then(|text| fs::write(&path, text)).map_err(TemplateError::io("write", &path))?;
        }
        Err(error) => {
            tracing::warn!(error = %text::chain(&error), step = "rehearse a pod; pods will start slower than they could");
        }
    }
    remove_dir(&dir)
}

fn create(dir: &Path, name: &str) -> Result<File, TemplateError> {
    let path = dir.join(name);
    let created = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
    created.map_err(TemplateError::io("create", &path))
}

fn lock(path: &Path) -> Result<Flock<File>, TemplateError> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(TemplateError::io("open", path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| TemplateError::Busy)
}

/// Removes a directory with all that is in it, which may be gone already.
pub(super) fn remove_dir(path: &Path) -> Result<(), TemplateError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(TemplateError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Puts what was made where pods look for it. With one that is there it changes places: at any moment there is one.
fn take_place(building: &Path, place: &Path) -> Result<(), TemplateError> {
    let Err(error) = fs::rename(building, place) else { return Ok(()) };
    if !place.exists() {
        return Err(TemplateError::io("rename", building)(error));
    }
    renameat2(AT_FDCWD, building, AT_FDCWD, place, RenameFlags::RENAME_EXCHANGE)
        .map_err(|error| TemplateError::io("exchange", place)(error.into()))?;
    remove_dir(building)
}

/// Removes notes of failures, what is no template, and templates that nobody will be forked from: they are too old, or of a
/// kernel, agent or VMM that ours have replaced. Others are those of other settings. VMs that were started from a template go
/// on without it.
fn remove_others(dir: &Path, made: &[Info]) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let Some(ours) = made.first() else { return };
    let stays = |path: &Path| {
        let other = || {
            read_info(path).is_some_and(|info| {
                let replaced = info.kernel == ours.kernel && info.files != ours.files;
                !replaced && now().saturating_sub(info.created_at) < 2 * MAX_AGE.as_secs()
            })
        };
        path.file_name().is_some_and(|name| name == LOCK) || other()
    };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| !stays(path)) {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, step = "remove old template");
        }
    }
}
