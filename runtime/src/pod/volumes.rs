//! What a container has of the host's files and sockets: shared by the fs server, mirrored, or reached over vsock.

use monohull_protocol::agent as proto;
use proto::storage::Source;

use super::{Pod, PodError};
use crate::mirror::{self, Mirrored};
use crate::rootfs::SHARED;
use crate::share::{Exported, ReadOnly};
use crate::sockets::Reachable;
use crate::spec::{SocketVolume, Volume};
use crate::text;

/// The volumes of a container; dropping it takes them from the guest.
#[derive(Debug, Default)]
pub(super) struct Attached {
    exports: Vec<Exported>,
    mirrors: Vec<Mirrored>,
    sockets: Vec<Reachable>,
}

impl Attached {
    /// What of it no copy can have.
    pub(super) fn uncopyable(&self) -> Option<&'static str> {
        let has = [
            (!self.exports.is_empty(), "a volume that is a directory or file of the host"),
            (!self.mirrors.is_empty(), "a volume that follows a directory of the host"),
            (!self.sockets.is_empty(), "a UNIX socket of the host"),
        ];
        has.into_iter().find_map(|(has, what)| has.then_some(what))
    }

    /// To be called when the guest has the container.
    pub(super) fn set_live(&self) {
        self.mirrors.iter().for_each(Mirrored::set_live);
    }
}

impl Pod {
    /// Makes a container's volumes ready. Returns the storages by which the guest gets them.
    pub(super) async fn attach_volumes(
        &self,
        volumes: Vec<Volume>,
        sockets: Vec<SocketVolume>,
    ) -> Result<(Vec<proto::Storage>, Attached), PodError> {
        let (mut storages, mut attached) = (Vec::new(), Attached::default());
        let mut room = mirror::MAX_CREATE;
        for Volume { export, target } in volumes {
            // Whoever may write wants the host to see it.
            let mirrored = match export.read_only {
                ReadOnly::No => None,
                ReadOnly::Top | ReadOnly::Recursive => self.mirror(&export.source, &mut room),
            };
            let (fstype, source) = if let Some((mirrored, mirror)) = mirrored {
                attached.mirrors.push(mirrored);
                ("mirror", Source::Mirror(mirror))
            } else {
                let exported = self.share().await?.add(export).await?;
                let name = exported.name().to_owned();
                attached.exports.push(exported);
                (SHARED, Source::Path(name))
            };
            storages.push(storage(fstype, source, target));
        }
        for SocketVolume { socket, options, target } in sockets {
            let reachable = self.sockets.add(socket);
            let source = Source::Path(reachable.name().to_owned());
            storages.push(proto::Storage { options, ..storage("socket", source, target) });
            attached.sockets.push(reachable);
        }
        Ok((storages, attached))
    }

    /// Mirrors a directory if it is one to be mirrored and can be. If not, it is shared like any other.
    fn mirror(&self, source: &std::path::Path, room: &mut usize) -> Option<(Mirrored, proto::Mirror)> {
        match self.mirrors.add(source, *room, &self.link) {
            Ok(Some((mirrored, mirror, bytes))) => {
                *room = room.saturating_sub(bytes);
                Some((mirrored, mirror))
            }
            Ok(None) => None,
            Err(error) => {
                let (source, error) = (source.display(), text::chain(&error));
                let hint = "too many inotify instances or watches? see fs.inotify in docs/volumes.md";
                tracing::warn!(%source, error, hint, "inotify in the guest won't tell of changes of a volume");
                None
            }
        }
    }
}

fn storage(fstype: &str, source: Source, target: String) -> proto::Storage {
    proto::Storage { fstype: fstype.into(), source: Some(source), target, ..Default::default() }
}
