//! Where spans are sent, and one HTTP request to there. The collector is a local one: an address and no name, because a pod's
//! owner has no resolver, and no TLS.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

/// Where OTLP's collectors take spans by default.
const PATH: &str = "/v1/traces";
/// For each step of a request.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer that are looked at: "HTTP/1.1 200 OK" is in them.
const ANSWER: u64 = 64;

/// Where spans are sent.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Collector {
    /// Nowhere.
    #[default]
    None,
    /// "http://ADDRESS:PORT", with or without a path.
    Http {
        /// The host's.
        address: SocketAddr,
        /// Of the URL.
        path: String,
    },
    /// "unix:PATH".
    Unix(PathBuf),
}

impl TryFrom<String> for Collector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::None);
        }
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Self::Unix(path.into()));
        }
        let wrong = || {
            format!(
                "traces: {text:?} is not \"http://ADDRESS:PORT/PATH\" (an IP address or localhost) or \"unix:/PATH\""
            )
        };
        let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
        let (authority, path) = rest.find('/').map_or((rest, PATH), |slash| rest.split_at(slash));
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "4318"));
        let host = if host == "localhost" { "127.0.0.1" } else { host.trim_matches(['[', ']']) };
        let address = host.parse::<IpAddr>().ok().zip(port.parse().ok()).ok_or_else(wrong)?;
        let plain = |byte: u8| byte.is_ascii_graphic();
        if !path.bytes().all(plain) {
            return Err(wrong());
        }
        let path = if path == "/" { PATH } else { path };
        Ok(Self::Http { address: address.into(), path: path.to_owned() })
    }
}

impl From<Collector> for String {
    fn from(collector: Collector) -> Self {
        collector.to_string()
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Http { address, path } => write!(f, "http://{address}{path}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Collector {
    /// Sends a body and waits for the answer. `network` is where the address is: the calling thread, which needs to be one of
    /// its own, enters it.
    pub(super) fn send(&self, network: Option<&OwnedFd>, body: &[u8]) -> io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Http { address, path } => {
                if let Some(network) = network {
                    setns(network, CloneFlags::CLONE_NEWNET)?;
                }
                let stream = TcpStream::connect_timeout(address, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                post(stream, &address.to_string(), path, body)
            }
            Self::Unix(socket) => {
                let stream = UnixStream::connect(socket)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                post(stream, "localhost", PATH, body)
            }
        }
    }
}

fn post(mut stream: impl Read + Write, host: &str, path: &str, body: &[u8]) -> io::Result<()> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    stream.take(ANSWER).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
    match status {
        Some(status) if status.len() == 3 && status.starts_with('2') => Ok(()),
        _ => {
            let line = answer.lines().next().unwrap_or_default();
            Err(io::Error::other(format!("the collector of spans answers {line:?}")))
        }
    }
}
