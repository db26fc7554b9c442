//! Annotations of pods for Kata, as `kubectl get pods -A -o json` has them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::Value;

use super::rules::Rule;
use super::{Fate, Key, judge, number, rule};

const PREFIX: &str = "io.katacontainers.";

/// A list of pods that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// It is not what kubectl prints.
    #[error("is not a list of pods: take the output of `kubectl get pods -A -o json`")]
    Json(#[source] serde_json::Error),
}

/// An annotation of a pod, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Annotation {
    /// The pod, as `NAMESPACE/NAME`.
    pub pod: String,
    /// The annotation's name.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What becomes of it.
    pub fate: Fate,
    /// Into what, why not, or what there is in its place.
    pub note: String,
}

#[derive(Deserialize)]
struct Pods {
    items: Vec<Pod>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What becomes of Kata's annotations of the pods in `json`, a list as Kubernetes has it.
pub fn annotations(json: &str) -> Result<Vec<Annotation>, PodsError> {
    let pods: Pods = serde_json::from_str(json).map_err(PodsError::Json)?;
    let mut found = Vec::new();
    for Metadata { name, namespace, annotations } in pods.items.into_iter().map(|pod| pod.metadata) {
        for (key, value) in annotations {
            let Some(setting) = key.strip_prefix(PREFIX) else { continue };
            let (fate, note) = of(setting, &value);
            let pod = format!("{namespace}/{name}");
            found.push(Annotation { pod, key, value, fate, note });
        }
    }
    Ok(found)
}

/// What becomes of an annotation, whose name is without its prefix.
fn of(name: &str, value: &str) -> (Fate, String) {
    let value = Value::String(value.to_owned());
    if let Some((table, key)) = name.strip_prefix("config.").and_then(|name| name.split_once('.')) {
        return match rule(table, key) {
            Some(Rule::Becomes(to)) => keep(to, &value),
            None if key.ends_with("_hash") => (Fate::NotNeeded, "no annotation can name a file".to_owned()),
            rule => judge(rule, &value),
        };
    }
    match name {
        "config_path" => {
            (Fate::Missing, "a RuntimeClass of its own, whose handler has another `ConfigPath`".to_owned())
        }
        _ if name.starts_with("pkg.oci.") => {
            (Fate::NotNeeded, "the engine's own annotations say it".to_owned())
        }
        _ if name.starts_with("container.resource.swap") => (Fate::Missing, "guests have no swap".to_owned()),
        _ => (Fate::Unknown, "see Kata's documentation for what it does".to_owned()),
    }
}

fn keep(to: Key, value: &Value) -> (Fate, String) {
    let Some(annotation) = to.annotation() else {
        return (
            Fate::Missing,
            format!("only the host can say: `{}` in /etc/monohull/config.toml", to.name()),
        );
    };
    match number(value).and_then(|number| to.convert(number)) {
        Some(converted) => (Fate::Kept, format!("{annotation}: \"{converted}\"")),
        None => (Fate::Unknown, "is not a number above 0".to_owned()),
    }
}
