//! Serves the figures by HTTP.
//!
//! Whoever reaches the port can ask, so what one may cost is bounded: connections at once, the size of a request's head, how long it
//! may take to send it and to take the answer, one request a connection. Figures are read by one request at a time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use monohull_runtime::settings::Settings;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::collect;
use crate::failure::{Failure, say};
use crate::session::Signals;

/// Connections at once; others wait to be taken.
const CONNECTIONS: usize = 16;
/// Bytes of a request's head. It is hyper's least.
const HEAD: usize = 8192;
/// Fields of a request's head.
const FIELDS: usize = 64;
/// How long a request's head may take.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection may take in all: Prometheus gives up after 10 s.
const DEADLINE: Duration = Duration::from_secs(30);
/// Content type of the format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

type Answer = Response<Full<Bytes>>;

/// Serves until a signal comes.
pub(super) fn run(settings: Settings, address: SocketAddr) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::of("cannot start the event loop", &e))?;
    runtime.block_on(async {
        let mut signals = Signals::new().map_err(|e| Failure::of("cannot catch signals", &e))?;
        let listener = TcpListener::bind(address);
        let listener = listener.await.map_err(|e| Failure::of(&format!("cannot listen at {address}"), &e))?;
        tokio::select! {
            () = serve(&listener, Arc::new(settings)) => {}
            _ = signals.terminating() => {}
        }
        Ok(())
    })
}

/// Takes connections, for good.
async fn serve(listener: &TcpListener, settings: Arc<Settings>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // It is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // The connection's own fault, or this process has no descriptor left: those of others come back.
            Err(error) => {
                say(&format!("cannot take a connection: {error}"));
                let _ = places.acquire_many(CONNECTIONS.saturating_sub(1).try_into().unwrap_or(1)).await;
                continue;
            }
        };
        let settings = settings.clone();
        tokio::spawn(async move {
            // Who breaks off or is too slow is not worth a word.
            let _ = timeout(DEADLINE, connection(stream, &settings)).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, settings: &Settings) -> hyper::Result<()> {
    let answer = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(answer(request.method(), request.uri().path(), || collect::text(settings)))
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD)
        .max_headers(FIELDS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

fn answer(method: &Method, path: &str, figures: impl FnOnce() -> Result<String, Failure>) -> Answer {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut refused = respond(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD\n".into());
        refused.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match path {
        "/healthz" => respond(StatusCode::OK, PLAIN, "ok\n".into()),
        "/metrics" => match figures() {
            Ok(text) => respond(StatusCode::OK, TEXT, text),
            Err(failure) => {
                failure.print();
                respond(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, failure.message + "\n")
            }
        },
        _ => respond(StatusCode::NOT_FOUND, PLAIN, "there are /metrics and /healthz\n".into()),
    }
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What a server of no pods answers to these bytes.
    async fn ask(request: &[u8]) -> io::Result<String> {
        let state = tempfile::tempdir()?;
        let settings = Settings { state_dir: state.path().into(), ..Settings::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut stream = TcpStream::connect(listener.local_addr()?).await?;
        let client = async {
            // It may answer and close before it has read everything.
            let _ = stream.write_all(request).await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).map_err(io::Error::other)
        };
        tokio::select! {
            answer = client => answer,
            () = serve(&listener, Arc::new(settings)) => Err(io::Error::other("the server has ended")),
        }
    }

    #[tokio::test]
    async fn metrics_and_health_are_served_and_nothing_else() {
        let metrics = ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
        assert!(metrics.contains(TEXT) && metrics.contains("\nmonohull_pods{status=\"running\"} 0\n"));
        assert!(metrics.to_lowercase().contains("connection: close"), "{metrics}");
        let health = ask(b"GET /healthz HTTP/1.0\r\n\r\n").await.unwrap();
        assert!(health.starts_with("HTTP/1.0 200 OK\r\n") && health.ends_with("\r\n\r\nok\n"), "{health}");
        for path in ["/", "/metrics/", "/../etc/passwd", "/metricsx"] {
            let text = ask(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            assert!(text.starts_with("HTTP/1.1 404 "), "{path}: {text}");
        }
        let posted = ask(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        assert!(posted.starts_with("HTTP/1.1 405 "), "{posted}");
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let endless = [b"GET /metrics HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; 4 * HEAD]].concat();
        let answer = ask(&endless).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 431 ") || answer.is_empty(), "{answer}");
        assert!(!answer.contains("monohull_"), "{answer}");
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(FIELDS + 1));
        assert!(!ask(many.as_bytes()).await.unwrap().contains("monohull_"));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_says_nothing_is_hung_up_on() {
        assert_eq!(ask(b"GET /metr").await.unwrap(), "");
    }

    #[test]
    fn figures_that_cannot_be_read_are_an_error_and_its_reason() {
        let response = answer(&Method::GET, "/metrics", || Err(Failure::new("cannot read it")));
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
