use proptest::prelude::*;
use tokio::io::AsyncReadExt;
use ttrpc::proto::{MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST};

use super::*;

impl Guest {
    /// Takes a request; the number of its stream.
    async fn asked(&mut self) -> u32 {
        let mut header = [0; 10];
        self.0.read_exact(&mut header).await.unwrap();
        let header = MessageHeader::from(header);
        let mut request = vec![0; header.length as usize];
        self.0.read_exact(&mut request).await.unwrap();
        header.stream_id
    }

    async fn answer(&mut self, stream: u32, message: &impl Message) {
        let payload = message.write_to_bytes().unwrap();
        let response = Response { payload, ..Default::default() };
        self.send(stream, MESSAGE_TYPE_RESPONSE, &response.write_to_bytes().unwrap()).await;
    }
}

/// What comes of a call to whose request `act` answers.
async fn outcome(act: impl AsyncFnOnce(&mut Guest, u32)) -> Result<u32, AgentError> {
    let (mut guest, agent) = Guest::new();
    let call = async { agent.create_container(&proto::CreateContainerRequest::new()).await };
    let act = async {
        let stream = guest.asked().await;
        act(&mut guest, stream).await;
        guest
    };
    tokio::join!(call, act).0
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_another_kind_or_none_at_all_is_an_error() {
    let processes =
        proto::ListProcessesResponse { processes: vec![Default::default()], ..Default::default() };
    for payload in [&[][..], b"\xff\xff\xff\xff", &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f], &[7; 4096]] {
        let error = outcome(async |guest, stream| guest.send(stream, MESSAGE_TYPE_RESPONSE, payload).await);
        let error = error.await.unwrap_err();
        assert!(
            matches!(error, AgentError::Lost(..) | AgentError::Nonsense { .. }),
            "{payload:?}: {error:?}"
        );
    }
    let error = outcome(async |guest, stream| guest.answer(stream, &processes).await).await.unwrap_err();
    assert!(matches!(error, AgentError::Nonsense { .. } | AgentError::Lost(..)), "{error:?}");
    for type_ in [MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_DATA, 0, 0xff] {
        let error =
            outcome(async |guest, stream| guest.send(stream, type_, &[0xff]).await).await.unwrap_err();
        assert!(matches!(error, AgentError::Timeout(..) | AgentError::Lost(..)), "{type_}: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_what_was_not_asked_is_none() {
    for stream in [0, 2, 3, u32::MAX] {
        let answer = async |guest: &mut Guest, _| {
            let pid = proto::CreateProcessResponse { pid: 7, ..Default::default() };
            guest.answer(stream, &pid).await;
        };
        let error = outcome(answer).await.unwrap_err();
        assert!(matches!(error, AgentError::Timeout("CreateContainer", 30)), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_longer_than_any_answer_is_not_received() {
    let lengths = [super::super::bounded::MAX_MESSAGE + 1, 4 << 20, u32::MAX];
    for length in lengths {
        let began = Instant::now();
        let announce = async |guest: &mut Guest, stream_id| {
            let header = MessageHeader { length, stream_id, type_: MESSAGE_TYPE_RESPONSE, flags: 0 };
            guest.0.write_all(&Vec::from(header)).await.unwrap();
        };
        let error = outcome(announce).await.unwrap_err();
        assert!(matches!(error, AgentError::Lost(..)), "{error:?}");
        assert!(began.elapsed() < DEADLINE, "its end is not waited for");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_without_end_is_cut() {
    let refuse = async |guest: &mut Guest, stream| {
        let status =
            Status { code: Code::INTERNAL.into(), message: "\x1b[2J".repeat(100_000), ..Default::default() };
        let response = Response { status: MessageField::some(status), ..Default::default() };
        guest.send(stream, MESSAGE_TYPE_RESPONSE, &response.write_to_bytes().unwrap()).await;
    };
    let error = outcome(refuse).await.unwrap_err().to_string();
    assert!(error.chars().count() <= MAX_MESSAGE + 1 && !error.contains('\x1b'), "{}", error.len());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_closed_midway_is_lost() {
    for bytes in [&[][..], &[0, 0], &[0, 0, 1, 0, 0, 0, 0, 1, 2, 0, 7]] {
        let (mut guest, agent) = Guest::new();
        let act = async {
            guest.asked().await;
            guest.0.write_all(bytes).await.unwrap();
            drop(guest);
        };
        let (result, ()) = tokio::join!(agent.start("c1"), act);
        assert!(matches!(result, Err(AgentError::Lost("Start", _))), "{result:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn answers_reach_their_calls_in_any_order_and_a_late_one_reaches_none() {
    let (mut guest, agent) = Guest::new();
    let request = proto::CreateContainerRequest::new();
    let late = agent.create_container(&request);
    assert!(matches!(late.await, Err(AgentError::Timeout(..))));
    let late = guest.asked().await;
    let act = async {
        let streams = [guest.asked().await, guest.asked().await];
        for (stream, pid) in [(late, 1), (streams[1], 3), (late, 1), (streams[0], 2)] {
            guest.answer(stream, &proto::CreateProcessResponse { pid, ..Default::default() }).await;
        }
    };
    let (first, second, ()) =
        tokio::join!(agent.create_container(&request), agent.create_container(&request), act);
    assert_eq!((first.unwrap(), second.unwrap()), (2, 3));
}

/// Engines ask for the statistics of all containers in turn.
#[tokio::test(start_paused = true)]
async fn an_agent_that_owes_statistics_keeps_nobody_waiting_twice() {
    let (mut guest, agent) = Guest::new();
    let began = Instant::now();
    assert!(matches!(agent.stats("c1").await, Err(AgentError::Timeout("Stats", 5))));
    for container in ["c1", "c2", "c3"] {
        assert!(matches!(agent.stats(container).await, Err(AgentError::Silent("Stats"))));
    }
    assert!(began.elapsed() < STATS_DEADLINE * 2);
    let due = [guest.asked().await, guest.asked().await];
    for stream in due {
        guest.answer(stream, &proto::Metrics::new()).await;
    }
    while agent.recent.is_awaited() {
        tokio::task::yield_now().await;
    }
    let act = async {
        let stream = guest.asked().await;
        guest.answer(stream, &proto::Metrics::new()).await;
    };
    let (metrics, ()) = tokio::join!(agent.stats("c1"), act);
    assert!(metrics.is_ok(), "{metrics:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_reads_nothing_holds_no_call_beyond_its_deadline() {
    let (_guest, agent) = Guest::new();
    let began = Instant::now();
    let update = async |_: usize| agent.update("c1", vec![0; 64 << 10]).await;
    let calls = futures_util::future::join_all((0..300).map(update)).await;
    for call in calls {
        // A request that is given up halfway takes the connection with it.
        assert!(
            matches!(call, Err(AgentError::Timeout("Update", 30) | AgentError::Lost("Update", _))),
            "{call:?}"
        );
    }
    assert!(began.elapsed() < DEADLINE + Duration::from_secs(1));
}

/// Metrics and processes that are many are refused, however few bytes they take.
#[tokio::test(start_paused = true)]
async fn a_list_of_empty_entries_is_nonsense() {
    let (mut guest, agent) = Guest::new();
    let act = async {
        let stream = guest.asked().await;
        let response = Response { payload: [0x0a, 0].repeat(400_000), ..Default::default() };
        guest.send(stream, MESSAGE_TYPE_RESPONSE, &response.write_to_bytes().unwrap()).await;
    };
    let (processes, ()) = tokio::join!(agent.processes("c1"), act);
    assert!(matches!(processes, Err(AgentError::Nonsense { field: "pid", .. })), "{processes:?}");
}

proptest! {
    #[test]
    fn nothing_an_agent_says_harms_its_client(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        run(&bytes);
    }
}
