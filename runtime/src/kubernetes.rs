//! What Kubernetes calls a pod, as far as engines tell.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::text;

/// Annotations of containerd's CRI plugin; and of CRI-O, which passes a pod's labels on.
const NAME: [&str; 2] = ["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"];
const NAMESPACE: [&str; 2] = ["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"];
const UID: [&str; 2] = ["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"];
/// The longest name that Kubernetes allows (DNS subdomains); what is longer is none of its.
const LONGEST: usize = 253;

/// A pod as Kubernetes names it. What is not known is empty.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct KubernetesPod {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.uid`.
    pub uid: String,
}

impl KubernetesPod {
    /// Reads the annotations of a pod's first container; `None` if they name no pod.
    pub fn of_annotations(annotations: Option<&HashMap<String, String>>) -> Option<Self> {
        let find = |keys: [&str; 2]| {
            let value = keys.iter().find_map(|key| annotations?.get(*key));
            value.map(|value| text::untrusted(value, LONGEST)).unwrap_or_default()
        };
        let pod = Self { name: find(NAME), namespace: find(NAMESPACE), uid: find(UID) };
        (!pod.name.is_empty()).then_some(pod)
    }

    /// The annotations that say the same, as containerd's CRI plugin has them.
    pub fn to_annotations(&self) -> impl Iterator<Item = (String, String)> {
        let pairs = [(NAME, &self.name), (NAMESPACE, &self.namespace), (UID, &self.uid)];
        pairs.map(|([key, _], value)| (key.to_owned(), value.clone())).into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn names_come_from_either_engines_annotations() {
        let expected = KubernetesPod { name: "web-0".into(), namespace: "shop".into(), uid: "u1".into() };
        for keys in [0, 1].map(|engine| [NAME, NAMESPACE, UID].map(|keys| keys[engine])) {
            let given = annotations(&[(keys[0], "web-0"), (keys[1], "shop"), (keys[2], "u1")]);
            assert_eq!(KubernetesPod::of_annotations(Some(&given)).as_ref(), Some(&expected));
        }
        let back = expected.to_annotations().collect();
        assert_eq!(KubernetesPod::of_annotations(Some(&back)), Some(expected));
    }

    #[test]
    fn a_name_that_kubernetes_could_not_have_given_is_cut_and_cleaned() {
        let given = annotations(&[(NAME[0], &format!("a\n\u{1b}[31m{}", "x".repeat(1000)))]);
        let pod = KubernetesPod::of_annotations(Some(&given)).unwrap();
        assert!(!pod.name.contains(char::is_control) && pod.name.chars().count() <= LONGEST + 1);
        assert_eq!(KubernetesPod::of_annotations(Some(&annotations(&[(UID[0], "u")]))), None);
        assert_eq!(KubernetesPod::of_annotations(None), None);
    }
}
