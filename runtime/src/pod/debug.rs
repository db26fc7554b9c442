//! Commands in a pod's guest itself, outside of its containers, for whoever debugs it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use monohull_protocol::agent as proto;
use protobuf::MessageField;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::{Pod, PodError};
use crate::agent::ProcessKey;
use crate::process::{Phase, Process, Stdio};
use crate::vm::VmWatch;

/// Most bytes of the program; the agent takes no more.
const MAX_PROGRAM: u64 = 16 << 20;

/// Sees the end of a pod, without keeping it alive.
#[derive(Debug)]
pub(crate) struct EndWatch {
    vm: VmWatch,
    ending: watch::Receiver<bool>,
}

impl EndWatch {
    /// Waits until the pod has ended, or its end has begun; why.
    pub(crate) async fn reason(mut self) -> String {
        let ending = async {
            if self.ending.wait_for(|ending| *ending).await.is_err() {
                // The pod was dropped, and its VM killed with it.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            ended = self.vm.ended() => PodError::Ended(ended.reason).to_string(),
            () = ending => "the pod is being ended".into(),
        }
    }
}

impl Pod {
    /// Sees its end.
    pub(crate) fn watch_end(&self) -> EndWatch {
        EndWatch { vm: self.link.vm.clone(), ending: self.ending.subscribe() }
    }

    /// Runs the settings' `debug_shell` with these arguments in the guest.
    pub(crate) async fn debug(
        &self,
        args: Vec<String>,
        env: Vec<String>,
        stdio: Stdio,
    ) -> Result<Process, PodError> {
        let path = self.settings.debug_shell.clone();
        let failed =
            |path: &Path, error| PodError::Invalid(format!("debug_shell: {}: {error}", path.display()));
        let read = tokio::task::spawn_blocking(move || read(&path).map_err(|error| failed(&path, error)));
        let program = read.await.map_err(|error| PodError::Invalid(format!("debug_shell: {error}")))??;
        let _change = self.changes.read().await;
        let number = self.stream_prefix();
        let (exec_id, stream) = (number.to_string(), format!("{number}.program"));
        let opened = tokio::try_join!(self.vsock.streams(stdio, number), self.vsock.stdio(&stream));
        let ((streams, names), to) = match opened {
            Ok(opened) => opened,
            Err(error) => return Err(self.link.explain(error.into()).await),
        };
        let request = proto::DebugRequest {
            exec_id: exec_id.clone(),
            program: stream,
            args,
            env,
            stdio: MessageField::some(stdio.to_request(names)),
            ..Default::default()
        };
        let pid = tokio::select! {
            pid = self.link.agent.debug(&request) => pid,
            never = send(to, &program) => match never {},
        };
        let pid = match pid {
            Ok(pid) => pid,
            Err(error) => return Err(self.link.error(error).await),
        };
        let key = ProcessKey { container: String::new(), exec: exec_id };
        Ok(Process::new((key, pid), Phase::Running, streams, self.link.clone(), self.state.clone()))
    }
}

/// Reads the program; a file that never ends is not one.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > MAX_PROGRAM {
        return Err(io::Error::other(format!("it is not a file of at most {MAX_PROGRAM} bytes")));
    }
    let mut program = Vec::new();
    File::open(path)?.take(MAX_PROGRAM).read_to_end(&mut program)?;
    Ok(program)
}

/// Sends the program and its end. What came of it the agent's answer tells.
async fn send(mut to: UnixStream, program: &[u8]) -> std::convert::Infallible {
    let _ = to.write_all(program).await;
    let _ = to.shutdown().await;
    std::future::pending().await
}
