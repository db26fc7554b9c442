//! OCI hooks that run on the host: `prestart` and `createRuntime` before a container is created, `poststop` after it
//! is deleted. nerdctl sets up a container's network in them.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use oci_spec::runtime as oci;
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::namespaces::{Outside, spawn_outside};

/// How much of a failed hook's complaints goes into the error.
const COMPLAINT_LIMIT: usize = 2048;

/// A hook that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    /// It could not be started or awaited.
    #[error("cannot run the {kind} hook {path}")]
    Run {
        /// Which list it is in.
        kind: &'static str,
        /// The program.
        path: String,
        /// The reason.
        source: io::Error,
    },
    /// It ran for longer than its configuration allows.
    #[error("the {kind} hook {path} did not end within {seconds} s")]
    Timeout {
        /// Which list it is in.
        kind: &'static str,
        /// The program.
        path: String,
        /// The limit.
        seconds: u64,
    },
    /// It ended with an error.
    #[error("the {kind} hook {path} failed ({status}): {stderr}")]
    Failed {
        /// Which list it is in.
        kind: &'static str,
        /// The program.
        path: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// A kind of hook that would have to run in the guest.
    #[error(
        "hooks.{0} is not supported: only prestart, createRuntime and poststop hooks are, which run on the host"
    )]
    Unsupported(&'static str),
}

/// The state that hooks read from their standard input (OCI runtime specification, "State").
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State<'a> {
    /// The container's OCI version.
    pub(crate) oci_version: &'a str,
    /// The container.
    pub(crate) id: &'a str,
    /// "creating" or "stopped".
    pub(crate) status: &'a str,
    /// A host process in the pod's network namespace; 0 once stopped.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) pid: u32,
    /// The bundle directory.
    pub(crate) bundle: &'a Path,
    /// The container's annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<&'a HashMap<String, String>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_zero(pid: &u32) -> bool {
    *pid == 0
}

/// The hooks of one container that run on the host, in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hooks {
    before_create: Vec<(&'static str, oci::Hook)>,
    poststop: Vec<oci::Hook>,
}

impl Hooks {
    /// Takes the hooks out of a configuration, or refuses it for hooks that would run elsewhere.
    pub(crate) fn take(spec: &mut oci::Spec) -> Result<Self, HookError> {
        let Some(hooks) = spec.hooks().clone() else { return Ok(Self::default()) };
        for (kind, list) in [
            ("createContainer", hooks.create_container()),
            ("startContainer", hooks.start_container()),
            ("poststart", hooks.poststart()),
        ] {
            if list.as_ref().is_some_and(|list| !list.is_empty()) {
                return Err(HookError::Unsupported(kind));
            }
        }
        spec.set_hooks(None);
        let prestart =
            hooks.prestart().clone().unwrap_or_default().into_iter().map(|hook| ("prestart", hook));
        let create = hooks
            .create_runtime()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .map(|hook| ("createRuntime", hook));
        let poststop = hooks.poststop().clone().unwrap_or_default();
        Ok(Self { before_create: prestart.chain(create).collect(), poststop })
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.before_create.is_empty() && self.poststop.is_empty()
    }

    /// Runs the prestart and createRuntime hooks; the first that fails ends it.
    pub(crate) async fn before_create(
        &self,
        state: State<'_>,
        outside: Option<&Outside>,
    ) -> Result<(), HookError> {
        for (kind, hook) in &self.before_create {
            run(kind, hook, state, outside).await?;
        }
        Ok(())
    }

    /// Runs all poststop hooks. As the specification has it, what fails is only logged.
    pub(crate) async fn poststop(&self, state: State<'_>, outside: Option<&Outside>) {
        for hook in &self.poststop {
            if let Err(error) = run("poststop", hook, state, outside).await {
                tracing::warn!(container = state.id, error = crate::error::chain(&error), "hook failed");
            }
        }
    }
}

async fn run(
    kind: &'static str,
    hook: &oci::Hook,
    state: State<'_>,
    outside: Option<&Outside>,
) -> Result<(), HookError> {
    let path = hook.path().display().to_string();
    let failed = |source| HookError::Run { kind, path: path.clone(), source };
    let output = execute(hook, state, outside);
    let output = match hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()) {
        None => output.await,
        Some(seconds) => deadline(seconds, output).await.ok_or_else(|| HookError::Timeout {
            kind,
            path: path.clone(),
            seconds,
        })?,
    }
    .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let from = output.stderr.len().saturating_sub(COMPLAINT_LIMIT);
    let stderr = String::from_utf8_lossy(output.stderr.get(from..).unwrap_or_default()).trim().to_owned();
    Err(HookError::Failed { kind, path, status: output.status, stderr })
}

async fn deadline<T>(seconds: u64, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(seconds), future).await.ok()
}

async fn execute(
    hook: &oci::Hook,
    state: State<'_>,
    outside: Option<&Outside>,
) -> io::Result<std::process::Output> {
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_ref().and_then(|args| args.split_first()) {
        command.arg0(name).args(arguments);
    }
    // Like runc: without a list of its own a hook has the runtime's environment.
    if let Some(env) = hook.env() {
        command.env_clear().envs(env.iter().filter_map(|pair| pair.split_once('=')));
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = spawn_outside(command, outside, state.bundle, Vec::new())?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(&serde_json::to_vec(&state)?).await {
            // Not every hook reads its input.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
    }
    child.wait_with_output().await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hooks(hooks: serde_json::Value) -> Result<Hooks, HookError> {
        let mut spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "hooks": hooks})).unwrap();
        let taken = Hooks::take(&mut spec);
        assert!(taken.is_err() || spec.hooks().is_none());
        taken
    }

    fn shell(script: &str) -> serde_json::Value {
        json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin", "WORD=hello"]})
    }

    fn state(bundle: &Path) -> State<'_> {
        State { oci_version: "1.2.0", id: "c1", status: "creating", pid: 7, bundle, annotations: None }
    }

    #[tokio::test]
    async fn hooks_run_in_order_with_state_and_environment() {
        let dir = tempfile::tempdir().unwrap();
        let hooks = hooks(json!({
            "prestart": [shell("cat > state; echo prestart >> order")],
            "createRuntime": [shell("echo $WORD >> order")],
        }))
        .unwrap();
        hooks.before_create(state(dir.path()), None).await.unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("order"), "prestart\nhello\n");
        let state: serde_json::Value = serde_json::from_str(&read("state")).unwrap();
        let bundle = dir.path().to_str().unwrap();
        assert_eq!(
            state,
            json!({"ociVersion": "1.2.0", "id": "c1", "status": "creating", "pid": 7, "bundle": bundle})
        );
    }

    #[tokio::test]
    async fn a_failing_hook_is_named_with_its_complaint_and_ends_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let hooks =
            hooks(json!({"createRuntime": [shell("echo no bridge >&2; exit 3"), shell("touch second")]}))
                .unwrap();
        let error = hooks.before_create(state(dir.path()), None).await.unwrap_err();
        assert_eq!(error.to_string(), "the createRuntime hook /bin/sh failed (exit status: 3): no bridge");
        assert!(!dir.path().join("second").exists());
    }

    #[tokio::test]
    async fn a_hook_is_killed_at_its_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let mut hook = shell("exec sleep 1000");
        hook["timeout"] = json!(1);
        let error = hooks(json!({"createRuntime": [hook]}))
            .unwrap()
            .before_create(state(dir.path()), None)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "the createRuntime hook /bin/sh did not end within 1 s");
    }

    #[tokio::test]
    async fn every_poststop_hook_runs_whatever_the_others_do() {
        let dir = tempfile::tempdir().unwrap();
        let hooks = hooks(json!({"poststop": [shell("exit 1"), shell("touch second")]})).unwrap();
        hooks.poststop(state(dir.path()), None).await;
        assert!(dir.path().join("second").exists());
    }

    #[test]
    fn hooks_of_the_guest_are_refused_by_name() {
        for kind in ["createContainer", "startContainer", "poststart"] {
            let error = hooks(json!({kind: [shell("true")]})).unwrap_err();
            assert!(error.to_string().starts_with(&format!("hooks.{kind} is not supported")));
        }
        assert!(hooks(json!({"poststart": []})).unwrap().is_empty());
    }
}
