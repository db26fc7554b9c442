//! What a container's process is: the image's configuration and the command line put together by docker's rules.

use monohull_runtime::image::ImageConfig;

use crate::user::User;

/// The search path of a container that sets none, as docker has it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process to run in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) user: User,
    pub(crate) terminal: bool,
}

/// The arguments: the entrypoint, and then the user's arguments in place of the image's. An entrypoint of the user also
/// takes away the image's arguments; an empty one leaves only the user's. `None` when nothing is left to run.
pub(crate) fn command(
    image: &ImageConfig,
    entrypoint: Option<&str>,
    arguments: &[String],
) -> Option<Vec<String>> {
    let first = match entrypoint {
        Some("") => Vec::new(),
        Some(program) => vec![program.to_owned()],
        None => image.entrypoint.clone().unwrap_or_default(),
    };
    let rest = match (arguments, entrypoint) {
        ([], None) => image.cmd.clone().unwrap_or_default(),
        (arguments, _) => arguments.to_vec(),
    };
    let all = [first, rest].concat();
    (!all.is_empty()).then_some(all)
}

/// The environment: defaults, the image's and the user's, where a later value replaces an earlier one. A `--env` without
/// "=" takes the value from `host`, or is left out if the host has none.
pub(crate) fn environment(
    image: &ImageConfig,
    user: &[String],
    defaults: &[String],
    host: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut environment: Vec<String> = vec![PATH.to_owned()];
    let user = user.iter().filter_map(|variable| match variable.split_once('=') {
        Some(_) => Some(variable.clone()),
        None => host(variable).map(|value| format!("{variable}={value}")),
    });
    let given = defaults.iter().chain(image.env.iter().flatten()).cloned().chain(user);
    for variable in given {
        let key = |text: &str| text.split_once('=').map_or(text.to_owned(), |(key, _)| key.to_owned());
        match environment.iter_mut().find(|other| key(other) == key(&variable)) {
            Some(other) => *other = variable,
            None => environment.push(variable),
        }
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn image(entrypoint: Option<&[&str]>, cmd: Option<&[&str]>) -> ImageConfig {
        ImageConfig { entrypoint: entrypoint.map(strings), cmd: cmd.map(strings), ..ImageConfig::default() }
    }

    #[test]
    fn entrypoint_and_cmd_follow_dockers_table() {
        let both = image(Some(&["e", "1"]), Some(&["c", "2"]));
        let only_cmd = image(None, Some(&["c", "2"]));
        let cases: &[(_, _, &[&str], &[&str])] = &[
            (&both, None, &[], &["e", "1", "c", "2"]),
            (&both, None, &["x"], &["e", "1", "x"]),
            (&both, Some("u"), &[], &["u"]),
            (&both, Some("u"), &["x"], &["u", "x"]),
            (&both, Some(""), &["x"], &["x"]),
            (&only_cmd, None, &[], &["c", "2"]),
            (&only_cmd, None, &["x", "y"], &["x", "y"]),
            (&image(Some(&["e"]), None), None, &[], &["e"]),
        ];
        for (image, entrypoint, arguments, expected) in cases {
            let command = command(image, *entrypoint, &strings(arguments));
            assert_eq!(command, Some(strings(expected)), "{image:?} {entrypoint:?} {arguments:?}");
        }
    }

    #[test]
    fn nothing_to_run_is_told() {
        assert_eq!(command(&image(None, None), None, &[]), None);
        assert_eq!(command(&image(Some(&[]), Some(&[])), None, &[]), None);
        assert_eq!(command(&image(Some(&["e"]), Some(&["c"])), Some(""), &[]), None);
    }

    #[test]
    fn later_values_replace_earlier_ones_in_their_place() {
        let image =
            ImageConfig { env: Some(strings(&["PATH=/image", "A=1", "B=1"])), ..ImageConfig::default() };
        let user = strings(&["A=2", "C=x=y", "HOME"]);
        let host = |key: &str| (key == "HOME").then(|| "/home/me".to_owned());
        let environment = environment(&image, &user, &strings(&["TERM=xterm", "B=0"]), host);
        assert_eq!(
            environment,
            strings(&["PATH=/image", "TERM=xterm", "B=1", "A=2", "C=x=y", "HOME=/home/me"])
        );
    }

    #[test]
    fn variable_the_host_does_not_have_is_left_out() {
        let environment = environment(&ImageConfig::default(), &strings(&["NONE", "EMPTY="]), &[], |_| None);
        assert_eq!(environment, strings(&[PATH, "EMPTY="]));
    }
}
