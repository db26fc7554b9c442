//! The shim's socket: where it is, and who listens on it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Where containerd's shims have their sockets (containerd `pkg/shim` socketRoot).
pub(crate) const SOCKET_DIR: &str = "/run/containerd/s";

const SCHEME: &str = "unix://";

/// The socket of the shim that serves a pod: every container of the pod computes the same.
pub(crate) fn socket_path(dir: &Path, containerd: &str, namespace: &str, pod: &str) -> PathBuf {
    let key = Path::new(containerd).join(namespace).join(pod);
    let digest = Sha256::digest(key.as_os_str().as_encoded_bytes());
    dir.join(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// The address that containerd dials.
pub(crate) fn to_address(path: &Path) -> String {
    format!("{SCHEME}{}", path.display())
}

/// The path in an address, which may come without its scheme.
pub(crate) fn to_path(address: &str) -> &Path {
    Path::new(address.strip_prefix(SCHEME).unwrap_or(address))
}

/// Whether a process accepts connections at `path`.
pub(crate) fn is_served(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// Listens at `path` with mode 0600, in a directory of mode 0700 that is made if missing. `None` when a living process
/// already listens there; what a dead one left is replaced.
pub(crate) fn bind(path: &Path) -> io::Result<Option<UnixListener>> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if is_served(path) {
                return Ok(None);
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(Some(listener))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_that_of_containerds_convention() {
        let path = socket_path(Path::new(SOCKET_DIR), "/run/containerd/containerd.sock", "default", "c1");
        // printf %s /run/containerd/containerd.sock/default/c1 | sha256sum
        let hash = "d25aa4ef11a84e954e74a5bcff06557d0b6ea8d0c00243896f29826694bbd888";
        assert_eq!(path, Path::new("/run/containerd/s").join(hash));
    }

    #[test]
    fn pods_namespaces_and_daemons_have_sockets_of_their_own() {
        let dir = Path::new("/s");
        let all = [("a", "n", "p"), ("b", "n", "p"), ("a", "m", "p"), ("a", "n", "q"), ("", "n", "p")]
            .map(|(daemon, namespace, pod)| socket_path(dir, daemon, namespace, pod));
        for (i, path) in all.iter().enumerate() {
            assert!(all.iter().skip(i + 1).all(|other| other != path));
        }
    }

    #[test]
    fn addresses_and_paths_are_each_others_inverse() {
        let path = Path::new("/run/containerd/s/x");
        assert_eq!(to_address(path), "unix:///run/containerd/s/x");
        assert_eq!(to_path(&to_address(path)), path);
        assert_eq!(to_path("/run/containerd/s/x"), path);
    }

    #[test]
    fn a_socket_is_private_and_found_by_a_second_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s/socket");
        let listener = bind(&path).unwrap().expect("nobody listens yet");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(bind(&path).unwrap().is_none());
        drop(listener);
        assert!(bind(&path).unwrap().is_some(), "what a dead shim left is replaced");
    }
}
