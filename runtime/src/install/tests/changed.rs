//! What others change between installation, upgrade and removal.

use super::*;

const DROP_IN: &str = "etc/crio/crio.conf.d/50-monohull.conf";

fn release_2(host: &Host) {
    for name in ["usr/local/bin/monohull", "usr/share/monohull/vmlinux"] {
        write(&host.release().join(name), &format!("{name} of release 2"));
    }
}

#[test]
fn an_upgrade_replaces_files_and_who_has_the_old_ones_open_keeps_them() {
    let host = Host::new();
    host.write(CONTAINERD, "version = 2\n");
    let before = host.snapshot();
    host.install();
    let mut open = fs::File::open(host.path("usr/share/monohull/vmlinux")).unwrap();
    release_2(&host);

    let report = host.install();

    assert_eq!(of(&report, "/usr/share/monohull/vmlinux").0, Action::Change);
    assert_eq!(of(&report, "/usr/libexec/monohull/monohull-vmm").0, Action::Leave);
    assert_eq!(of(&report, "/etc/containerd/config.toml").0, Action::Leave);
    assert_eq!(report.restart, []);
    assert!(host.read("usr/share/monohull/vmlinux").ends_with("release 2"));
    let mut old = String::new();
    std::io::Read::read_to_string(&mut open, &mut old).unwrap();
    assert!(old.ends_with("release 1"), "{old}");

    host.uninstall();
    assert_same(&host.snapshot(), &before, "files");
}

#[test]
fn lines_of_an_older_release_are_replaced_where_they_are() {
    let host = Host::new();
    host.write(CONTAINERD, "version = 2\n");
    let before = host.snapshot();
    host.install();
    // As if another release had installed it: other lines, and the manifest knows them.
    let manifest = host.read("var/lib/monohull/install.json");
    host.write(
        "var/lib/monohull/install.json",
        &manifest.replace("privileged_without_host_devices = true", "old = true"),
    );
    let config = host.read(CONTAINERD);
    host.write(CONTAINERD, &(config.replace("privileged_without_host_devices = true", "old = true")));

    assert_eq!(of(&host.install(), "/etc/containerd/config.toml").0, Action::Change);
    assert_eq!(host.read(CONTAINERD), config);
    host.uninstall();
    assert_same(&host.snapshot(), &before, "files");
}

#[test]
fn a_program_that_was_there_before_comes_back() {
    let host = Host::new();
    host.write("usr/local/bin/monohull", "somebody else's");
    fs::set_permissions(host.path("usr/local/bin/monohull"), fs::Permissions::from_mode(0o700)).unwrap();
    let before = host.snapshot();
    host.install();
    assert!(host.read("usr/local/bin/monohull").ends_with("release 1"));
    release_2(&host);
    host.install();
    host.uninstall();
    assert_same(&host.snapshot(), &before, "files");
}

#[test]
fn a_program_that_was_there_and_is_the_same_stays() {
    let host = Host::new();
    let name = "usr/share/monohull/vmlinux";
    host.write(name, &format!("{name} of release 1"));
    let before = host.snapshot();
    assert_eq!(of(&host.install(), "/usr/share/monohull/vmlinux").0, Action::Leave);
    host.uninstall();
    assert_same(&host.snapshot(), &before, "files");
}

#[test]
fn settings_that_users_add_to_a_changed_file_stay_when_the_lines_go() {
    let host = Host::new();
    host.write(CONTAINERD, "version = 2\n");
    host.install();
    let text = host.read(CONTAINERD).replace("version = 2\n", "version = 2\n# by hand\noom_score = -1\n");
    host.write(CONTAINERD, &format!("{text}[debug]\n  level = \"debug\"\n"));
    assert!(host.install().changes_nothing());

    let report = host.uninstall();

    let (action, why) = of(&report, "/etc/containerd/config.toml");
    assert_eq!((action, why.contains("only Monohull's lines")), (Action::Change, true));
    assert_eq!(
        host.read(CONTAINERD),
        "version = 2\n# by hand\noom_score = -1\n[debug]\n  level = \"debug\"\n"
    );
    assert!(!host.path("var").exists());
}

#[test]
fn settings_that_users_add_to_a_new_file_stay_when_the_lines_go() {
    let host = Host::new();
    host.write("usr/bin/containerd", "");
    host.install();
    host.write(CONTAINERD, &(host.read(CONTAINERD) + "[debug]\n"));
    host.uninstall();
    assert_eq!(host.read(CONTAINERD), "version = 2\n[debug]\n");
}

#[test]
fn lines_that_users_have_changed_are_theirs() {
    let host = Host::new();
    host.write(CONTAINERD, "version = 2\n");
    host.install();
    let text = host.read(CONTAINERD).replace("io.monohull.*", "io.monohull.memory");
    host.write(CONTAINERD, &text);

    assert!(of(&host.install(), "/etc/containerd/config.toml").1.contains("was changed"));
    assert_eq!(host.read(CONTAINERD), text);
    let report = host.uninstall();
    assert!(of(&report, "/etc/containerd/config.toml").1.contains("take them out by hand"), "{report:?}");
    assert_eq!(host.read(CONTAINERD), text);
}

#[test]
fn lines_that_users_have_removed_are_not_missed() {
    let host = Host::new();
    host.write(CONTAINERD, "version = 2\n");
    host.install();
    host.write(CONTAINERD, "version = 2\n[debug]\n");
    let report = host.uninstall();
    assert!(
        of(&report, "/etc/containerd/config.toml").1.contains("has no lines of Monohull's"),
        "{report:?}"
    );
    assert_eq!(host.read(CONTAINERD), "version = 2\n[debug]\n");
}

#[test]
fn a_drop_in_that_users_have_changed_survives_upgrades_and_is_kept_at_the_end() {
    let host = Host::new();
    host.write("etc/crio/crio.conf", "");
    host.install();
    host.write(DROP_IN, "# mine\n");
    assert!(of(&host.install(), "/etc/crio/crio.conf.d/50-monohull.conf").1.contains("was changed"));
    assert_eq!(host.read(DROP_IN), "# mine\n");

    let report = host.uninstall();

    // An engine does not start with a drop-in that names a program which is gone.
    assert!(!host.path(DROP_IN).exists());
    let (_, why) = of(&report, "/etc/crio/crio.conf.d/50-monohull.conf");
    assert!(why.contains("kept as /var/lib/monohull/kept/50-monohull.conf"), "{why}");
    assert_eq!(host.read("var/lib/monohull/kept/50-monohull.conf"), "# mine\n");
}

#[test]
fn what_users_have_put_beside_it_stays() {
    let host = Host::new();
    host.install();
    host.write("usr/libexec/monohull/notes", "mine");
    host.uninstall();
    assert_eq!(host.snapshot().keys().filter(|path| path.is_file()).count(), 1);
    assert_eq!(host.read("usr/libexec/monohull/notes"), "mine");
}

#[test]
fn what_users_have_removed_is_installed_again_and_not_missed() {
    let host = Host::new();
    let before = host.snapshot();
    host.install();
    fs::remove_dir_all(host.path("usr/share")).unwrap();
    assert_eq!(of(&host.install(), "/usr/share/monohull/vmlinux").0, Action::Create);
    fs::remove_dir_all(host.path("usr/share")).unwrap();
    let report = host.uninstall();
    assert!(of(&report, "/usr/share/monohull/vmlinux").1.contains("gone already"));
    assert_same(&host.snapshot(), &before, "files");
}

#[test]
fn a_lost_copy_of_what_was_there_stops_the_removal() {
    let host = Host::new();
    host.write(CONTAINERD, "version = 2\n");
    host.install();
    for entry in fs::read_dir(host.path("var/lib/monohull/install")).unwrap() {
        fs::write(entry.unwrap().path(), "lost").unwrap();
    }
    let installed = host.snapshot();
    assert!(matches!(uninstall(&host.root()), Err(InstallError::Backup(_))));
    assert_same(&host.snapshot(), &installed, "files");
}
