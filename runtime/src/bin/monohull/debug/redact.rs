//! An OCI configuration as it may be seen by others. What is kept is on a list; all else is told by name and size at most.

use serde_json::{Map, Value, json};

/// Parts of the configuration that hold no secret of a user.
const KEPT: [&str; 25] = [
    "/ociVersion",
    "/process/terminal",
    "/process/user",
    "/process/cwd",
    "/process/capabilities",
    "/process/rlimits",
    "/process/noNewPrivileges",
    "/process/apparmorProfile",
    "/process/selinuxLabel",
    "/process/oomScoreAdj",
    "/root",
    "/linux/namespaces",
    "/linux/resources",
    "/linux/cgroupsPath",
    "/linux/devices",
    "/linux/uidMappings",
    "/linux/gidMappings",
    "/linux/maskedPaths",
    "/linux/readonlyPaths",
    "/linux/rootfsPropagation",
    "/linux/mountLabel",
    "/linux/seccomp/defaultAction",
    "/linux/seccomp/architectures",
    "/linux/timeOffsets",
    "/linux/intelRdt",
];

/// Annotations whose values are the engine's or ours, by the beginning of their names.
const ANNOTATIONS: [&str; 12] = [
    "io.monohull.",
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri.sandbox-",
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.cri-o.SandboxID",
    "io.kubernetes.cri-o.ContainerID",
    "io.kubernetes.cri-o.ImageName",
    "io.kubernetes.cri-o.Namespace",
    "io.kubernetes.container.name",
    "nerdctl/namespace",
];

/// Mount options with a value that is no secret.
const OPTIONS: [&str; 11] = [
    "size",
    "mode",
    "uid",
    "gid",
    "nr_inodes",
    "lowerdir",
    "upperdir",
    "workdir",
    "newinstance",
    "ptmxmode",
    "context",
];

/// What may be seen of a `config.json`.
pub(super) fn spec(spec: &Value) -> Value {
    let mut shown = json!({});
    for pointer in KEPT {
        if let Some(value) = spec.pointer(pointer) {
            put(&mut shown, pointer, value.clone());
        }
    }
    let texts = |pointer: &str| spec.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let args: Vec<Value> = texts("/process/args").map(masked).collect();
    put(&mut shown, "/process/args", args.into());
    let variable = |variable: &Value| match variable.as_str().and_then(|text| text.split_once('=')) {
        Some((name, value)) => json!(format!("{name}=<{} bytes>", value.len())),
        None => masked(variable),
    };
    put(&mut shown, "/process/env", texts("/process/env").map(variable).collect::<Vec<_>>().into());
    put(&mut shown, "/mounts", texts("/mounts").map(mount).collect::<Vec<_>>().into());
    put(&mut shown, "/annotations", annotations(spec));
    put(&mut shown, "/linux/sysctl", names_of(spec.pointer("/linux/sysctl")));
    if let Some(hooks) = spec.get("hooks").and_then(Value::as_object) {
        let count = |hooks: &Value| json!(hooks.as_array().map_or(0, Vec::len));
        let counts: Map<String, Value> =
            hooks.iter().map(|(name, hooks)| (name.clone(), count(hooks))).collect();
        put(&mut shown, "/hooks", counts.into());
    }
    shown
}

/// How long a text is.
fn masked(value: &Value) -> Value {
    let length = value.as_str().map_or_else(|| value.to_string().len(), str::len);
    json!(format!("<{length} bytes>"))
}

fn names_of(map: Option<&Value>) -> Value {
    let entries = map.and_then(Value::as_object).into_iter().flatten();
    entries.map(|(name, value)| (name.clone(), masked(value))).collect::<Map<_, _>>().into()
}

fn mount(mount: &Value) -> Value {
    let part = |name: &str| mount.get(name).cloned().unwrap_or_default();
    let options = mount.get("options").and_then(Value::as_array).into_iter().flatten();
    let option = |option: &Value| match option.as_str().map(|text| text.split_once('=')) {
        Some(None) => option.clone(),
        Some(Some((name, _))) if OPTIONS.contains(&name) => option.clone(),
        Some(Some((name, value))) => json!(format!("{name}=<{} bytes>", value.len())),
        None => masked(option),
    };
    json!({
        "destination": part("destination"),
        "type": part("type"),
        "source": source(mount),
        "options": options.map(option).collect::<Vec<_>>(),
    })
}

/// A path. Others, as an URL with a password, are told by their length.
fn source(mount: &Value) -> Value {
    let source = mount.get("source").cloned().unwrap_or_default();
    let plain = source.as_str().is_none_or(|text| text.starts_with('/') || !text.contains([':', '@', '=']));
    if plain { source } else { masked(&source) }
}

fn annotations(spec: &Value) -> Value {
    let entries = spec.get("annotations").and_then(Value::as_object).into_iter().flatten();
    let shown = entries.map(|(name, value)| {
        let known = ANNOTATIONS.iter().any(|known| name.starts_with(known));
        (name.clone(), if known { value.clone() } else { masked(value) })
    });
    shown.collect::<Map<_, _>>().into()
}

/// Sets the value that `pointer` leads to; objects on the way are made.
fn put(shown: &mut Value, pointer: &str, value: Value) {
    let mut place = shown;
    for name in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = json!({});
        }
        let Some(map) = place.as_object_mut() else { return };
        place = map.entry(name).or_insert(Value::Null);
    }
    *place = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "hunter2-0123456789";

    #[test]
    fn a_secret_is_nowhere_wherever_a_user_can_put_one() {
        let shown = spec(&json!({
            "ociVersion": "1.2.0",
            "process": {
                "args": ["/bin/app", "--token", SECRET],
                "commandLine": SECRET,
                "env": ["PATH=/bin", format!("TOKEN={SECRET}"), SECRET],
                "cwd": "/",
                "user": {"uid": 1000, "gid": 1000},
            },
            "mounts": [
                {"destination": "/data", "type": "cifs", "source": "//server/share",
                 "options": ["ro", "size=65536k", format!("password={SECRET}")]},
                {"destination": "/x", "type": "nfs", "source": format!("https://me:{SECRET}@host/"), "options": null},
            ],
            "annotations": {
                "io.kubernetes.cri.sandbox-id": "p1",
                "io.monohull.cpus": "2",
                "kubectl.kubernetes.io/last-applied-configuration": format!("{{\"token\":\"{SECRET}\"}}"),
                "example.com/password": SECRET,
            },
            "hooks": {"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", SECRET], "env": [SECRET]}]},
            "linux": {"sysctl": {"kernel.domainname": SECRET}, "seccomp": {"defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": [SECRET]}]}, "namespaces": [{"type": "pid"}]},
            "vm": {"hypervisor": {"path": SECRET}},
            "unheard-of": {"token": SECRET},
        }));
        let text = serde_json::to_string_pretty(&shown).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        for kept in
            ["TOKEN=<18 bytes>", "/data", "size=65536k", "\"p1\"", "SCMP_ACT_ERRNO", "example.com/password"]
        {
            assert!(text.contains(kept), "no {kept} in {text}");
        }
        assert_eq!(shown["hooks"]["poststop"], 1);
        assert_eq!(shown["process"]["args"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn what_is_no_configuration_shows_nothing() {
        let text = serde_json::to_string(&spec(&json!(["hunter2"]))).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
    }
}
