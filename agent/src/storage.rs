//! A container's storages, and how to undo them.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use monohull_protocol::agent::{self, storage::Source};

use crate::devices::Renumbered;
use crate::disk::{Disks, Partition};
use crate::error::{Error, Result, chain};
use crate::mirror::Mirrors;
use crate::mount::{self, Options};
use crate::share::Share;
use crate::socket::Socket;
use crate::{kmsg, paths};

/// Where storages come from.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) disks: Disks,
    pub(crate) share: Share,
    pub(crate) mirrors: Mirrors,
}

/// What was done for a container, in order. [`Storages::undo`] undoes it.
#[derive(Debug, Default)]
pub(crate) struct Storages(Vec<Done>);

#[derive(Debug)]
enum Done {
    Mounted(PathBuf),
    Partitioned(Partition),
    Exported(String),
    Mirrored(String),
    /// Its file goes with the container's directory.
    Listening(Socket),
}

impl Storages {
    /// Mounts `storage`, whose target must be below `directory`. After an error, what was done before it, by this
    /// call too, is still to be undone.
    pub(crate) async fn add(
        &mut self,
        sources: &Sources,
        directory: &Path,
        storage: &agent::Storage,
    ) -> Result<()> {
        let target = Path::new(&storage.target);
        let relative = paths::below(directory, target).ok_or_else(|| {
            Error::Invalid(format!("storage target {} is not below {}", storage.target, directory.display()))
        })?;
        let added = match (storage.fstype.as_str(), &storage.source) {
            ("socket", Some(Source::Path(name))) => {
                let socket = Socket::listen(name, directory, relative, &storage.options);
                socket.map(|socket| self.0.push(Done::Listening(socket)))
            }
            _ => self.mount(sources, directory, relative, storage).await,
        };
        added.map_err(|error| error.within(format_args!("storage on {}", storage.target)))?;
        for name in &storage.directories {
            paths::make_directories(target, Path::new(name))?;
        }
        Ok(())
    }

    async fn mount(
        &mut self,
        sources: &Sources,
        directory: &Path,
        relative: &Path,
        storage: &agent::Storage,
    ) -> Result<()> {
        let options = Options::parse(storage.options.iter().map(String::as_str))?;
        match (storage.fstype.as_str(), &storage.source) {
            ("bind", Some(Source::Path(path))) => {
                let source = paths::open_path(Path::new(path))?;
                let target = bind_target(&source, directory, relative)?;
                mount::bind(Path::new(path), &options, &target)?;
            }
            ("virtiofs", Some(Source::Path(name))) => {
                let source = sources.share.export(name).await?;
                if mount::is_directory(&source)? {
                    self.0.push(Done::Exported(name.clone()));
                }
                let target = bind_target(&source, directory, relative)?;
                mount::bind_open(&source, &options, &target, "a directory of the host")?;
            }
            ("mirror", Some(Source::Mirror(mirror))) => {
                // Also when it is made by half.
                self.0.push(Done::Mirrored(mirror.name.clone()));
                let source = sources.mirrors.make(mirror)?;
                let target = bind_target(&source, directory, relative)?;
                mount::bind_open(&source, &options, &target, "a mirror of a directory")?;
            }
            ("memory", Some(Source::Path(name))) => {
                let source = sources.share.memory(name, &options).await?;
                let source = paths::reach(source, Path::new(&storage.within))?;
                let target = bind_target(&source, directory, relative)?;
                mount::bind_open(&source, &Options::default(), &target, "a file system in memory")?;
            }
            ("bind", _) => return Err(Error::Invalid("a bind storage needs a path as its source".into())),
            (fstype, Some(Source::Extent(extent))) => {
                let partition = sources.disks.add(extent).await?;
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

    /// Makes a partition for `device`. After an error, what was done before it is still to be undone.
    pub(crate) async fn add_device(
        &mut self,
        sources: &Sources,
        device: &agent::BlockDevice,
    ) -> Result<Renumbered> {
        let host = (device.major, device.minor);
        let within = |error: Error| error.within(format_args!("block device {}:{}", host.0, host.1));
        let extent = device.extent.get_or_default();
        let partition = sources.disks.add(extent).await.map_err(within)?;
        self.0.push(Done::Partitioned(partition));
        Ok(Renumbered { host, guest: partition.device_number().map_err(within)? })
    }

    /// Unmounts and removes all, last first. Errors are logged: there is no better way to end. True if nothing is
    /// mounted any more.
    pub(crate) fn undo(&mut self, sources: &Sources) -> bool {
        let mut clean = true;
        while let Some(done) = self.0.pop() {
            let result = match done {
                Done::Mounted(path) => mount::unmount(&path).inspect_err(|_| clean = false),
                Done::Exported(name) => {
                    sources.share.release(&name);
                    Ok(())
                }
                Done::Mirrored(name) => sources.mirrors.remove(&name),
                Done::Listening(socket) => {
                    drop(socket);
                    Ok(())
                }
                Done::Partitioned(partition) => sources.disks.remove(partition),
            };
            if let Err(error) = result {
                kmsg::error(chain(&error));
            }
        }
        clean
    }
}

fn bind_target(source: &OwnedFd, directory: &Path, relative: &Path) -> Result<OwnedFd> {
    if mount::is_directory(source)? {
        paths::make_directories(directory, relative)
    } else {
        paths::make_file(directory, relative)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn targets_outside_the_directory_are_refused() {
        let mut storages = Storages::default();
        let storage =
            agent::Storage { fstype: "tmpfs".into(), target: "/run/x/../y".into(), ..Default::default() };
        let result = storages.add(&Sources::default(), Path::new("/run/x"), &storage).await;
        assert!(matches!(result, Err(Error::Invalid(_))));
    }
}
