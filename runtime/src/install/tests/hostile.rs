//! Links in the way, failures half-way, and installations that were killed.

use super::*;

/// A file outside of the root directory that must never change.
fn bait(host: &Host) -> PathBuf {
    let bait = host.scratch.path().join("bait");
    fs::write(&bait, "untouched").unwrap();
    bait
}

#[test]
fn links_never_lead_out_of_the_root_directory() {
    let host = Host::new();
    let outside = host.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    // An image whose links are meant for when it is the root.
    fs::create_dir_all(host.path("usr/share")).unwrap();
    fs::create_dir_all(host.root().join(outside.strip_prefix("/").unwrap())).unwrap();
    symlink(&outside, host.path("usr/share/monohull")).unwrap();
    symlink("../../../../../../../../..", host.path("usr/libexec")).unwrap();
    let before = host.snapshot();

    host.install();

    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(host.root().join(outside.strip_prefix("/").unwrap()).join("vmlinux").exists());
    assert!(host.path("monohull/monohull-vmm").exists());
    host.uninstall();
    assert_same(&host.snapshot(), &before, "files");
}

#[test]
fn a_link_in_a_files_place_is_not_written_through() {
    for name in
        ["usr/local/bin/monohull", "etc/crio/crio.conf.d/50-monohull.conf", "var/lib/monohull/install.json"]
    {
        let host = Host::new();
        let bait = bait(&host);
        host.write("etc/crio/crio.conf", "");
        fs::create_dir_all(host.path(name).parent().unwrap()).unwrap();
        symlink(&bait, host.path(name)).unwrap();
        let before = host.snapshot();

        let error = host.plan().and_then(Plan::apply).unwrap_err();

        assert!(matches!(&error, InstallError::NotAFile(path) if path.ends_with(name)), "{error:?}");
        assert_same(&host.snapshot(), &before, name);
        assert_eq!(fs::read_to_string(&bait).unwrap(), "untouched");
    }
}

#[test]
fn a_link_in_the_place_of_a_temporary_name_is_not_written_through() {
    let host = Host::new();
    let bait = bait(&host);
    fs::create_dir_all(host.path("usr/local/bin")).unwrap();
    symlink(&bait, host.path("usr/local/bin/.monohull.monohull")).unwrap();
    host.install();
    assert_eq!(fs::read_to_string(&bait).unwrap(), "untouched");
    assert!(host.read("usr/local/bin/monohull").ends_with("release 1"));
}

#[test]
fn a_configuration_behind_a_link_is_changed_where_it_is() {
    let host = Host::new();
    host.write("opt/containerd/real.toml", "version = 2\n");
    fs::create_dir_all(host.path("etc/containerd")).unwrap();
    symlink("/opt/containerd/real.toml", host.path(CONTAINERD)).unwrap();
    let before = host.snapshot();

    let report = host.install();

    assert_eq!(of(&report, "/opt/containerd/real.toml").0, Action::Change);
    assert!(fs::symlink_metadata(host.path(CONTAINERD)).unwrap().is_symlink());
    host.uninstall();
    assert_same(&host.snapshot(), &before, "files");
}

#[test]
fn a_link_to_itself_is_an_error() {
    let host = Host::new();
    fs::create_dir_all(host.path("etc/containerd")).unwrap();
    symlink("config.toml", host.path(CONTAINERD)).unwrap();
    let error = host.plan().unwrap_err().to_string();
    assert!(error.contains("follow the links of /etc/containerd/config.toml"), "{error}");
}

#[test]
fn a_directory_in_a_files_place_is_refused_by_name() {
    let host = Host::new();
    fs::create_dir_all(host.path("usr/share/monohull/vmlinux")).unwrap();
    let error = host.plan().unwrap_err();
    assert!(matches!(&error, InstallError::NotAFile(path) if path.ends_with("vmlinux")), "{error:?}");
}

#[test]
fn a_failure_half_way_undoes_what_was_done() {
    let host = Host::new();
    host.write(CONTAINERD, "version = 2\n");
    host.write("usr/local/bin/containerd-shim-monohull-v2", "somebody else's");
    let before = host.snapshot();
    let plan = host.plan().unwrap();
    fs::remove_file(host.release().join("usr/share/monohull/initramfs.cpio")).unwrap();

    let error = plan.apply().unwrap_err();

    assert!(error.to_string().contains("cannot open"), "{error}");
    assert_same(&host.snapshot(), &before, "files");
}

#[test]
fn an_upgrade_that_fails_half_way_leaves_the_old_release() {
    let host = Host::new();
    host.install();
    let installed = host.snapshot();
    for name in ["usr/local/bin/monohull", "usr/share/monohull/initramfs.cpio"] {
        write(&host.release().join(name), "new");
    }
    let plan = host.plan().unwrap();
    fs::remove_file(host.release().join("usr/share/monohull/initramfs.cpio")).unwrap();
    plan.apply().unwrap_err();
    assert_same(&host.snapshot(), &installed, "files");
}

#[test]
fn a_removal_that_fails_half_way_leaves_everything() {
    let host = Host::new();
    host.write(CONTAINERD, "version = 2\n");
    host.install();
    let installed = host.snapshot();
    let plan = uninstall(&host.root()).unwrap();
    // The last file to go: all others are gone by then.
    let shim = host.path("usr/local/bin/containerd-shim-monohull-v2");
    let away = host.scratch.path().join("away");
    fs::rename(&shim, &away).unwrap();
    plan.apply().unwrap_err();
    fs::rename(&away, &shim).unwrap();
    assert_same(&host.snapshot(), &installed, "files");
}

/// Everything that an installation does before its step `killed_at`, by the order of its steps.
fn install_until(host: &Host, killed_at: usize) -> bool {
    let mut plan = host.plan().unwrap();
    let all = plan.steps.len();
    plan.steps.truncate(killed_at);
    plan.apply().unwrap();
    killed_at < all
}

#[test]
fn an_installation_killed_at_any_step_can_be_completed_or_undone() {
    let mut step = 0;
    loop {
        let host = Host::new();
        host.write(CONTAINERD, "version = 2\n");
        host.write("usr/local/bin/monohull", "somebody else's");
        fs::create_dir_all(host.path("var/lib/monohull/install")).unwrap();
        let before = host.snapshot();
        let killed = install_until(&host, step);

        match uninstall(&host.root()) {
            Err(InstallError::NotInstalled(_)) => {}
            plan => drop(plan.and_then(Plan::apply).unwrap()),
        }
        // Copies that nothing tells of yet are all that may be left.
        let litter = |path: &Path| path.starts_with(host.path("var/lib/monohull/install"));
        let strip =
            |snapshot: Snapshot| snapshot.into_iter().filter(|(path, _)| !litter(path)).collect::<Snapshot>();
        assert_same(&strip(host.snapshot()), &strip(before.clone()), &format!("undone after step {step}"));

        install_until(&host, step);
        host.install();
        host.uninstall();
        assert_same(&host.snapshot(), &before, &format!("completed after step {step}"));
        if !killed {
            break;
        }
        step += 1;
    }
    assert!(step > 10, "only {step} steps");
}

#[test]
fn a_removal_that_was_killed_is_completed() {
    let host = Host::new();
    host.write(CONTAINERD, "version = 2\n");
    let before = host.snapshot();
    host.install();
    // Renamed to be removed, and restored but not yet rid of the other one.
    for (name, copy) in [("usr/share/monohull/vmlinux", false), (CONTAINERD, true)] {
        let path = host.path(name);
        let other = path.with_file_name(format!(".{}.monohull", path.file_name().unwrap().to_string_lossy()));
        fs::rename(&path, other).unwrap();
        if copy {
            fs::write(path, "version = 2\n").unwrap();
        }
    }
    host.uninstall();
    assert_same(&host.snapshot(), &before, "files");
}
