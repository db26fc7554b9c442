//! Guests that lie about their processes or say nothing: their pod can be killed and deleted, and containerd has its answers.

use std::time::Duration;

use tokio::time::timeout;

use super::*;

/// A running container "p1".
async fn running() -> Fixture {
    let t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    t.start("p1", "").await.unwrap();
    t
}

fn make_deaf(process: &FakeProcess) {
    process.deaf.store(true, Ordering::SeqCst);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_takes_sigkill_and_lives_on_takes_its_pod_with_it() {
    let t = running().await;
    make_deaf(&t.guest().process("p1"));
    t.kill("p1", "", 9).await.unwrap();
    assert_eq!(t.wait("p1", "").await.unwrap(), 137);
    assert_eq!(t.delete("p1", "").await.unwrap(), 137);
}

#[tokio::test(start_paused = true)]
async fn an_exec_that_takes_sigkill_and_lives_on_takes_its_pod_with_it() {
    let t = running().await;
    t.exec("p1", "e1").await.unwrap();
    t.start("p1", "e1").await.unwrap();
    make_deaf(&t.guest().process("p1/e1"));
    t.kill("p1", "e1", 9).await.unwrap();
    assert_eq!(t.wait("p1", "e1").await.unwrap(), 137);
    assert_eq!(t.wait("p1", "").await.unwrap(), 137);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_was_never_started_and_does_not_die_is_deleted_with_its_pod() {
    let t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    make_deaf(&t.guest().process("p1"));
    assert_eq!(t.delete("p1", "").await.unwrap(), 137);
}

#[tokio::test(start_paused = true)]
async fn an_exec_that_is_kept_after_the_end_of_its_container_does_not_keep_the_container() {
    let mut t = running().await;
    t.exec("p1", "e1").await.unwrap();
    t.start("p1", "e1").await.unwrap();
    t.guest().process("p1").end(0, 0);
    assert_eq!(t.wait("p1", "").await.unwrap(), 0);
    assert_eq!(t.events().await[4..], ["exit e1 137", "exit p1 0"]);
    t.delete("p1", "").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn kills_for_want_of_memory_that_are_made_up_push_no_other_event_away() {
    let mut t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    t.guest().killing.store(true, Ordering::SeqCst);
    t.start("p1", "").await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    t.kill("p1", "", 9).await.unwrap();
    t.wait("p1", "").await.unwrap();
    let events = t.events().await;
    let kills = events.iter().filter(|event| *event == "oom p1").count();
    assert!((1..65).contains(&kills), "{kills} in a minute");
    assert_eq!(events.last().unwrap(), "exit p1 137");
}

#[tokio::test]
async fn state_is_answered_while_a_guest_keeps_every_other_answer_back() {
    let t = running().await;
    t.exec("p1", "e1").await.unwrap();
    let guest = t.guest();
    guest.silent.store(true, Ordering::SeqCst);
    guest.process("p1").stuck.store(true, Ordering::SeqCst);
    let stats = StatsRequest { id: "p1".into(), ..Default::default() };
    let others = async {
        tokio::join!(
            t.pause("p1"),
            t.start("p1", "e1"),
            t.kill("p1", "", 15),
            t.create("c2", json!({})),
            t.task.stats(Context::default(), &stats),
        )
    };
    let asked = async {
        for _ in 0..10 {
            // containerd's own limit (io.containerd.timeout.task.state).
            let state = timeout(Duration::from_secs(2), t.state("p1")).await;
            assert_eq!(state.unwrap().unwrap().status.enum_value().unwrap(), Status::RUNNING);
        }
    };
    tokio::select! {
        _ = others => panic!("a silent guest has answered"),
        () = asked => {}
    }
}
