//! Task events for containerd, over its ttrpc socket.
//!
//! Requests put events into a bounded queue and go on; one task forwards them in that order. While containerd is away
//! they wait for its return; one that it does not take is given up after a few times.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::EventsClient;
use containerd_shim_protos::topics;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context;

use crate::address;
use crate::bundle;
use crate::error::chain;
use crate::watch::Watch;

/// As many as containerd's own publisher keeps (containerd `pkg/shim/publisher.go`).
const QUEUE: usize = 2048;
/// How often an event is tried again, after 1, 2, 3, … seconds.
const RETRIES: u32 = 5;
/// What one try may take.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// The directory in which CRI-O looks for files named for containers that have ended: the default of its `container_exits_dir`.
const CRIO_EXITS: &str = "/run/crio/exits";

/// Sends events. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    namespace: String,
    to: Engine,
}

/// Who is told.
#[derive(Clone, Debug)]
enum Engine {
    Containerd(mpsc::Sender<Item>),
    /// Takes no events: they are dropped.
    Crio {
        exits: PathBuf,
    },
}

#[derive(Debug)]
enum Item {
    Event(Box<Envelope>),
    Flush(oneshot::Sender<()>),
}

impl Publisher {
    /// A publisher to the events service at `address`; an empty one is CRI-O's.
    pub(crate) fn start(address: &str, namespace: &str) -> Self {
        if address.is_empty() {
            return Self::for_crio(CRIO_EXITS.into(), namespace);
        }
        let (queue, items) = mpsc::channel(QUEUE);
        tokio::spawn(forward_all(address.to_owned(), items));
        Self { namespace: namespace.to_owned(), to: Engine::Containerd(queue) }
    }

    /// A publisher that drops all events, for a CRI-O that looks for ends in the directory `exits`.
    pub(crate) fn for_crio(exits: PathBuf, namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), to: Engine::Crio { exits } }
    }

    /// Whether there is an engine that takes them.
    pub(crate) fn are_taken(&self) -> bool {
        matches!(self.to, Engine::Containerd(_))
    }

    fn queue(&self) -> Option<&mpsc::Sender<Item>> {
        match &self.to {
            Engine::Containerd(queue) => Some(queue),
            Engine::Crio { .. } => None,
        }
    }

    /// Queues an event of package `containerd.events`. Never waits: an event too many is lost, and logged.
    pub(crate) fn publish<M: Message>(&self, topic: &str, event: &M) {
        let Some(queue) = self.queue() else { return };
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => return tracing::error!(topic, %error, "event can't be encoded"),
        };
        let type_url = format!("containerd.events.{}", M::NAME);
        let envelope = Envelope {
            timestamp: Some(timestamp(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(Any { type_url, value, ..Default::default() }).into(),
            ..Default::default()
        };
        if queue.try_send(Item::Event(Box::new(envelope))).is_err() {
            tracing::error!(topic, "event is lost: containerd has not taken the {QUEUE} before it");
        }
    }

    /// Says that the OOM killer has killed a process of a container.
    pub(crate) fn publish_oom(&self, container: &str, bundle: Option<&Path>) {
        // CRI-O has no events: it looks for this file.
        if let Some(bundle) = bundle {
            let _ = fs::write(bundle.join(bundle::OOM), "");
        }
        // How often is for the guest to say: room is kept for events that matter more.
        if self.queue().is_some_and(|queue| queue.capacity() < QUEUE / 2) {
            return;
        }
        let event = TaskOOM { container_id: container.to_owned(), ..Default::default() };
        self.publish(topics::TASK_OOM_EVENT_TOPIC, &event);
    }

    /// Tells CRI-O of a container's end for which it does not wait, as conmon would. That is so after its restart (CRI-O
    /// `internal/oci/runtime_vm.go`, `StartContainer`).
    pub(crate) fn note_unawaited_exit(&self, container: &str) {
        let Engine::Crio { exits } = &self.to else { return };
        match fs::write(exits.join(container), "Exited") {
            // The directory is elsewhere, or the engine is not CRI-O.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(container, %error, step = "tell CRI-O of an end"),
            Ok(()) => {}
        }
    }

    /// Waits until all that was queued is sent or given up.
    pub(crate) async fn flush(&self) {
        let Some(queue) = self.queue() else { return };
        let (done, flushed) = oneshot::channel();
        if queue.send(Item::Flush(done)).await.is_ok() {
            let _ = flushed.await;
        }
    }
}

/// A time as containerd's messages have it.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    time.into()
}

async fn forward_all(address: String, mut items: mpsc::Receiver<Item>) {
    let mut client = None;
    while let Some(item) = items.recv().await {
        match item {
            Item::Event(envelope) => forward(&address, &mut client, *envelope).await,
            Item::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

/// Sends one event, and waits for containerd's return as often as that takes.
async fn forward(address: &str, client: &mut Option<EventsClient>, envelope: Envelope) {
    let request = ForwardRequest { envelope: Some(envelope).into(), ..Default::default() };
    loop {
        // Before the first try: a return in between must not be missed.
        let back = address::to_path(address).parent().and_then(|dir| Watch::for_files_in(dir).ok());
        match (attempt(address, client, &request).await, back) {
            (Sent::Unreachable, Some(back)) => {
                tracing::warn!("containerd is away: events wait for its return");
                if back.seen().await.is_err() {
                    return;
                }
            }
            (Sent::Yes, _) => return,
            _ => return tracing::error!("event is given up"),
        }
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Yes,
    /// Nobody listens.
    Unreachable,
    Refused,
}

/// Tries a few times to send one event, over a new connection if need be.
async fn attempt(address: &str, client: &mut Option<EventsClient>, request: &ForwardRequest) -> Sent {
    let topic = &request.envelope.topic;
    for attempt in 1..=RETRIES + 1 {
        let stale = client.is_some();
        let tried = timeout(FORWARD_TIMEOUT, try_forward(address, client, request)).await;
        let error = match tried {
            Ok(Ok(())) => return Sent::Yes,
            Ok(Err(error)) => chain(&error),
            Err(_) => "no answer".to_owned(),
        };
        *client = None;
        tracing::warn!(topic, attempt, error, "event is not delivered");
        // A connection that broke some time ago (containerd was restarted) is no reason to wait.
        if attempt <= RETRIES && !stale {
            sleep(Duration::from_secs(attempt.into())).await;
        }
    }
    // A connection that could be made was there at the last attempt.
    if UnixStream::connect(address::to_path(address)).await.is_ok() {
        Sent::Refused
    } else {
        Sent::Unreachable
    }
}

async fn try_forward(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> Result<(), ttrpc::Error> {
    let client = match client {
        Some(client) => client,
        None => client.insert(connect(address).await?),
    };
    client.forward(context::with_duration(FORWARD_TIMEOUT), request).await.map(drop)
}

async fn connect(address: &str) -> Result<EventsClient, ttrpc::Error> {
    // Not the client's own connect: that one blocks the thread.
    let stream = UnixStream::connect(address::to_path(address)).await;
    let stream = stream.map_err(|e| ttrpc::Error::Socket(format!("connect to {address}: {e}")))?;
    Ok(EventsClient::new(Client::new(Socket::from(stream))))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::events::task::{TaskExit, TaskStart};
    use containerd_shim_protos::shim_async::{Events, create_events};
    use ttrpc::r#async::TtrpcContext;
    use ttrpc::asynchronous::Server;

    use super::*;

    /// What a fake containerd has been sent: topics and the events' bytes.
    pub(crate) type Received = mpsc::UnboundedReceiver<(String, Any)>;

    struct Recorder(mpsc::UnboundedSender<(String, Any)>);

    #[async_trait]
    impl Events for Recorder {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let envelope = request.envelope.unwrap_or_default();
            self.0.send((envelope.topic, envelope.event.unwrap_or_default())).unwrap();
            Ok(Empty::default())
        }
    }

    /// Serves the events service at `path`.
    pub(crate) async fn fake_containerd(path: &Path) -> (Server, Received) {
        let (sender, received) = mpsc::unbounded_channel();
        let service = create_events(Arc::new(Recorder(sender)));
        let mut server = Server::new().bind(&address::to_address(path)).unwrap().register_service(service);
        server.start().await.unwrap();
        (server, received)
    }

    #[tokio::test]
    async fn events_arrive_in_the_order_they_were_published() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let (_server, mut received) = fake_containerd(&socket).await;
        let publisher = Publisher::start(socket.to_str().unwrap(), "n");
        for pid in 0..200 {
            publisher.publish("/tasks/start", &TaskStart { pid, ..Default::default() });
        }
        publisher.publish("/tasks/exit", &TaskExit::default());
        publisher.flush().await;
        for pid in 0..200 {
            let (topic, event) = received.try_recv().unwrap();
            assert_eq!(
                (topic.as_str(), event.type_url.as_str()),
                ("/tasks/start", "containerd.events.TaskStart")
            );
            assert_eq!(TaskStart::parse_from_bytes(&event.value).unwrap().pid, pid);
        }
        assert_eq!(received.try_recv().unwrap().0, "/tasks/exit");
    }

    #[tokio::test]
    async fn events_wait_for_a_containerd_that_is_away() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let publisher = Publisher::start(socket.to_str().unwrap(), "n");
        publisher.publish("/tasks/start", &TaskStart::default());
        publisher.publish("/tasks/exit", &TaskExit::default());
        tokio::task::yield_now().await;
        let (_server, mut received) = fake_containerd(&socket).await;
        assert_eq!(received.recv().await.unwrap().0, "/tasks/start");
        assert_eq!(received.recv().await.unwrap().0, "/tasks/exit");
    }

    #[tokio::test]
    async fn events_wait_for_as_long_as_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let mut envelope = Envelope::new();
        envelope.topic = "/tasks/exit".into();
        let path = socket.display().to_string();
        tokio::time::pause();
        let forwarded = tokio::spawn(async move { forward(&path, &mut None, envelope).await });
        // Longer than all attempts take.
        sleep(Duration::from_secs(3600)).await;
        assert!(!forwarded.is_finished());
        tokio::time::resume();
        let (_server, mut received) = fake_containerd(&socket).await;
        assert_eq!(received.recv().await.unwrap().0, "/tasks/exit");
        forwarded.await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_sent_or_awaited_without_a_containerd() {
        let publisher = Publisher::start("", "default");
        publisher.publish("/tasks/start", &TaskStart::default());
        publisher.flush().await;
    }

    #[tokio::test]
    async fn kills_without_end_leave_room_for_other_events() {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let publisher = Publisher { namespace: "n".into(), to: Engine::Containerd(queue) };
        for _ in 0..QUEUE {
            publisher.publish_oom("c", None);
        }
        let kills = waiting.len();
        assert!((1..=QUEUE / 2 + 1).contains(&kills), "{kills}");
        publisher.publish("/tasks/exit", &TaskExit::default());
        assert_eq!(waiting.len(), kills + 1);
    }

    #[tokio::test]
    async fn a_full_queue_loses_events_and_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let publisher = Publisher::start(dir.path().join("nobody").to_str().unwrap(), "n");
        for _ in 0..QUEUE + 10 {
            publisher.publish("/tasks/start", &TaskStart::default());
        }
    }
}
