//! Each engine, and each version of its configuration.

use super::*;

const V2_SECTION: &str = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.monohull]\n  runtime_type = \"io.containerd.monohull.v2\"\n";
const V3_SECTION: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.monohull]\n  runtime_type = \"io.containerd.monohull.v2\"\n";
const RUNC: &str = "containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n";
const V3_IMPORTS: &str = "version = 3 # ours\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";

/// Installs on a host with `files`, again, and removes it; returns what `changed` was meanwhile. The rest of the host's
/// files must stay as they are, and so must all, in the end.
fn round_trip(files: &[(&str, &str)], changed: &str) -> String {
    let host = Host::new();
    for (name, text) in files {
        host.write(name, text);
    }
    let before = host.snapshot();

    host.install();
    let installed = host.snapshot();
    let text = host.read(changed);
    for (path, was) in &before {
        assert!(
            *path == host.path(changed) || installed.get(path) == Some(was),
            "{} has changed",
            path.display()
        );
    }
    let report = host.install();
    assert!(report.changes_nothing() && report.restart.is_empty(), "{report:?}");
    assert_same(&host.snapshot(), &installed, "a second installation changes something");

    host.uninstall();
    assert_same(&host.snapshot(), &before, "something is left");
    text
}

/// Asserts that `text` is valid TOML, starts with `old`, and returns the runtimes of its plugin.
fn runtimes(text: &str, old: &str, plugin: &str) -> Vec<String> {
    assert!(text.starts_with(old), "{text}");
    let table: toml::Table = toml::from_str(text).unwrap();
    let runtimes = table["plugins"][plugin]["containerd"]["runtimes"].as_table().unwrap();
    runtimes.keys().cloned().collect()
}

#[test]
fn containerd_without_a_configuration_gets_one_that_every_release_reads() {
    let text = round_trip(&[("usr/bin/containerd", "")], CONTAINERD);
    assert_eq!(runtimes(&text, "version = 2\n", "io.containerd.grpc.v1.cri"), ["monohull", "runc"]);
}

#[test]
fn containerd_of_version_2_gets_lines_and_keeps_its_comments() {
    let old = "version = 2\n# mine\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"pause\" # pinned\n";
    let text = round_trip(&[(CONTAINERD, old)], CONTAINERD);
    assert!(text.contains(V2_SECTION) && text.contains(RUNC), "{text}");
    assert_eq!(runtimes(&text, old, "io.containerd.grpc.v1.cri"), ["monohull", "runc"]);
}

#[test]
fn containerd_of_version_2_with_runtimes_of_its_own_keeps_just_those() {
    let old = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.crun]\nruntime_type = \"x\"\n";
    let text = round_trip(&[(CONTAINERD, old)], CONTAINERD);
    assert_eq!(runtimes(&text, old, "io.containerd.grpc.v1.cri"), ["crun", "monohull"]);
}

#[test]
fn containerd_of_version_2_is_told_in_the_file_whose_settings_count() {
    let main = "version = 2\nimports = [\"conf.d/*.toml\"]\n[plugins.\"io.containerd.grpc.v1.cri\"]\na = 1\n";
    let drop_in = "etc/containerd/conf.d/b.toml";
    let files = [
        (CONTAINERD, main),
        ("etc/containerd/conf.d/a.toml", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nb = 1"),
        (drop_in, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nc = 1"),
        ("etc/containerd/conf.d/c.toml", "version = 2\n[debug]\nlevel = \"info\"\n"),
        ("etc/containerd/conf.d/d.conf", "not TOML"),
    ];
    assert!(round_trip(&files, drop_in).contains(V2_SECTION));
}

#[test]
fn containerd_of_version_3_and_4_gets_a_drop_in_where_it_reads_one() {
    for main in [V3_IMPORTS.to_owned(), V3_IMPORTS.replace("= 3", "= 4")] {
        let text = round_trip(&[(CONTAINERD, &main)], "etc/containerd/conf.d/monohull.toml");
        assert_eq!(text, include_str!("../../../../deploy/containerd-v3.toml"));
    }
}

#[test]
fn containerd_of_version_3_and_4_without_imports_gets_lines() {
    for old in [
        "version = 3\n",
        "# no newline at the end\nversion = 4",
        "version = 3\nimports = [\"/etc/other.d/x.toml\"]\n",
    ] {
        let text = round_trip(&[(CONTAINERD, old)], CONTAINERD);
        assert!(text.contains(V3_SECTION), "{text}");
        assert_eq!(runtimes(&text, old, "io.containerd.cri.v1.runtime"), ["monohull"]);
    }
}

#[test]
fn containerd_without_kubernetes_is_left_alone() {
    let host = Host::new();
    for text in [
        "disabled_plugins = [\"cri\"]\n",
        "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
    ] {
        host.write(CONTAINERD, text);
        let report = host.install();
        assert!(
            of(&report, "/etc/containerd/config.toml").1.contains("turns the CRI plugin off"),
            "{report:?}"
        );
        assert_eq!(host.read(CONTAINERD), text);
    }
}

#[test]
fn a_runtime_of_that_name_that_others_have_defined_stays() {
    let host = Host::new();
    for text in [format!("version = 2\n{V2_SECTION}"), format!("version = 3\n{V3_SECTION}")] {
        host.write(CONTAINERD, &text);
        let report = host.install();
        assert!(of(&report, "/etc/containerd/config.toml").1.contains("defines the runtime"), "{report:?}");
        assert_eq!(host.read(CONTAINERD), text);
    }
}

#[test]
fn configurations_that_cannot_be_added_to_are_refused_by_name() {
    let inline =
        "version = 3\nplugins = { \"io.containerd.cri.v1.runtime\" = { containerd = { runtimes = {} } } }\n";
    for (text, why) in [
        ("[plugins.cri]\n", "is of version 1: convert it"),
        ("version = 5\n", "is of version 5"),
        ("version = \n", "is not valid TOML"),
        (inline, "inline tables"),
    ] {
        let host = Host::new();
        host.write(CONTAINERD, text);
        let before = host.snapshot();
        let error = host.plan().unwrap_err().to_string();
        assert!(error.contains("/etc/containerd/config.toml") && error.contains(why), "{error}");
        assert_same(&host.snapshot(), &before, "files");
    }
}

#[test]
fn cri_o_gets_a_drop_in_that_names_the_shim() {
    let text = round_trip(&[("etc/crio/crio.conf", "[crio]\n")], "etc/crio/crio.conf.d/50-monohull.conf");
    let table: toml::Table = toml::from_str(&text).unwrap();
    let runtime = &table["crio"]["runtime"]["runtimes"]["monohull"];
    assert_eq!(runtime["runtime_path"].as_str(), Some("/usr/local/bin/containerd-shim-monohull-v2"));
    assert_eq!(runtime["runtime_type"].as_str(), Some("vm"));
}

#[test]
fn cri_o_is_told_where_debian_has_the_shim() {
    let host = Host::new();
    fs::create_dir_all(host.path("etc/crio")).unwrap();
    fs::create_dir_all(host.release().join("usr/bin")).unwrap();
    for program in ["monohull", "containerd-shim-monohull-v2"] {
        let [old, new] = ["usr/local/bin", "usr/bin"].map(|bin| host.release().join(bin).join(program));
        fs::rename(old, new).unwrap();
    }
    host.install();
    let text = host.read("etc/crio/crio.conf.d/50-monohull.conf");
    assert!(text.contains("runtime_path = \"/usr/bin/containerd-shim-monohull-v2\""), "{text}");
    assert!(host.path("usr/bin/monohull").exists());
}

#[test]
fn k3s_and_rke2_get_a_template_for_the_containerd_that_they_have() {
    for directory in ["var/lib/rancher/k3s", "var/lib/rancher/rke2"] {
        for (version, name, section) in
            [(2, "config.toml.tmpl", V2_SECTION), (3, "config-v3.toml.tmpl", V3_SECTION)]
        {
            let generated = format!("{directory}/agent/etc/containerd/config.toml");
            let template = format!("{directory}/agent/etc/containerd/{name}");
            let config = format!("# generated\nversion = {version}\n");
            let text = round_trip(&[(&generated, &config)], &template);
            assert!(text.starts_with("{{ template \"base\" . }}\n"), "{text}");
            assert!(text.contains(section) && !text.contains(RUNC), "{text}");

            let own = "{{ template \"base\" . }}\n# mine\n";
            let text = round_trip(&[(&generated, &config), (&template, own)], &template);
            assert!(text.starts_with(own) && text.contains(section), "{text}");
        }
    }
}

#[test]
fn k3s_that_has_never_run_is_not_guessed_at() {
    let host = Host::new();
    fs::create_dir_all(host.path("var/lib/rancher/k3s")).unwrap();
    let report = host.install();
    assert!(report.notes.iter().any(|note| note.contains("k3s has never run here")), "{report:?}");
    assert_eq!(report.restart, []);
}

#[test]
fn microk8s_gets_lines_in_its_template() {
    let old = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"${RUNTIME}\"\n\
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.${RUNTIME}]\nruntime_type = \"${RUNTIME_TYPE}\"\n";
    let template = "var/snap/microk8s/current/args/containerd-template.toml";
    let text = round_trip(&[(template, old)], template);
    assert!(text.starts_with(old) && text.contains(V2_SECTION) && !text.contains(RUNC), "{text}");
}

#[test]
fn all_engines_of_a_host_are_told() {
    let host = Host::new();
    host.write(CONTAINERD, "version = 2\n");
    host.write("etc/crio/crio.conf", "");
    host.write("var/lib/rancher/rke2/agent/etc/containerd/config.toml", "version = 3\n");
    assert_eq!(host.install().restart, [Kind::Containerd, Kind::Crio, Kind::Rke2]);
    assert_eq!(host.uninstall().restart, [Kind::Rke2, Kind::Crio, Kind::Containerd]);
}
