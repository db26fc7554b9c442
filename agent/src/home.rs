//! The variable HOME of a container's processes.
//!
//! libcontainer has the C library look for one where it is missing, which asks for eleven files of the container, and loads
//! what its `nsswitch.conf` names into a process that has not given up its rights yet. So none is left for it to look for.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use oci_spec::runtime::{Process, Spec};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

const VARIABLE: &str = "HOME=";
const USERS: &str = "/etc/passwd";
/// Of those without one, as runc has it.
const NOWHERE: &str = "/";
/// Not blocking: a container's file may be anything.
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
/// Bytes of the list of users that are read.
const MOST: u64 = 1 << 20;

/// Adds it to `process`, which will run with the root directory `root`.
pub(crate) fn complete(process: &mut Process, root: &Path) {
    complete_from(process, || open_in(root, Path::new(USERS)));
}

/// [`complete`]s the process of a container that is to be made. A list of users that will be mounted is where that mount
/// has it from.
pub(crate) fn complete_spec(spec: &mut Spec, bundle: &Path) {
    let Some(mut process) = spec.process().clone() else { return };
    let root = spec.root().as_ref().map(|root| bundle.join(root.path())).unwrap_or_default();
    let mounts = spec.mounts().iter().flatten().filter(|mount| mount.destination() != Path::new("/"));
    let mut over =
        mounts.filter_map(|mount| Some((mount, Path::new(USERS).strip_prefix(mount.destination()).ok()?)));
    // The last one is on top; others than bind mounts are empty or none of the container's.
    complete_from(&mut process, || match over.next_back() {
        None => open_in(&root, Path::new(USERS)),
        Some((mount, rest)) => {
            let source = mount.source().as_deref().filter(|source| source.is_absolute());
            let source = source.ok_or(io::ErrorKind::NotFound)?;
            if rest.as_os_str().is_empty() {
                Ok(File::from(openat(CWD, source, FLAGS | OFlags::NOFOLLOW, Mode::empty())?))
            } else {
                open_in(source, rest)
            }
        }
    });
    spec.set_process(Some(process));
}

fn complete_from(process: &mut Process, users: impl FnOnce() -> io::Result<File>) {
    let has_one = |variable: &String| variable.len() > VARIABLE.len() && variable.starts_with(VARIABLE);
    let mut variables = process.env().clone().unwrap_or_default();
    if variables.iter().any(has_one) {
        return;
    }
    // Without a list there are no users.
    let home = users().and_then(|users| find(users, process.user().uid())).ok().flatten();
    variables.retain(|variable| !variable.starts_with(VARIABLE));
    variables.push(format!("{VARIABLE}{}", home.as_deref().unwrap_or(NOWHERE)));
    process.set_env(Some(variables));
}

/// Opens a file as a process with the root directory `root` would.
fn open_in(root: &Path, path: &Path) -> io::Result<File> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(File::from(openat2(&root, path, FLAGS, Mode::empty(), ResolveFlags::IN_ROOT)?))
}

fn find(users: File, user: u32) -> io::Result<Option<String>> {
    if !users.metadata()?.is_file() {
        return Ok(None);
    }
    let lines = BufReader::new(users.take(MOST)).lines();
    Ok(lines.map_while(Result::ok).find_map(|line| home_in(&line, user)))
}

/// The directory in a line of passwd(5), if it is `user`'s.
fn home_in(line: &str, user: u32) -> Option<String> {
    let mut fields = line.split(':');
    let number: u32 = fields.nth(2)?.parse().ok()?;
    let home = fields.nth(2)?;
    (number == user && !home.is_empty()).then(|| home.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn home(root: &Path, user: u32, variables: &[&str]) -> Vec<String> {
        let mut process = Process::default();
        let mut as_user = process.user().clone();
        as_user.set_uid(user);
        process.set_user(as_user).set_env(Some(variables.iter().map(|&text| text.to_owned()).collect()));
        complete(&mut process, root);
        process.env().clone().unwrap()
    }

    fn root_with(passwd: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        root
    }

    #[test]
    fn a_user_has_the_home_of_its_line() {
        let root =
            root_with("root:x:0:0:root:/root:/bin/sh\nbroken\n#\napp:x:10:10::/srv/app:\nnone:x:11:11:::\n");
        let root = root.path();
        assert_eq!(home(root, 10, &["A=b"]), ["A=b", "HOME=/srv/app"]);
        assert_eq!(home(root, 0, &["HOME="]), ["HOME=/root"], "an empty one is none");
        assert_eq!(
            (home(root, 11, &[]), home(root, 12, &[])),
            (vec!["HOME=/".into()], vec!["HOME=/".into()])
        );
        assert_eq!(home(root, 10, &["HOME=/mine"]), ["HOME=/mine"]);
    }

    #[test]
    fn the_list_is_the_containers_own() {
        let root = root_with("");
        let (other, list) = (root_with("x:x:7:7::/outside:\n"), root.path().join("etc/passwd"));
        fs::remove_file(&list).unwrap();
        symlink(other.path().join("etc/passwd"), &list).unwrap();
        assert_eq!(home(root.path(), 7, &[]), ["HOME=/"]);
        fs::remove_file(&list).unwrap();
        make_fifo(&list);
        assert_eq!(home(root.path(), 7, &[]), ["HOME=/"], "and does not keep us waiting");
    }

    fn make_fifo(path: &Path) {
        rustix::fs::mknodat(CWD, path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    }

    #[test]
    fn a_list_that_will_be_mounted_counts() {
        let root = root_with("app:x:10:10::/below:\n");
        let other = root_with("app:x:10:10::/above:\n");
        let home = |destination: &str, source: &str| {
            let mut mount = oci_spec::runtime::Mount::default();
            mount.set_destination(destination.into()).set_source(Some(other.path().join(source)));
            let mut spec = Spec::default();
            let mut of_root = spec.root().clone().unwrap();
            of_root.set_path(root.path().into());
            let mut process = spec.process().clone().unwrap();
            let mut user = process.user().clone();
            user.set_uid(10);
            process.set_env(None).set_user(user);
            spec.set_root(Some(of_root)).set_process(Some(process)).set_mounts(Some(vec![mount]));
            complete_spec(&mut spec, Path::new("/"));
            spec.process().clone().unwrap().env().clone().unwrap().concat()
        };
        assert_eq!(home("/etc/passwd", "etc/passwd"), "HOME=/above");
        assert_eq!(home("/etc", "etc"), "HOME=/above");
        assert_eq!(home("/etc", "none"), "HOME=/", "a file system without one");
        assert_eq!(home("/etc/hosts", "etc"), "HOME=/below");
    }
}
