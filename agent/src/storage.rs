//! A container's storages and files, and how to undo them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use monohull_protocol::agent::{self, storage::Source};
use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, openat};

use crate::disk::{Disks, Partition};
use crate::error::{Doing, Error, Result, chain};
use crate::mount::{self, Options};
use crate::{kmsg, paths};

/// What was done for a container, in order. [`Storages::undo`] undoes it.
#[derive(Debug, Default)]
pub(crate) struct Storages(Vec<Done>);

#[derive(Debug)]
enum Done {
    Mounted(PathBuf),
    Partitioned(Partition),
}

impl Storages {
    /// Mounts `storage`, whose target must be below `directory`. After an error, what was done before it, by this
    /// call too, is still to be undone.
    pub(crate) async fn add(
        &mut self,
        disks: &Disks,
        directory: &Path,
        storage: &agent::Storage,
    ) -> Result<()> {
        let target = Path::new(&storage.target);
        let relative = paths::below(directory, target).ok_or_else(|| {
            Error::Invalid(format!("storage target {} is not below {}", storage.target, directory.display()))
        })?;
        let options = Options::parse(storage.options.iter().map(String::as_str))?;
        self.mount(disks, directory, relative, storage, options)
            .await
            .map_err(|error| error.within(format_args!("storage on {}", storage.target)))?;
        for name in &storage.directories {
            paths::make_directories(target, Path::new(name))?;
        }
        Ok(())
    }

    async fn mount(
        &mut self,
        disks: &Disks,
        directory: &Path,
        relative: &Path,
        storage: &agent::Storage,
        options: Options,
    ) -> Result<()> {
        match (storage.fstype.as_str(), &storage.source) {
            ("bind", Some(Source::Path(path))) => {
                let source = Path::new(path);
                mount::bind(source, &options, &bind_target(source, directory, relative)?)?;
            }
            ("bind", _) => return Err(Error::Invalid("a bind storage needs a path as its source".into())),
            (fstype, Some(Source::Extent(extent))) => {
                let partition = disks.add(extent).await?;
                self.0.push(Done::Partitioned(partition));
                let options = if extent.read_only { options.read_only() } else { options };
                let device = partition.device()?;
                let target = paths::make_directories(directory, relative)?;
                mount::filesystem(fstype, &device.to_string_lossy(), &options, &target)?;
            }
            (fstype @ ("tmpfs" | "overlay"), source) => {
                let source = match source {
                    Some(Source::Path(path)) if !path.is_empty() => path,
                    _ => fstype,
                };
                let target = paths::make_directories(directory, relative)?;
                mount::filesystem(fstype, source, &options, &target)?;
            }
            (fstype, _) => {
                return Err(Error::Invalid(format!(
                    "storage type {fstype:?} without an extent is not supported"
                )));
            }
        }
        self.0.push(Done::Mounted(directory.join(relative)));
        Ok(())
    }

    /// Unmounts and removes all, last first. Errors are logged: there is no better way to end. True if nothing is
    /// mounted any more.
    pub(crate) fn undo(&mut self, disks: &Disks) -> bool {
        let mut clean = true;
        while let Some(done) = self.0.pop() {
            let result = match done {
                Done::Mounted(path) => mount::unmount(&path).inspect_err(|_| clean = false),
                Done::Partitioned(partition) => disks.remove(partition),
            };
            if let Err(error) = result {
                kmsg::error(chain(&error));
            }
        }
        clean
    }
}

fn bind_target(source: &Path, directory: &Path, relative: &Path) -> Result<OwnedFd> {
    if mount::is_directory(source)? {
        paths::make_directories(directory, relative)
    } else {
        paths::make_file(directory, relative)
    }
}

/// Writes `file`, whose path must be below `directory` and new.
pub(crate) fn write_file(directory: &Path, file: &agent::File) -> Result<()> {
    let path = Path::new(&file.path);
    let relative = paths::below(directory, path)
        .ok_or_else(|| Error::Invalid(format!("file {} is not below {}", file.path, directory.display())))?;
    let what = || format!("write file {}", file.path);
    let parent = paths::make_directories(directory, relative.parent().unwrap_or(Path::new("")))?;
    let name = relative.file_name().unwrap_or_default();
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut to = File::from(openat(&parent, name, flags, Mode::empty()).doing(what)?);
    std::io::Write::write_all(&mut to, &file.data).doing(what)?;
    fchown(&to, Some(Uid::from_raw(file.uid)), Some(Gid::from_raw(file.gid))).doing(what)?;
    fchmod(&to, Mode::from_raw_mode(file.mode & 0o7777)).doing(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_get_their_mode_and_stay_below_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc/hosts");
        let mut file = agent::File {
            path: path.to_string_lossy().into(),
            data: b"x".to_vec(),
            mode: 0o640,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            ..Default::default()
        };
        write_file(directory.path(), &file).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
        assert!(write_file(directory.path(), &file).is_err(), "written twice");
        file.path = "/etc/monohull-test".into();
        assert!(matches!(write_file(directory.path(), &file), Err(Error::Invalid(_))));
    }

    #[tokio::test]
    async fn targets_outside_the_directory_are_refused() {
        let mut storages = Storages::default();
        let storage =
            agent::Storage { fstype: "tmpfs".into(), target: "/run/x/../y".into(), ..Default::default() };
        let result = storages.add(&Disks::default(), Path::new("/run/x"), &storage).await;
        assert!(matches!(result, Err(Error::Invalid(_))));
    }
}
