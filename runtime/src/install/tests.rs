use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Action, InstallError, Kind, Options, Plan, Report, install, uninstall};

mod changed;
mod engines;
mod hostile;

const CONTAINERD: &str = "etc/containerd/config.toml";

/// A host, and a release to install on it, in a directory of their own.
struct Host {
    scratch: TempDir,
}

/// All that is below a directory: kind and permissions, owner and content of each name.
type Snapshot = BTreeMap<PathBuf, (u32, u32, u32, String)>;

impl Host {
    fn new() -> Self {
        let host = Self { scratch: tempfile::tempdir().unwrap() };
        for (name, mode) in [
            ("usr/local/bin/monohull", 0o755),
            ("usr/local/bin/containerd-shim-monohull-v2", 0o755),
            ("usr/libexec/monohull/monohull-vmm", 0o755),
            ("usr/libexec/monohull/monohull-fs", 0o755),
            ("usr/share/monohull/vmlinux", 0o644),
            ("usr/share/monohull/initramfs.cpio", 0o644),
            ("usr/share/doc/monohull/copyright", 0o644),
        ] {
            let path = host.release().join(name);
            write(&path, &format!("{name} of release 1"));
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(host.root()).unwrap();
        host
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    fn release(&self) -> PathBuf {
        self.scratch.path().join("release")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        write(&self.path(name), text);
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn options(&self) -> Options {
        Options { root: self.root(), from: Some(self.release()), ..Options::default() }
    }

    fn plan(&self) -> Result<Plan, InstallError> {
        install(&self.options())
    }

    fn install(&self) -> Report {
        self.plan().and_then(Plan::apply).unwrap()
    }

    fn uninstall(&self) -> Report {
        uninstall(&self.root()).and_then(Plan::apply).unwrap()
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::new();
        collect(&self.root(), &mut snapshot);
        snapshot
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn collect(directory: &Path, snapshot: &mut Snapshot) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let content = if kind.is_symlink() {
            fs::read_link(&path).unwrap().to_string_lossy().into_owned()
        } else if kind.is_file() {
            fs::read_to_string(&path).unwrap()
        } else {
            String::new()
        };
        let of = (metadata.mode(), metadata.uid(), metadata.gid(), content);
        snapshot.insert(path.clone(), of);
        if kind.is_dir() {
            collect(&path, snapshot);
        }
    }
}

/// Asserts that nothing has changed, and else names what has.
#[track_caller]
fn assert_same(now: &Snapshot, before: &Snapshot, what: &str) {
    let names = now.keys().chain(before.keys()).collect::<std::collections::BTreeSet<_>>();
    let differ: Vec<_> = names.into_iter().filter(|name| now.get(*name) != before.get(*name)).collect();
    let show =
        |name: &&PathBuf| format!("{}: {:?}, was {:?}", name.display(), now.get(*name), before.get(*name));
    assert!(differ.is_empty(), "{what}: {}", differ.iter().map(show).collect::<Vec<_>>().join("\n"));
}

/// What a report says of one file.
fn of<'a>(report: &'a Report, path: &str) -> (Action, &'a str) {
    let line = report.files.iter().find(|line| line.path == Path::new(path));
    let line = line.unwrap_or_else(|| panic!("nothing of {path} in {report:?}"));
    (line.action, &line.why)
}

#[test]
fn a_release_is_copied_with_its_modes_and_removed_to_the_last_directory() {
    let host = Host::new();
    fs::create_dir_all(host.path("usr/local/bin")).unwrap();
    let before = host.snapshot();

    let report = host.install();

    assert!(report.files.iter().all(|line| line.action == Action::Create), "{report:?}");
    assert!(report.notes[0].contains("no engine is here"), "{report:?}");
    assert_eq!(host.read("usr/share/monohull/vmlinux"), "usr/share/monohull/vmlinux of release 1");
    let mode = |name| fs::metadata(host.path(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("usr/local/bin/monohull"), 0o755);
    assert_eq!(mode("usr/share/doc/monohull/copyright"), 0o644);
    assert_eq!(mode("usr/libexec/monohull"), 0o755);
    assert_eq!(
        (mode("var/lib"), mode("var/lib/monohull"), mode("var/lib/monohull/install.json")),
        (0o755, 0o700, 0o600)
    );

    host.uninstall();
    assert_same(&host.snapshot(), &before, "files");
}

#[test]
fn a_plan_says_what_it_does_and_does_nothing() {
    let host = Host::new();
    host.write(CONTAINERD, "version = 2\n");
    let before = host.snapshot();

    let plan = host.plan().unwrap();

    let line = plan
        .report()
        .files
        .iter()
        .find(|line| line.path == Path::new("/etc/containerd/config.toml"))
        .unwrap();
    assert_eq!(line.action, Action::Change);
    assert!(
        line.diff.starts_with("--- /etc/containerd/config.toml\n+++ /etc/containerd/config.toml\n@@ "),
        "{}",
        line.diff
    );
    assert!(line.diff.contains("\n version = 2\n+\n+# >>> "), "{}", line.diff);
    assert_eq!(of(plan.report(), "/usr/local/bin/monohull").0, Action::Create);
    assert_same(&host.snapshot(), &before, "files");
}

#[test]
fn two_installations_at_a_time_are_refused() {
    let host = Host::new();
    let _plan = host.plan().unwrap();
    assert!(matches!(host.plan(), Err(InstallError::Busy(_))));
    assert!(matches!(uninstall(&host.root()), Err(InstallError::Busy(_))));
}

#[test]
fn what_is_not_a_whole_release_is_not_installed() {
    let host = Host::new();
    fs::remove_file(host.release().join("usr/share/monohull/vmlinux")).unwrap();
    let error = host.plan().unwrap_err().to_string();
    assert!(error.contains("has no /usr/share/monohull/vmlinux"), "{error}");

    let options = Options { from: Some(host.root()), ..host.options() };
    assert!(matches!(install(&options), Err(InstallError::NoTree(_))));
}

#[test]
fn nothing_is_copied_where_it_runs_from() {
    let host = Host::new();
    let options = Options { root: host.release(), from: Some(host.release()), ..host.options() };
    write(&host.release().join(CONTAINERD), "version = 2\n");

    let report = install(&options).and_then(Plan::apply).unwrap();

    assert_eq!(report.files.len(), 1, "{report:?}");
    assert!(report.notes[0].contains("nothing is copied"), "{report:?}");
    uninstall(&host.release()).and_then(Plan::apply).unwrap();
    assert!(host.release().join("usr/local/bin/monohull").exists());
    assert!(!host.release().join("var").exists());
}

#[test]
fn what_was_never_installed_is_not_removed() {
    let host = Host::new();
    assert!(matches!(uninstall(&host.root()), Err(InstallError::NotInstalled(_))));
    host.write(
        "var/lib/monohull/install.json",
        "{\"version\": 2, \"release\": \"9\", \"directories\": [], \"files\": []}",
    );
    assert!(matches!(uninstall(&host.root()), Err(InstallError::Manifest(..))));
}

#[test]
fn only_the_engines_asked_for_are_configured() {
    let host = Host::new();
    host.write(CONTAINERD, "version = 2\n");
    fs::create_dir_all(host.path("etc/crio")).unwrap();
    let with = |engines: &[Kind]| install(&Options { engines: Some(engines.to_vec()), ..host.options() });

    let report = with(&[Kind::Crio]).unwrap().report().clone();
    assert_eq!(report.restart, [Kind::Crio]);
    assert_eq!(with(&[]).unwrap().report().restart, []);
    assert!(matches!(with(&[Kind::K3s]), Err(InstallError::NoEngine("k3s", _))));
}
