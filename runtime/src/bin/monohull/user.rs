//! Who a container's process runs as: docker's rules for `--user` and an image's `User`.

use std::io;
use std::path::Path;

use monohull_runtime::image::Tree;

/// Most bytes of a container's passwd or group file.
const MAX_FILE: u64 = 8 << 20;

/// A resolved user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Groups that list the user as a member; none when a group was asked for.
    pub(crate) additional_gids: Vec<u32>,
    pub(crate) home: String,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("the container has no {kind} {name:?}: name one that its {file} lists, or give a number")]
    Unknown { kind: &'static str, name: String, file: &'static str },
    #[error("{0:?} is not a user id: it must be below 2147483648")]
    TooLarge(String),
    #[error("cannot read /{0} of the container")]
    Read(&'static str, #[source] io::Error),
}

/// Resolves "user", "uid", "user:group" or "uid:gid", empty for root, with the files of the container's tree.
pub(crate) fn resolve(wanted: &str, tree: &Tree) -> Result<User, UserError> {
    let read = |file: &'static str| match tree.read(Path::new(file), MAX_FILE) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(String::new())
        }
        Err(error) => Err(UserError::Read(file, error)),
    };
    lookup(wanted, &read("etc/passwd")?, &read("etc/group")?)
}

fn lookup(wanted: &str, passwd: &str, groups: &str) -> Result<User, UserError> {
    let (user, group) = wanted.split_once(':').unwrap_or((wanted, ""));
    let user = if user.is_empty() { "0" } else { user };
    let entry = entries(passwd).find(|fields| field(fields, 0) == user || field(fields, 2) == user);
    let mut found = match &entry {
        Some(fields) => User {
            uid: number(field(fields, 2))?.unwrap_or(0),
            gid: number(field(fields, 3))?.unwrap_or(0),
            additional_gids: Vec::new(),
            home: field(fields, 5).to_owned(),
        },
        None => User {
            uid: number(user)?.ok_or_else(|| unknown("user", user, "/etc/passwd"))?,
            gid: 0,
            additional_gids: Vec::new(),
            home: String::new(),
        },
    };
    if found.home.is_empty() {
        found.home = "/".to_owned();
    }
    if !group.is_empty() {
        let entry = entries(groups).find(|fields| field(fields, 0) == group || field(fields, 2) == group);
        let gid = entry.map_or(group, |fields| fields.get(2).copied().unwrap_or_default());
        found.gid = number(gid)?.ok_or_else(|| unknown("group", group, "/etc/group"))?;
    } else if let Some(fields) = entry {
        let name = field(&fields, 0);
        let member = |fields: &Vec<&str>| field(fields, 3).split(',').any(|member| member == name);
        let gids = entries(groups).filter(member).map(|fields| number(field(&fields, 2)));
        found.additional_gids = gids.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    }
    Ok(found)
}

fn unknown(kind: &'static str, name: &str, file: &'static str) -> UserError {
    UserError::Unknown { kind, name: name.to_owned(), file }
}

/// The lines of a passwd(5) or group(5) file, by field.
fn entries(file: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = file.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split(':').collect())
}

fn field<'a>(fields: &[&'a str], number: usize) -> &'a str {
    fields.get(number).copied().unwrap_or_default()
}

/// An id, if the text is one. Docker's limit: the largest 32-bit number with a sign.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<i32>() {
        Ok(id) => Ok(u32::try_from(id).ok()),
        Err(_) => Err(UserError::TooLarge(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
# comment:x:9:9::/:
www:x:33:34:web:/var/www:/sbin/nologin

1000:x:7:7:a name of digits:/seven:/bin/sh
";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,www\nwww:x:34:\nweb:x:35:www,other\n";

    fn user(wanted: &str) -> User {
        lookup(wanted, PASSWD, GROUP).unwrap()
    }

    #[test]
    fn empty_is_root_with_its_groups() {
        let root = User { uid: 0, gid: 0, additional_gids: vec![10], home: "/root".into() };
        assert_eq!(user(""), root);
        assert_eq!(user("root"), root);
        assert_eq!(user("0"), root);
    }

    #[test]
    fn name_and_number_find_the_same_entry() {
        let www = User { uid: 33, gid: 34, additional_gids: vec![10, 35], home: "/var/www".into() };
        assert_eq!(user("www"), www);
        assert_eq!(user("33"), www);
    }

    #[test]
    fn given_group_replaces_all_groups() {
        let www = User { uid: 33, gid: 35, additional_gids: vec![], home: "/var/www".into() };
        assert_eq!(user("www:web"), www);
        assert_eq!(user("www:35"), www);
        assert_eq!(user(":web").gid, 35);
    }

    #[test]
    fn name_of_digits_wins_over_the_number() {
        assert_eq!(user("1000").uid, 7);
    }

    #[test]
    fn unlisted_numbers_are_taken_as_they_are() {
        let expected = User { uid: 4000, gid: 0, additional_gids: vec![], home: "/".into() };
        assert_eq!(user("4000"), expected);
        assert_eq!(user("4000:5000").gid, 5000);
        assert_eq!(lookup("", "", "").unwrap().uid, 0);
    }

    #[test]
    fn unlisted_names_and_impossible_numbers_are_refused() {
        for wanted in ["nobody", "www:nogroup", "-1", "4294967296", "2147483648", "0:4294967295", " www"] {
            assert!(lookup(wanted, PASSWD, GROUP).is_err(), "{wanted}");
        }
    }

    #[test]
    fn hostile_files_are_only_text() {
        assert_eq!(lookup("a", "a\n", "").unwrap().uid, 0);
        assert!(lookup("a", "a:x:99999999999:0::/:\n", "").is_err());
        assert_eq!(lookup("a", ":::::::\na:x:1\n", ":::a\n").unwrap().uid, 1);
    }
}
