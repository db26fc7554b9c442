//! An engine that gives its shim up: it has no connection to it any more, or has never had one, and takes the bundle away.
//!
//! containerd does so when it fails between the answer of `start` and its first request, and when it finds, after its own
//! restart, a shim that is still busy with Create. Nobody asks the shim to end then.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use crate::connections::Connections;
use crate::watch::Watch;

/// Enough to close a descriptor.
const STACK: usize = 64 * 1024;

/// Waits until the bundle of container `id` is taken away while nobody is connected.
///
/// containerd renames a bundle, to `.ID`, before it removes it. An engine that does not is not noticed.
pub(crate) async fn bundle_is_taken(connections: &Connections, bundle: &Path, id: &str) {
    loop {
        connections.closed().await;
        // Only now: a host has few inotify instances, and mostly engines are connected.
        let watch = Watch::for_renaming(bundle);
        // It may have been before.
        if is_taken(bundle, id) {
            return;
        }
        tokio::select! {
            () = seen(watch.as_ref()) => return,
            () = connections.opened() => {}
        }
        // The kernel has who closes it wait for an SRCU grace period, some 10 ms, when the engine is about to ask for something.
        // Without a thread for it the time is spent here.
        let _ = thread::Builder::new().stack_size(STACK).spawn(move || drop(watch));
    }
}

async fn seen(watch: Result<&Watch, &io::Error>) {
    match watch {
        Ok(watch) if watch.seen().await.is_ok() => {}
        _ => {
            tracing::debug!("the bundle's end will not be seen");
            std::future::pending::<()>().await;
        }
    }
}

/// Whether the bundle is being removed, or is removed.
fn is_taken(bundle: &Path, id: &str) -> bool {
    let removed = fs::metadata(bundle).map_or(true, |bundle| bundle.nlink() == 0);
    let is_hidden = |path: &Path| path.file_name().is_some_and(|name| *name == *format!(".{id}"));
    removed || fs::canonicalize(bundle).is_ok_and(|path| is_hidden(&path))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::StreamExt;
    use tempfile::TempDir;
    use tokio::net::{UnixListener, UnixStream};
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(100);

    /// A directory with the bundle of container c1.
    fn bundle() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("c1")).unwrap();
        dir
    }

    /// Takes it away as containerd does.
    fn take(dir: &TempDir) {
        fs::rename(dir.path().join("c1"), dir.path().join(".c1")).unwrap();
        fs::remove_dir(dir.path().join(".c1")).unwrap();
    }

    #[tokio::test]
    async fn a_bundle_that_goes_before_anybody_has_connected_is_noticed() {
        let dir = bundle();
        let (connections, path) = (Connections::default(), dir.path().join("c1"));
        let mut taken = std::pin::pin!(bundle_is_taken(&connections, &path, "c1"));
        assert!(timeout(SOON, &mut taken).await.is_err(), "it is there");
        take(&dir);
        taken.await;
        bundle_is_taken(&connections, &path, "c1").await;
    }

    #[tokio::test]
    async fn a_bundle_that_goes_while_an_engine_is_connected_is_not_looked_at_until_the_engine_is_gone() {
        let dir = bundle();
        let (connections, path) = (Connections::default(), dir.path().join("c1"));
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let client = UnixStream::connect(dir.path().join("socket")).await.unwrap();
        let mut accepted = connections.accept_all(listener);
        let served = accepted.next().await.unwrap().unwrap();
        let mut taken = std::pin::pin!(bundle_is_taken(&connections, &path, "c1"));
        assert!(timeout(SOON, &mut taken).await.is_err(), "it is there");
        take(&dir);
        assert!(timeout(SOON, &mut taken).await.is_err(), "the engine may still want something");
        drop((client, served));
        taken.await;
    }

    #[test]
    fn a_bundle_that_is_on_its_way_out_is_taken() {
        let dir = bundle();
        assert!(!is_taken(&dir.path().join("c1"), "c1"));
        fs::rename(dir.path().join("c1"), dir.path().join(".c1")).unwrap();
        assert!(is_taken(&dir.path().join("c1"), "c1"));
        assert!(is_taken(&dir.path().join(".c1"), "c1"), "as a working directory shows it");
    }
}
