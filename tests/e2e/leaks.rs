//! Nothing is left behind.

use std::process::Stdio;

use monohull_tests::engine::{Engine, Run};
use monohull_tests::leaks::Census;

use crate::Case;
use crate::containers::id;

pub(crate) const CASES: &[Case] =
    &[("50_runs_in_a_row_leave_nothing", in_a_row), ("10_runs_at_once_leave_nothing", at_once)];

fn in_a_row(engine: &Engine) {
    engine.run(&Run::new(&id("warm-up"), &["true"]));
    let before = Census::take(&engine.bundles());
    for _ in 0..50 {
        let output = engine.run(&Run::new(&id("row"), &["true"]));
        assert_eq!(output.code(), 0, "{}", output.stderr);
    }
    assert_nothing_beyond(engine, &before);
}

fn at_once(engine: &Engine) {
    let before = Census::take(&engine.bundles());
    let run = |_| {
        let mut command = engine.run_command(&Run::new(&id("once"), &["true"]));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the client starts")
    };
    let clients: Vec<_> = (0..10).map(run).collect();
    for client in clients {
        let output = client.wait_with_output().expect("the client ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_nothing_beyond(engine, &before);
}

pub(crate) fn assert_nothing_beyond(engine: &Engine, before: &Census) {
    let left = Census::take(&engine.bundles()).beyond(before);
    assert!(left.is_empty(), "left behind: {left:#?}");
}
