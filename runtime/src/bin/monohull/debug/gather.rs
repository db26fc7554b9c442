//! What is in a bug report.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use monohull_runtime::check;
use monohull_runtime::log::KeptLog;
use monohull_runtime::security::Confinement;
use monohull_runtime::settings::{Settings, SettingsError};
use monohull_runtime::state::PodState;
use monohull_runtime::{text, usage};
use serde_json::{Value, json};

use super::bundle::Entry;
use super::redact;
use crate::trace;

/// Bytes of a file of the host that are read.
const MAX_FILE: u64 = 1 << 20;
/// Figures of a cgroup (cgroup-v2.rst).
const CGROUP: [&str; 11] = [
    "cgroup.procs",
    "cpu.max",
    "cpu.stat",
    "cpu.weight",
    "io.stat",
    "memory.current",
    "memory.events",
    "memory.high",
    "memory.max",
    "memory.peak",
    "pids.current",
];

/// Everything that can be had, whatever else can't.
pub(super) fn all(
    settings: Result<Settings, SettingsError>,
    pod: Option<&PodState>,
    log: Option<&KeptLog>,
) -> Vec<Entry> {
    let used = settings.as_ref().cloned().unwrap_or_default();
    let mut entries = vec![
        Entry::json(
            "versions.json",
            "versions of Monohull's programs and of the host's kernel",
            &versions(&used),
        ),
        Entry::new(
            "settings.toml",
            "the settings of this command; a pod may have been made with others",
            match &settings {
                Ok(settings) => toml::to_string(settings).unwrap_or_else(|error| error.to_string()),
                Err(error) => text::chain(error),
            },
        ),
        Entry::json("check.json", "what `monohull check` finds", &check::all(settings)),
    ];
    if let Some(log) = log {
        let content = log.read().unwrap_or_else(|error| format!("cannot be read: {error}\n"));
        entries.push(Entry::new("log.txt", "what the pod's parts have said (`monohull logs`)", content));
    }
    if let Some(pod) = pod {
        entries.extend(of_pod(pod));
    }
    entries
}

fn versions(settings: &Settings) -> Value {
    let shim = PathBuf::from("/usr/local/bin/containerd-shim-monohull-v2");
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let size = |path: &Path| fs::metadata(path).map(|file| file.len()).ok();
    json!({
        "monohull": env!("CARGO_PKG_VERSION"),
        "vmm": version_of(&settings.vmm),
        "fs_server": version_of(&settings.fs_server),
        "shim": version_of(&shim),
        "guest_kernel_bytes": size(&settings.kernel),
        "initramfs_bytes": size(&settings.initramfs),
        "host_kernel": read("/proc/sys/kernel/osrelease"),
        "host_kernel_version": read("/proc/sys/kernel/version"),
        "host": fs::read_to_string("/etc/os-release").unwrap_or_default().lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME=")).map(|name| name.trim_matches('"').to_owned()),
    })
}

fn version_of(program: &Path) -> String {
    match Command::new(program).arg("--version").output() {
        Ok(output) => text_of(&output.stdout),
        Err(error) => format!("{}: {error}", program.display()),
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

fn of_pod(pod: &PodState) -> Vec<Entry> {
    let mut entries = vec![
        Entry::json("pod.json", "the pod's state: processes, VM's size, template, containers", pod),
        Entry::new(
            "timeline.txt",
            "how it has started (`monohull trace`)",
            trace::render(&pod.timeline, Some(120)),
        ),
        Entry::new("usage.txt", "what it uses of the host", format!("{:#?}\n", usage::of(pod))),
        Entry::json("processes.json", "how its processes are confined", &processes(pod)),
        Entry::new("cgroup.txt", "figures of its VMM's cgroup", cgroup(pod)),
    ];
    for container in &pod.containers {
        let name = format!("container-{}.json", container.id);
        let what = "OCI configuration: no values of variables, arguments, and annotations but known ones";
        let shown = match &container.bundle {
            Some(bundle) => spec_in(bundle),
            None => json!({"missing": "there is no bundle: `monohull run` has none"}),
        };
        entries.push(Entry::json(name, what, &shown));
    }
    entries
}

fn spec_in(bundle: &Path) -> Value {
    let path = bundle.join("config.json");
    let read = File::open(&path).and_then(|file| {
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text)?;
        Ok(text)
    });
    let failed = |error: &dyn std::fmt::Display| json!({"missing": format!("{}: {error}", path.display())});
    match read.map(|text| serde_json::from_slice::<Value>(&text)) {
        Ok(Ok(spec)) => redact::spec(&spec),
        // What a parser quotes may be a secret.
        Ok(Err(error)) => failed(&format!("no JSON at line {}", error.line())),
        Err(error) => failed(&error),
    }
}

fn processes(pod: &PodState) -> Value {
    let processes = [("owner", Some(pod.owner)), ("vmm", pod.vmm), ("fs", pod.fs_server)];
    let one = |(part, id): (&str, Option<monohull_runtime::state::ProcessId>)| {
        let id = id?;
        let looked = Confinement::of(id.pid);
        Some(match looked {
            Ok(confinement) if id.is_alive() => {
                json!({"process": part, "pid": id.pid, "confinement": confinement})
            }
            Ok(_) => json!({"process": part, "pid": id.pid, "missing": "it has ended"}),
            Err(error) => json!({"process": part, "pid": id.pid, "missing": error.to_string()}),
        })
    };
    processes.into_iter().filter_map(one).collect()
}

fn cgroup(pod: &PodState) -> String {
    let Some(vmm) = pod.vmm else { return "there is no VMM yet\n".into() };
    let named = fs::read_to_string(format!("/proc/{}/cgroup", vmm.pid)).unwrap_or_default();
    let mut text = format!("{named}\n");
    let Some(path) = named.lines().find_map(|line| line.strip_prefix("0::/")) else { return text };
    for file in CGROUP {
        if let Ok(content) = fs::read_to_string(Path::new("/sys/fs/cgroup").join(path).join(file)) {
            text.push_str(&format!("{file}:\n{content}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use monohull_runtime::log::{self, Log};
    use monohull_runtime::state::{ContainerState, ProcessId, VERSION};

    use super::*;

    /// A pod of this test's own process, with this configuration of its container.
    fn pod(bundle: &Path) -> PodState {
        let own = ProcessId::own().unwrap();
        PodState {
            version: VERSION,
            id: "p1".into(),
            namespace: "n".into(),
            kubernetes: None,
            owner: own,
            vmm: Some(own),
            template: None,
            snapshot: None,
            fs_server: None,
            containers: vec![
                ContainerState { id: "c1".into(), bundle: Some(bundle.to_owned()) },
                ContainerState { id: "c2".into(), bundle: None },
            ],
            created_at: 1,
            memory_mib: 128,
            cpus: 1,
            timeline: Vec::new(),
        }
    }

    #[test]
    fn a_bug_report_has_all_parts_and_no_secret_of_a_container() {
        let dir = tempfile::tempdir().unwrap();
        let spec = json!({
            "process": {"env": ["TOKEN=hunter2"], "args": ["a", "hunter2"]},
            "annotations": {"x/y": "hunter2"},
        });
        fs::write(dir.path().join("config.json"), spec.to_string()).unwrap();
        let settings = Settings { state_dir: dir.path().to_owned(), ..Settings::default() };
        Log::unread("p1").keep(&settings, "n");
        let kept = log::list(dir.path()).unwrap().remove(0);
        let entries = all(Ok(settings), Some(&pod(dir.path())), Some(&kept));
        let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "versions.json",
                "settings.toml",
                "check.json",
                "log.txt",
                "pod.json",
                "timeline.txt",
                "usage.txt",
                "processes.json",
                "cgroup.txt",
                "container-c1.json",
                "container-c2.json",
            ]
        );
        for entry in &entries {
            let text = text_of(&entry.content);
            assert!(!text.contains("hunter2"), "{}: {text}", entry.name);
        }
        let of_container = text_of(&entries[9].content);
        assert!(of_container.contains("TOKEN=<7 bytes>"), "{of_container}");
    }

    #[test]
    fn a_broken_configuration_is_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), r#"{"process": {"env": [hunter2"#).unwrap();
        let text = spec_in(dir.path()).to_string();
        assert!(text.contains("no JSON at line 1") && !text.contains("hunter2"), "{text}");
    }
}
