//! `--volume HOST:GUEST[:ro]`.

use std::path::PathBuf;

/// A host directory or file in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    /// On the host, as the user wrote it.
    pub(crate) source: PathBuf,
    /// Absolute, in the container.
    pub(crate) destination: String,
    pub(crate) read_only: bool,
}

/// Parses docker's notation.
pub(crate) fn parse(text: &str) -> Result<Volume, String> {
    let parts: Vec<_> = text.split(':').collect();
    let (source, destination, mode) = match parts.as_slice() {
        [source, destination] => (source, destination, "rw"),
        [source, destination, mode] => (source, destination, *mode),
        _ => return Err("write HOST:GUEST or HOST:GUEST:ro".into()),
    };
    let read_only = match mode {
        "ro" => true,
        "rw" => false,
        other => return Err(format!("{other:?} is neither \"ro\" nor \"rw\"")),
    };
    if source.is_empty() {
        return Err("the host's path is empty".into());
    }
    if !destination.starts_with('/') || destination.trim_matches('/').is_empty() {
        return Err(format!("{destination:?} is not an absolute path below the container's root"));
    }
    Ok(Volume { source: source.into(), destination: (*destination).to_owned(), read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_is_optional() {
        let volume = |read_only| Volume { source: "./a".into(), destination: "/b".into(), read_only };
        assert_eq!(parse("./a:/b"), Ok(volume(false)));
        assert_eq!(parse("./a:/b:rw"), Ok(volume(false)));
        assert_eq!(parse("./a:/b:ro"), Ok(volume(true)));
    }

    #[test]
    fn incomplete_and_misplaced_volumes_are_refused() {
        for text in ["", "/a", ":/b", "/a:", "/a:b", "/a:/", "/a:/b:x", "/a:/b:ro:z"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
