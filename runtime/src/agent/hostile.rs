//! Agents that answer with anything but what they should; and one that says whatever a string of bytes does, the common body
//! of a property test and a fuzz target.

#![allow(clippy::indexing_slicing, clippy::unwrap_used)] // A mistake of the test itself should stop it.

#[cfg(test)]
mod tests;

use monohull_vmm::virtio::hostile::Input;
use protobuf::{EnumOrUnknown, Message};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use ttrpc::proto::{MESSAGE_TYPE_RESPONSE, MessageHeader, Response, Status};

use super::*;

/// The agent's end, of which a test reads what it is asked and writes what it likes.
struct Guest(UnixStream);

impl Guest {
    /// An agent and its client.
    fn new() -> (Self, Agent) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Self(theirs), Agent::new(ours, None))
    }

    async fn send(&mut self, stream_id: u32, type_: u8, payload: &[u8]) {
        let length = payload.len() as u32;
        let header = Vec::from(MessageHeader { length, stream_id, type_, flags: 0 });
        // A client that was told too much has gone.
        let _ = self.0.write_all(&[&header, payload].concat()).await;
    }
}

/// Plays an agent that answers each of the client's calls with what `bytes` say, in good form or not. What the client returns
/// must be possible, and an error one line.
pub(crate) fn run(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let (guest, agent) = Guest::new();
        tokio::join!(calls(agent), guest.speak(Input::new(bytes)));
    });
}

/// Makes one call of each kind, and checks what comes of it.
async fn calls(agent: Agent) {
    let agent = &agent;
    let create_sandbox = async {
        let request = proto::CreateSandboxRequest::new();
        if let Some(sandbox) = checked(agent.create_sandbox(&request).await) {
            assert!(sandbox.kernel_release.chars().count() <= 65 && !has_control(&sandbox.kernel_release));
        }
    };
    let create = async {
        let pid = checked(agent.create_container(&proto::CreateContainerRequest::new()).await);
        assert!(pid.is_none_or(|pid| (1..=MAX_PID).contains(&pid)), "{pid:?}");
    };
    let exec = async {
        let pid = checked(agent.exec(&proto::ExecRequest::new()).await);
        assert!(pid.is_none_or(|pid| (1..=MAX_PID).contains(&pid)), "{pid:?}");
    };
    let wait = async {
        let since = SystemTime::now();
        let key = ProcessKey { container: "c".into(), exec: String::new() };
        if let Some(exit) = checked(agent.wait(&key, since).await) {
            assert!(exit.code <= 255 && exit.at >= since && exit.at <= SystemTime::now(), "{exit:?}");
        }
    };
    let processes = async {
        for (pid, exec) in checked(agent.processes("c").await).unwrap_or_default() {
            assert!(
                (1..=MAX_PID).contains(&pid) && exec.len() <= 76 && !has_control(&exec),
                "{pid} {exec:?}"
            );
        }
    };
    let stats = async {
        let metrics = checked(agent.stats("c").await).unwrap_or_default();
        assert!(metrics.write_to_bytes().unwrap().len() as u64 <= MAX_METRICS);
    };
    let wait_oom = async {
        let kills = checked(agent.wait_oom("c", 3).await);
        assert!(kills.is_none_or(|kills| kills > 3), "{kills:?}");
    };
    let others = async {
        checked(agent.start("c").await);
        checked(agent.prepare_template().await);
    };
    let bounded = async {
        let began = Instant::now();
        tokio::join!(create_sandbox, create, exec, processes, stats, others);
        assert!(began.elapsed() <= DEADLINE * 2 + Duration::from_secs(1), "a call outlives its deadline");
    };
    tokio::join!(bounded, wait, wait_oom);
}

/// What a call returns, if that is no error; an error is one line, and not a long one.
fn checked<T>(result: Result<T, AgentError>) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => text::chain(&error),
    };
    assert!(error.len() <= 8 * MAX_MESSAGE && !has_control(&error), "{error:?}");
    None
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

impl Guest {
    /// Says what `input` decides, then nothing for a while, and closes the connection.
    async fn speak(mut self, mut input: Input<'_>) {
        while !input.is_empty() {
            // The client's streams have odd numbers.
            let stream = if input.u8() < 240 { u32::from(input.u8() % 12) * 2 + 1 } else { input.u32() };
            let payload = payload(&mut input);
            match input.u8() % 16 {
                0 => {
                    let bytes = input.take::<16>();
                    let _ = self.0.write_all(&bytes).await;
                }
                1 => self.send(stream, input.u8(), &payload).await,
                2 => self.send(stream, MESSAGE_TYPE_RESPONSE, &payload).await,
                3 | 4 => {
                    let message = String::from_utf8_lossy(&payload).into_owned();
                    let status = Status {
                        code: EnumOrUnknown::from_i32((input.u8() % 20).into()),
                        message,
                        ..Default::default()
                    };
                    let response = Response { status: MessageField::some(status), ..Default::default() };
                    self.send(stream, MESSAGE_TYPE_RESPONSE, &response.write_to_bytes().unwrap()).await;
                }
                _ => {
                    let response = Response { payload, ..Default::default() };
                    self.send(stream, MESSAGE_TYPE_RESPONSE, &response.write_to_bytes().unwrap()).await;
                }
            }
            if input.u8() < 16 {
                tokio::time::sleep(Duration::from_secs(input.u8().into()) / 4).await;
            }
        }
        tokio::time::sleep(DEADLINE / 2).await;
    }
}

/// An answer: of the fields and kinds that answers have, or any bytes, once or many times.
fn payload(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    match input.u8() % 8 {
        0 => bytes.extend(input.take::<8>()),
        1 => {
            // Seldom longer than any answer may be.
            let times = if input.u8() < 250 { input.u8().into() } else { usize::from(input.u16()) * 8 };
            return input.take::<4>().repeat(times);
        }
        _ => {
            for _ in 0..1 + input.u8() % 3 {
                field(input, &mut bytes);
            }
        }
    }
    bytes
}

/// A field with a number or with a few bytes (Protocol Buffers, "Encoding").
fn field(input: &mut Input<'_>, bytes: &mut Vec<u8>) {
    let number = 1 + input.u8() % 6;
    if input.u8().is_multiple_of(2) {
        bytes.push(number << 3);
        let mut value = [u64::from(input.u8()), input.u64()][usize::from(input.u8().is_multiple_of(4))];
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
    } else {
        let text = input.take::<6>();
        let times = 1 + input.u8() / 16;
        bytes.extend([number << 3 | 2, times * 6]);
        bytes.extend(text.repeat(times.into()));
    }
}
