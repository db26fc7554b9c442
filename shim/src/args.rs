//! The command line, in the syntax of Go's `flag` package: containerd and CRI-O write `-flag value`.

use std::path::PathBuf;

/// The action word of [`Action::Template`].
pub(crate) const TEMPLATE: &str = "template";

/// What the shim is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Action {
    /// No action word: be the serving process. Only `start` calls the shim so.
    #[default]
    Serve,
    /// Start, or find, the serving process of a container's pod and print its address.
    Start,
    /// Make the template that pods are forked from. Only `start` calls the shim so.
    Template,
    /// Clean up after a container whose shim connection has closed.
    Delete,
    /// Print what the runtime can do, as a protobuf `RuntimeInfo`.
    Info,
    /// Print the version.
    Version,
}

/// The parsed command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    /// What to do.
    pub(crate) action: Action,
    /// containerd namespace.
    pub(crate) namespace: String,
    /// Container id.
    pub(crate) id: String,
    /// containerd's GRPC socket; empty with CRI-O.
    pub(crate) address: String,
    /// The bundle directory; only `delete` gets it, the current directory is the same.
    pub(crate) bundle: Option<PathBuf>,
    /// Log at debug level.
    pub(crate) debug: bool,
}

/// A command line that can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    /// Not one of the shim's flags.
    #[error("flag -{0} is not known")]
    UnknownFlag(String),
    /// A flag is last although it takes a value.
    #[error("flag -{0} needs a value")]
    NoValue(String),
    /// A boolean flag has a value that Go's parser would not take.
    #[error("flag -{0} is true or false, not {1:?}")]
    NotBoolean(String, String),
    /// Neither "start" nor "delete".
    #[error("action {0:?} is not known: it is start or delete")]
    UnknownAction(String),
    /// The id or namespace is missing, or could lead out of a directory.
    #[error("-{flag} {value:?} is not a valid identifier: 1 to 76 letters, digits, '-', '_' or '.'")]
    Identifier {
        /// Which flag.
        flag: &'static str,
        /// What it has.
        value: String,
    },
}

impl Args {
    /// Parses the arguments that follow the program's name.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, ArgsError> {
        let mut args = Self::default();
        let mut arguments = arguments.into_iter().peekable();
        // Go stops looking for flags at the first word that is none, and at "--".
        while let Some(word) = arguments.next_if(|word| word.len() > 1 && word.starts_with('-')) {
            let flag = word.strip_prefix("--").unwrap_or(word.trim_start_matches('-'));
            if flag.is_empty() {
                break;
            }
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if !args.set_boolean(name, inline.as_deref())? {
                let value = inline.or_else(|| arguments.next());
                args.set_value(name, value.ok_or_else(|| ArgsError::NoValue(name.into()))?)?;
            }
        }
        match arguments.next().as_deref() {
            None => {}
            Some("start") => args.action = Action::Start,
            Some("delete") => args.action = Action::Delete,
            Some(TEMPLATE) => args.action = Action::Template,
            Some(other) => return Err(ArgsError::UnknownAction(other.into())),
        }
        args.check()?;
        Ok(args)
    }

    /// Sets a boolean flag; false when `name` is none.
    fn set_boolean(&mut self, name: &str, value: Option<&str>) -> Result<bool, ArgsError> {
        if !matches!(name, "debug" | "v" | "version" | "info") {
            return Ok(false);
        }
        let on = match value {
            None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
            Some(other) => return Err(ArgsError::NotBoolean(name.into(), other.into())),
        };
        match name {
            "debug" => self.debug = on,
            "info" if on => self.action = Action::Info,
            _ if on => self.action = Action::Version,
            _ => {}
        }
        Ok(true)
    }

    fn set_value(&mut self, name: &str, value: String) -> Result<(), ArgsError> {
        match name {
            "namespace" => self.namespace = value,
            "id" => self.id = value,
            "address" => self.address = value,
            "bundle" => self.bundle = Some(value.into()),
            // Some containerd passes each of these; events go over ttrpc and the socket is inherited.
            "publish-binary" | "socket" | "debug-socket" => {}
            _ => return Err(ArgsError::UnknownFlag(name.into())),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ArgsError> {
        if matches!(self.action, Action::Info | Action::Version | Action::Template) {
            return Ok(());
        }
        for (flag, value) in [("id", &self.id), ("namespace", &self.namespace)] {
            if !is_identifier(value) {
                return Err(ArgsError::Identifier { flag, value: value.clone() });
            }
        }
        Ok(())
    }
}

/// Whether containerd would take this as a container id or namespace (its `identifiers.Validate`), which also means
/// that it can be a file's name.
pub(crate) fn is_identifier(value: &str) -> bool {
    value.len() <= 76
        && value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && value.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerd_start_line_is_understood() {
        let line =
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id c1 -debug start";
        let args = parse(line).unwrap();
        assert_eq!(args.action, Action::Start);
        assert_eq!((args.namespace.as_str(), args.id.as_str()), ("k8s.io", "c1"));
        assert_eq!(args.address, "/run/c.sock");
        assert!(args.debug);
    }

    #[test]
    fn delete_takes_a_bundle() {
        let args = parse("-namespace n -address a -publish-binary p -id c1 -bundle /b delete").unwrap();
        assert_eq!(args.action, Action::Delete);
        assert_eq!(args.bundle, Some("/b".into()));
    }

    #[test]
    fn cri_o_passes_an_empty_address() {
        let words = ["-namespace", "default", "-address", "", "-publish-binary", "", "-id", "c1", "start"];
        let args = Args::parse(words.map(str::to_owned)).unwrap();
        assert_eq!((args.action, args.address.as_str()), (Action::Start, ""));
    }

    #[test]
    fn double_dashes_and_equal_signs_are_go_syntax_too() {
        let args = parse("--namespace=n --id=c1 --debug=false start").unwrap();
        assert_eq!((args.id.as_str(), args.debug), ("c1", false));
    }

    #[test]
    fn info_and_version_need_no_id() {
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("--version").unwrap().action, Action::Version);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        assert_eq!(parse("-bogus 1 start"), Err(ArgsError::UnknownFlag("bogus".into())));
        assert_eq!(parse("-id"), Err(ArgsError::NoValue("id".into())));
        assert_eq!(parse("-namespace n -id c stop"), Err(ArgsError::UnknownAction("stop".into())));
        assert_eq!(parse("-debug=yes start"), Err(ArgsError::NotBoolean("debug".into(), "yes".into())));
    }

    #[test]
    fn identifiers_that_lead_elsewhere_are_refused() {
        for id in ["../x", "a/b", "-x", ".", "é"] {
            let words = ["-namespace", "n", "-id", id, "start"];
            let parsed = Args::parse(words.map(str::to_owned));
            assert_eq!(parsed, Err(ArgsError::Identifier { flag: "id", value: id.into() }));
        }
        assert!(parse("-namespace n start").is_err());
    }
}
