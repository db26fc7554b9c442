use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use super::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn collector(text: &str) -> Result<Collector, String> {
    Collector::try_from(text.to_owned())
}

/// Takes one request, answers with this status, and returns its head and body.
fn receive(mut stream: impl Read + Write, status: &str) -> (String, Value) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        request.push(byte[0]);
    }
    let head = String::from_utf8(request).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}").unwrap();
    (head, serde_json::from_slice(&body).unwrap())
}

fn timeline() -> Timeline {
    let timeline = Timeline::new();
    let now = timeline::now_us();
    for (step, before) in
        [("shim started", 9000), ("vmm started", 5000), ("agent ready", 3000), ("container started", 0)]
    {
        timeline.mark_at(step, now - before);
    }
    timeline
}

fn spans_to(collector: &str) -> Spans {
    let spans = Spans::new("p1", "k8s.io", None);
    spans.follow(&Settings { traces: self::collector(collector).unwrap(), ..Settings::default() });
    spans
}

fn number(span: &Value, name: &str) -> u64 {
    span[name].as_str().unwrap().parse().unwrap()
}

#[test]
fn spans_arrive_nested_below_the_request_and_sum_up_to_the_start() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let spans = spans_to(&format!("http://{}", listener.local_addr().unwrap()));
    spans.part_of("rubbish");
    spans.part_of(PARENT);
    spans.part_of("00-11111111111111111111111111111111-1111111111111111-01");
    spans.send(&timeline(), None);
    spans.send(&timeline(), None);
    let (head, body) = receive(listener.accept().unwrap().0, "200 OK");
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Content-Type: application/json\r\n"), "{head}");

    let resource = &body["resourceSpans"][0];
    let attributes = resource["resource"]["attributes"].as_array().unwrap();
    let value = |key: &str| {
        attributes.iter().find(|attribute| attribute["key"] == key).unwrap()["value"]["stringValue"].clone()
    };
    assert_eq!((value("service.name"), value("monohull.pod")), ("monohull".into(), "p1".into()));
    let all = resource["scopeSpans"][0]["spans"].as_array().unwrap();
    let (root, steps) = all.split_first().unwrap();
    assert_eq!(root["name"], "pod start");
    assert_eq!(root["parentSpanId"], "b7ad6b7169203331");
    assert!(root["status"].is_null());
    let names: Vec<_> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["vmm started", "agent ready", "container started"]);
    let mut sum = 0;
    for step in steps {
        assert_eq!(step["traceId"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(step["parentSpanId"], root["spanId"]);
        assert!(number(step, "startTimeUnixNano") >= number(root, "startTimeUnixNano"));
        assert!(number(step, "endTimeUnixNano") <= number(root, "endTimeUnixNano"));
        sum += number(step, "endTimeUnixNano") - number(step, "startTimeUnixNano");
    }
    let whole = number(root, "endTimeUnixNano") - number(root, "startTimeUnixNano");
    assert_eq!((sum, whole), (9_000_000, 9_000_000));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    assert!(now - number(root, "endTimeUnixNano") < 60_000_000_000, "by the host's clock");
    let ids: std::collections::HashSet<_> = all.iter().map(|span| span["spanId"].to_string()).collect();
    assert_eq!(ids.len(), all.len());
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "once");
}

#[test]
fn a_failed_start_says_why_and_a_trace_of_its_own_has_no_parent() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("otlp");
    let listener = UnixListener::bind(&socket).unwrap();
    spans_to(&format!("unix:{}", socket.display())).send(&timeline(), Some("no memory"));
    let (_, body) = receive(listener.accept().unwrap().0, "200 OK");
    let root = &body["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    assert_eq!(root["status"], json!({"code": 2, "message": "no memory"}));
    assert_eq!(root["parentSpanId"], "");
    assert_eq!(root["traceId"].as_str().unwrap().len(), 32);
}

#[test]
fn nothing_is_sent_unless_the_settings_and_who_began_the_trace_want_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let spans = Spans::new("p1", "n", None);
    spans.send(&timeline(), None);
    let spans = spans_to(&format!("http://{}/", listener.local_addr().unwrap()));
    spans.part_of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
    spans.send(&timeline(), None);
    assert!(!spans.state().sent);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

#[test]
fn a_collector_that_is_away_or_refuses_is_an_error_of_the_sender_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let to = collector(&format!("http://{address}")).unwrap();
    let answers = thread::spawn(move || {
        receive(listener.accept().unwrap().0, "503 Busy");
        drop(listener.accept().unwrap());
    });
    let error = to.send(None, b"{}").unwrap_err();
    assert!(error.to_string().contains("503 Busy"), "{error}");
    assert!(to.send(None, b"{}").is_err(), "it closes without an answer");
    answers.join().unwrap();
    assert!(to.send(None, b"{}").is_err(), "nobody listens");
    // The start itself hears nothing of it.
    let spans = spans_to(&format!("http://{address}"));
    spans.send(&timeline(), None);
}

#[test]
fn what_a_lying_vmm_says_of_its_steps_stays_within_the_start() {
    let timeline = timeline();
    timeline.mark_at("before", 0);
    timeline.mark_at("after", u64::MAX);
    let (begin, end, steps) = steps(&timeline);
    assert!(end >= begin && end <= timeline::now_us());
    assert!(steps.iter().all(|(_, at)| (begin..=end).contains(at)));
    assert!(steps.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{steps:?}");
}

#[test]
fn collectors_are_addresses() {
    for (text, shown) in [
        ("", ""),
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://localhost/", "http://127.0.0.1:4318/v1/traces"),
        ("http://[::1]:9/x/y", "http://[::1]:9/x/y"),
        ("unix:/run/otel.sock", "unix:/run/otel.sock"),
    ] {
        assert_eq!(collector(text).unwrap().to_string(), shown);
    }
    for bad in [
        "https://127.0.0.1",
        "http://collector:4318",
        "http://me:pw@10.0.0.1:1",
        "unix:x",
        "127.0.0.1:4318",
        "http://127.0.0.1/a b\r\n",
    ] {
        assert!(collector(bad).unwrap_err().contains("is not"), "{bad}");
    }
}

#[test]
fn contexts_are_w3cs() {
    assert!(Context::parse(PARENT).unwrap().sampled);
    assert!(Context::parse(&format!("{}-later", PARENT.replace("00-0a", "01-0a"))).is_some());
    for bad in [
        "",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        "00-éaf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ] {
        assert_eq!(Context::parse(bad), None, "{bad}");
    }
}
