//! Spans of a pod's start for OpenTelemetry: its timeline, sent once to a collector that the settings name, if they do
//! (OTLP 1.x over HTTP with JSON, <https://opentelemetry.io/docs/specs/otlp/>).
//!
//! The start does not wait for that, and whatever becomes of it is no concern of the pod: a collector that is away or slow
//! costs one thread for some seconds, and a line in the log.

mod collector;
mod context;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::settings::Settings;
use crate::sys;
use crate::timeline::{self, Timeline};
pub use collector::Collector;
use context::Context;

/// Stack of the thread that sends, in bytes.
const STACK: usize = 128 << 10;
/// `SPAN_KIND_INTERNAL` and `STATUS_CODE_ERROR` of OTLP.
const INTERNAL: u32 = 1;
const ERROR: u32 = 2;

/// The spans of one pod's start. They are sent at most once.
#[derive(Debug)]
pub struct Spans {
    pod: String,
    namespace: String,
    /// The network namespace in which the collector is; `None` is the calling thread's.
    network: Option<Arc<OwnedFd>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    collector: Collector,
    /// The request that the start is part of.
    parent: Option<Context>,
    sent: bool,
}

impl Spans {
    /// Those of a pod of containerd's namespace `namespace`.
    pub fn new(pod: &str, namespace: &str, network: Option<Arc<OwnedFd>>) -> Self {
        Self { pod: pod.to_owned(), namespace: namespace.to_owned(), network, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the settings: without this nothing is sent.
    pub fn follow(&self, settings: &Settings) {
        self.state().collector = settings.traces.clone();
    }

    /// Takes the request's trace context (W3C `traceparent`, as containerd from 2.0 on sends it with requests). The first one
    /// counts; one that is not valid does not.
    pub fn part_of(&self, traceparent: &str) {
        let mut state = self.state();
        if state.parent.is_none() {
            state.parent = Context::parse(traceparent);
        }
    }

    /// Sends the spans of a start that has succeeded, or failed for this reason.
    pub fn send(&self, timeline: &Timeline, failure: Option<&str>) {
        let (collector, parent) = {
            let mut state = self.state();
            // Whoever has begun the trace decides whether it is recorded.
            let wanted =
                state.collector != Collector::None && state.parent.is_none_or(|parent| parent.sampled);
            if state.sent || !wanted {
                return;
            }
            state.sent = true;
            (state.collector.clone(), state.parent)
        };
        let body = self.body(timeline, parent, failure);
        let network = self.network.clone();
        let send = move || {
            let sent = body.and_then(|body| collector.send(network.as_deref(), body.to_string().as_bytes()));
            if let Err(error) = sent {
                tracing::warn!(error = %crate::text::chain(&error), step = "send spans");
            }
        };
        if let Err(error) = thread::Builder::new().name("spans".into()).stack_size(STACK).spawn(send) {
            tracing::warn!(%error, step = "send spans");
        }
    }

    /// An `ExportTraceServiceRequest`. Each step is a span from the end of the one before; together they are the start.
    fn body(
        &self,
        timeline: &Timeline,
        parent: Option<Context>,
        failure: Option<&str>,
    ) -> std::io::Result<Value> {
        let root = Context::below(parent)?;
        let (begin, end, steps) = steps(timeline);
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let boot = since_1970.saturating_sub(Duration::from_micros(timeline::now_us()));
        let at = |us: u64| (boot + Duration::from_micros(us)).as_nanos().to_string();
        let span = |context: Context, parent: Option<Context>, name: &str, from, to| {
            json!({
                "traceId": context.trace(),
                "spanId": context.span(),
                "parentSpanId": parent.map(|parent| parent.span()).unwrap_or_default(),
                "name": name,
                "kind": INTERNAL,
                "startTimeUnixNano": at(from),
                "endTimeUnixNano": at(to),
            })
        };
        let mut whole = span(root, parent, "pod start", begin, end);
        if let (Some(reason), Some(whole)) = (failure, whole.as_object_mut()) {
            whole.insert("status".into(), json!({"code": ERROR, "message": reason}));
        }
        let mut spans = vec![whole];
        let mut from = begin;
        for (step, to) in steps {
            spans.push(span(Context::below(Some(root))?, Some(root), &step, from, to));
            from = to;
        }
        let attribute = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
        Ok(json!({"resourceSpans": [{
            "resource": {"attributes": [
                attribute("service.name", "monohull"),
                attribute("service.version", env!("CARGO_PKG_VERSION")),
                attribute("monohull.pod", &self.pod),
                attribute("monohull.namespace", &self.namespace),
            ]},
            "scopeSpans": [{"scope": {"name": "monohull.start"}, "spans": spans}],
        }]}))
    }
}

/// When the start began and ended, and its further steps in the order of their ends. A VMM may tell of its steps what it
/// likes: all are within the start.
fn steps(timeline: &Timeline) -> (u64, u64, Vec<(String, u64)>) {
    let now = timeline::now_us();
    let begin = timeline.begun_us().unwrap_or(now);
    let mut steps: Vec<(String, u64)> = timeline
        .marks()
        .into_iter()
        .map(|mark| (mark.step, mark.at_us.clamp(begin, now.max(begin))))
        .collect();
    // The first mark is the beginning itself.
    if let Some(first) = steps.iter().position(|(_, at)| *at == begin) {
        steps.remove(first);
    }
    let end = steps.last().map_or(begin, |(_, at)| *at);
    (begin, end, steps)
}

/// Fills in random numbers, of which none may be all zeros.
fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    while bytes == [0; N] {
        sys::random(&mut bytes)?;
    }
    Ok(bytes)
}
