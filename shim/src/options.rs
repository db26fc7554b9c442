//! The options of a Create request: which settings file to use.

use std::path::Path;

use monohull_runtime::settings::{Settings, SettingsError};
use protobuf::CodedInputStream;
use protobuf::well_known_types::any::Any;

/// The message that engines send to runtimes other than runc (containerd `api/types/runtimeoptions/v1`).
const TYPE: &str = "runtimeoptions.v1.Options";
/// Tag of its field 2, `config_path`, a length-delimited string.
const CONFIG_PATH_TAG: u32 = 2 << 3 | 2;

/// Options that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OptionsError {
    /// Not the message its type says.
    #[error("the runtime options are not a valid {TYPE} message")]
    Decode(#[from] protobuf::Error),
    /// The settings they lead to can't be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// The settings a pod is made with: those of the options' `ConfigPath`, or else the host's. Options of other types
/// (runc's, which some engines always send) are not for us.
pub(crate) fn settings(options: &Any) -> Result<Settings, OptionsError> {
    match config_path(options)? {
        Some(path) => Ok(Settings::read(Path::new(&path))?),
        None => Ok(Settings::load()?),
    }
}

/// The `ConfigPath` of options, if they have one.
pub(crate) fn config_path(options: &Any) -> Result<Option<String>, protobuf::Error> {
    // Some clients write type URLs with a host, "types.containerd.io/…".
    if options.type_url.rsplit('/').next() != Some(TYPE) {
        return Ok(None);
    }
    let mut path = None;
    let mut input = CodedInputStream::from_bytes(&options.value);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        if tag == CONFIG_PATH_TAG {
            path = Some(input.read_string()?);
        } else {
            skip(&mut input, tag)?;
        }
    }
    Ok(path.filter(|path| !path.is_empty()))
}

/// Skips a field of no interest.
fn skip(input: &mut CodedInputStream<'_>, tag: u32) -> Result<(), protobuf::Error> {
    let wire_type =
        protobuf::rt::WireType::new(tag & 7).ok_or_else(|| std::io::Error::other("unknown wire type"))?;
    input.skip_field(wire_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, value: &str) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(value.len()).unwrap()], value.as_bytes()].concat()
    }

    fn options(type_url: &str, value: Vec<u8>) -> Any {
        Any { type_url: type_url.into(), value, ..Default::default() }
    }

    #[test]
    fn the_config_path_is_found_among_the_other_fields() {
        let value = [field(1, "t"), field(2, "/etc/x.toml"), field(3, "body = 1"), vec![4 << 3, 7]].concat();
        for url in [TYPE, "types.containerd.io/runtimeoptions.v1.Options"] {
            let path = config_path(&options(url, value.clone())).unwrap();
            assert_eq!(path.as_deref(), Some("/etc/x.toml"));
        }
    }

    #[test]
    fn no_path_and_foreign_options_mean_the_hosts_settings() {
        assert_eq!(config_path(&options(TYPE, field(3, "body"))).unwrap(), None);
        assert_eq!(config_path(&options("containerd.runc.v1.Options", field(2, "x"))).unwrap(), None);
        assert_eq!(config_path(&Any::default()).unwrap(), None);
    }

    #[test]
    fn a_broken_message_is_refused() {
        assert!(config_path(&options(TYPE, vec![2 << 3 | 2, 200])).is_err());
        assert!(config_path(&options(TYPE, vec![7])).is_err());
    }

    #[test]
    fn a_settings_file_that_is_not_there_is_named() {
        let error = settings(&options(TYPE, field(2, "/nonexistent.toml"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent.toml"));
    }
}
