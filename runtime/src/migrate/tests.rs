use super::*;

/// As an administrator has changed what Kata ships for QEMU.
const QEMU: &str = r#"
[hypervisor.qemu]
path = "/opt/kata/bin/qemu-system-x86_64"
default_vcpus = 1.5
default_maxvcpus = 0
default_memory = 2048
enable_mem_prealloc = true
hot_plug_vfio = "no-port"
cold_plug_vfio = "root-port"
kernel_params = ""
rx_rate_limiter_max_rate = 8000000
tx_rate_limiter_max_rate = 16000001
cpu_features = "pmu=off"
what_is_this = 7
[agent.kata]
kernel_modules = []
enable_tracing = true
[runtime]
internetworking_model = "tcfilter"
sandbox_cgroup_only = true
[factory]
enable_template = true
"#;

fn fates(text: &str) -> Vec<(String, Fate, String)> {
    let findings = Migration::of([text]).unwrap().findings;
    findings.into_iter().map(|finding| (finding.key, finding.fate, finding.note)).collect()
}

#[test]
fn every_setting_is_kept_not_needed_missing_or_unknown() {
    let fates = fates(QEMU);
    let of = |key: &str| {
        let (_, fate, note) = fates.iter().find(|(name, ..)| name == key).unwrap();
        (*fate, note.as_str())
    };
    assert_eq!(of("hypervisor.qemu.default_memory"), (Fate::Kept, "default_memory_mib = 2048"));
    assert_eq!(of("hypervisor.qemu.default_vcpus"), (Fate::Kept, "default_cpus = 2"));
    assert_eq!(of("hypervisor.qemu.default_maxvcpus").0, Fate::NotNeeded);
    assert_eq!(of("hypervisor.qemu.enable_mem_prealloc").0, Fate::Missing);
    assert_eq!(of("hypervisor.qemu.hot_plug_vfio"), (Fate::NotNeeded, "is as usual"));
    assert_eq!(of("hypervisor.qemu.cold_plug_vfio").0, Fate::Missing);
    assert_eq!(of("hypervisor.qemu.kernel_params").0, Fate::NotNeeded);
    assert_eq!(of("hypervisor.qemu.cpu_features").0, Fate::NotNeeded);
    assert_eq!(of("hypervisor.qemu.what_is_this").0, Fate::Unknown);
    assert_eq!(of("agent.kata.kernel_modules"), (Fate::NotNeeded, "is turned off"));
    assert_eq!(of("agent.kata.enable_tracing").0, Fate::Missing);
    assert_eq!(of("runtime.internetworking_model").0, Fate::NotNeeded);
    assert_eq!(of("factory.enable_template").0, Fate::NotNeeded);
}

#[test]
fn what_is_kept_is_a_configuration_that_we_read() {
    let migration = Migration::of([QEMU]).unwrap();
    let settings = crate::settings::Settings::parse(&migration.settings()).unwrap();
    assert_eq!((settings.default_memory_mib, settings.default_cpus), (2048, 2));
    assert_eq!(settings.network_bytes_per_second, 2_000_001, "the larger direction, rounded up to bytes");
}

#[test]
fn later_files_change_single_settings_of_earlier_ones() {
    let later = "[hypervisor.qemu]\ndefault_memory = 512\n";
    let migration = Migration::of([QEMU, later]).unwrap();
    assert_eq!(
        migration.settings(),
        "default_memory_mib = 512\ndefault_cpus = 2\nnetwork_bytes_per_second = 2000001\n"
    );
    assert_eq!(migration.findings.len(), Migration::of([QEMU]).unwrap().findings.len());
}

#[test]
fn other_files_are_refused_by_what_they_are() {
    assert!(matches!(Migration::of(["version = 3\n[plugins]\n"]), Err(MigrateError::Foreign)));
    assert!(matches!(Migration::of(["not toml"]), Err(MigrateError::Toml(_))));
    assert!(matches!(Migration::of([]), Err(MigrateError::Foreign)));
}

#[test]
fn no_name_has_two_rules() {
    for (table, rules) in RULES {
        let mut names: Vec<_> = rules.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before, "{table}");
    }
}

#[test]
fn annotations_of_pods_are_found_among_others() {
    let json = r#"{"items": [
        {"metadata": {"name": "plain", "namespace": "default"}},
        {"metadata": {"name": "db", "namespace": "prod", "annotations": {
            "io.kubernetes.cri.sandbox-id": "x",
            "io.katacontainers.config.hypervisor.default_memory": "4096",
            "io.katacontainers.config.hypervisor.default_vcpus": "0.5",
            "io.katacontainers.config.hypervisor.kernel_params": "quiet",
            "io.katacontainers.config.hypervisor.kernel_hash": "abc",
            "io.katacontainers.config.hypervisor.default_max_vcpus": "8",
            "io.katacontainers.config.runtime.disable_guest_seccomp": "true",
            "io.katacontainers.config_path": "/etc/other.toml",
            "io.katacontainers.container.resource.swappiness": "60",
            "io.katacontainers.surprise": "1"
        }}}
    ]}"#;
    let found = annotations(json).unwrap();
    assert!(found.iter().all(|annotation| annotation.pod == "prod/db"));
    let of = |end: &str| {
        let annotation = found.iter().find(|annotation| annotation.key.ends_with(end)).unwrap();
        (annotation.fate, annotation.note.as_str())
    };
    assert_eq!(of("default_memory"), (Fate::Kept, "io.monohull.memory_mib: \"4096\""));
    assert_eq!(of("default_vcpus"), (Fate::Kept, "io.monohull.cpus: \"1\""));
    assert_eq!(of("kernel_params").0, Fate::Missing);
    assert_eq!(of("kernel_hash").0, Fate::NotNeeded);
    assert_eq!(of("default_max_vcpus").0, Fate::Missing);
    assert_eq!(of("disable_guest_seccomp").0, Fate::NotNeeded);
    assert_eq!(of("config_path").0, Fate::Missing);
    assert_eq!(of("swappiness").0, Fate::Missing);
    assert_eq!(of("surprise").0, Fate::Unknown);
    assert_eq!(found.len(), 9);
    assert!(matches!(annotations("[]"), Err(PodsError::Json(_))));
}
