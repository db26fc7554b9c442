//! The options of a Create request: which settings file to use.

use std::path::Path;

use monohull_runtime::settings::{Settings, SettingsError};
use protobuf::CodedInputStream;
use protobuf::well_known_types::any::Any;

/// The message that engines send to runtimes other than runc (containerd `api/types/runtimeoptions/v1`).
const TYPE: &str = "runtimeoptions.v1.Options";
/// Tag of its field 2, `config_path`, a length-delimited string.
const CONFIG_PATH_TAG: u32 = 2 << 3 | 2;
/// Tag of its field 3, `config_body`, length-delimited bytes.
const CONFIG_BODY_TAG: u32 = 3 << 3 | 2;

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

/// Where a request's settings are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Config {
    path: String,
    body: String,
}

/// The settings a pod is made with: those of the file that the options' `ConfigPath` names, or else in their
/// `ConfigBody`, or else the host's. Options of other types (runc's, which some engines always send) are not for us.
pub(crate) fn settings(options: &Any) -> Result<Settings, OptionsError> {
    let Config { path, body } = config(options)?;
    Ok(match (path.is_empty(), body.is_empty()) {
        (false, _) => Settings::read(Path::new(&path))?,
        (true, false) => Settings::parse(&body)?,
        (true, true) => Settings::load()?,
    })
}

/// The `ConfigPath` of options, if they have one.
pub(crate) fn config_path(options: &Any) -> Result<Option<String>, protobuf::Error> {
    Ok(Some(config(options)?.path).filter(|path| !path.is_empty()))
}

fn config(options: &Any) -> Result<Config, protobuf::Error> {
    let mut config = Config::default();
    // Some clients write type URLs with a host, "types.containerd.io/…".
    if options.type_url.rsplit('/').next() != Some(TYPE) {
        return Ok(config);
    }
    let mut input = CodedInputStream::from_bytes(&options.value);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag {
            CONFIG_PATH_TAG => config.path = input.read_string()?,
            CONFIG_BODY_TAG => config.body = input.read_string()?,
            _ => skip(&mut input, tag)?,
        }
    }
    Ok(config)
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
    fn path_and_body_are_found_among_the_other_fields() {
        let value = [field(1, "t"), field(2, "/etc/x.toml"), field(3, "body = 1"), vec![4 << 3, 7]].concat();
        for url in [TYPE, "types.containerd.io/runtimeoptions.v1.Options"] {
            let config = config(&options(url, value.clone())).unwrap();
            assert_eq!((config.path.as_str(), config.body.as_str()), ("/etc/x.toml", "body = 1"));
        }
    }

    #[test]
    fn settings_may_come_with_the_request() {
        let found = settings(&options(TYPE, field(3, "default_cpus = 3"))).unwrap();
        assert_eq!(found, Settings { default_cpus: 3, ..Settings::default() });
        let error = settings(&options(TYPE, field(3, "bogus = 1"))).unwrap_err();
        assert!(crate::error::chain(&error).contains("bogus"), "{}", crate::error::chain(&error));
    }

    #[test]
    fn no_path_and_foreign_options_mean_the_hosts_settings() {
        assert_eq!(config(&options(TYPE, field(1, "t"))).unwrap(), Config::default());
        assert_eq!(config(&options("containerd.runc.v1.Options", field(2, "x"))).unwrap(), Config::default());
        assert_eq!(config(&Any::default()).unwrap(), Config::default());
    }

    #[test]
    fn a_broken_message_is_refused() {
        assert!(config(&options(TYPE, vec![2 << 3 | 2, 200])).is_err());
        assert!(config(&options(TYPE, vec![7])).is_err());
    }

    #[test]
    fn a_settings_file_that_is_not_there_is_named() {
        let error = settings(&options(TYPE, field(2, "/nonexistent.toml"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent.toml"));
    }
}
