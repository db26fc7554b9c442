//! Networks on the test host: namespaces, and CNI's plugins run by hand.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::engine::{Output, finish_with_input};

/// Where CNI's plugins are.
const PLUGINS: &str = "/opt/cni/bin";

/// A named network namespace. Dropping it removes it, with all that is in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// What CNI has added: interface and configuration.
    added: Vec<(String, String)>,
}

impl Namespace {
    /// An empty one, with its loopback device up as engines have it.
    pub fn new(name: &str) -> Self {
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Self { name: name.into(), added: Vec::new() }
    }

    /// Its name, as ip(8) knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        ["/run/netns", &self.name].iter().collect()
    }

    /// A command in it.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(words).stdin(Stdio::null());
        command
    }

    /// Runs a command in it to its end, and returns what it printed. Panics if it fails.
    pub fn run(&self, words: &[&str]) -> String {
        succeed(finish_with_input(&mut self.command(words), Vec::new()), &words.join(" "))
    }

    /// Has a CNI plugin add an interface. `config` is the plugin's part of the configuration, as the inside of a JSON
    /// object.
    pub fn add(&mut self, interface: &str, config: &str) {
        let config = format!(r#"{{"cniVersion": "1.0.0", "name": "{}-{interface}", {config}}}"#, self.name);
        succeed(self.plugin("ADD", interface, &config), &config);
        self.added.push((interface.into(), config));
    }

    /// Has CNI remove an interface.
    pub fn remove(&mut self, interface: &str) {
        self.added.retain(|(added, config)| {
            if added == interface {
                let output = finish_with_input(
                    &mut plugin(&self.name, "DEL", added, config),
                    config.clone().into_bytes(),
                );
                succeed(output, config);
            }
            added != interface
        });
    }

    fn plugin(&self, verb: &str, interface: &str, config: &str) -> Output {
        finish_with_input(&mut plugin(&self.name, verb, interface, config), config.as_bytes().to_vec())
    }
}

fn plugin(namespace: &str, verb: &str, interface: &str, config: &str) -> Command {
    let kind = config.split(r#""type": ""#).nth(1).and_then(|rest| rest.split('"').next());
    let mut command = Command::new(format!("{PLUGINS}/{}", kind.unwrap_or_default()));
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", namespace)
        .env("CNI_NETNS", format!("/run/netns/{namespace}"))
        .env("CNI_IFNAME", interface)
        .env("CNI_PATH", PLUGINS);
    command
}

impl Drop for Namespace {
    fn drop(&mut self) {
        for (interface, config) in &self.added {
            let _ = self.plugin("DEL", interface, config);
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Runs ip(8) on the host. Panics if it fails.
pub fn ip(words: &str) {
    let mut command = Command::new("ip");
    command.args(words.split(' '));
    succeed(finish_with_input(&mut command, Vec::new()), words);
}

fn succeed(output: Output, what: &str) -> String {
    assert!(output.status.success(), "{what}: {}{}", output.text(), output.stderr);
    output.text()
}
