//! Finds a container's executable, and says why not in the words that engines look for: containerd, Docker and the
//! kubelet derive exit codes 126 and 127 from these texts, which are those of runc (Go's `exec.LookPath`).

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What runc searches when the container has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The PATH in an environment.
pub(crate) fn search_path(environment: &[String]) -> &str {
    environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH)
}

/// The file that executing `name` means, in the root and working directory of the calling process.
pub(crate) fn find(name: &str, path: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return match check(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(format!("exec: {name:?}: {}", text(&error)))
            }
            Err(error) => Err(format!("exec: {name:?}: stat {name}: {}", text(&error))),
        };
    }
    let mut denied = None;
    for directory in path.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied = Some(error),
            Err(_) => {}
        }
    }
    match denied {
        Some(error) if !name.is_empty() => Err(format!("exec: {name:?}: {}", text(&error))),
        _ => Err(format!("exec: {name:?}: executable file not found in $PATH")),
    }
}

/// Why the kernel would not execute `path`.
pub(crate) fn refusal(path: &Path, error: &io::Error) -> String {
    format!("exec {}: {}", path.display(), text(error))
}

fn check(path: &Path) -> io::Result<()> {
    let metadata = path.metadata()?;
    if metadata.is_dir() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

/// An errno in Go's words.
fn text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::NotADirectory => "not a directory".into(),
        _ if error.raw_os_error() == Some(libc::ENOEXEC) => "exec format error".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn directory_with(name: &str, mode: u32) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(name);
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        directory
    }

    #[test]
    fn the_first_executable_in_the_path_is_found() {
        let (plain, good) = (directory_with("tool", 0o644), directory_with("tool", 0o755));
        let path = format!("{}:{}", plain.path().display(), good.path().display());
        assert_eq!(find("tool", &path).unwrap(), good.path().join("tool"));
    }

    #[test]
    fn a_missing_executable_is_named() {
        let directory = directory_with("other", 0o755);
        let error = find("tool", &directory.path().to_string_lossy()).unwrap_err();
        assert_eq!(error, "exec: \"tool\": executable file not found in $PATH");
        let error = find("/no/such/tool", "").unwrap_err();
        assert_eq!(error, "exec: \"/no/such/tool\": stat /no/such/tool: no such file or directory");
    }

    #[test]
    fn what_cannot_be_executed_is_denied() {
        let directory = directory_with("tool", 0o644);
        let path = directory.path().to_string_lossy().into_owned();
        assert!(find("tool", &path).unwrap_err().ends_with("permission denied"));
        assert!(find(&path, "").unwrap_err().ends_with("permission denied"));
    }

    #[test]
    fn the_last_path_of_an_environment_counts() {
        let environment = ["PATH=/a".to_owned(), "X=PATH=/c".into(), "PATH=/b".into()];
        assert_eq!(search_path(&environment), "/b");
        assert_eq!(search_path(&[]), DEFAULT_PATH);
    }
}
