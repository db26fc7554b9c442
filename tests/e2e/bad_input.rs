//! Bad input and bad luck: one clear error each, and nothing left.

use monohull_tests::engine::{Client, Engine, Run};
use monohull_tests::leaks::Census;

use crate::Case;
use crate::containers::id;
use crate::leaks::assert_nothing_beyond;

pub(crate) const CASES: &[Case] = &[
    ("a_corrupt_config_json_is_told", corrupt_spec),
    ("a_missing_rootfs_is_told", missing_rootfs),
    ("a_host_without_kvm_is_told", no_kvm),
    ("a_host_without_memory_for_the_guest_is_told", no_memory),
    ("host_network_is_refused", host_network),
    ("host_pid_is_refused", host_pid),
];

/// Runs what must fail, and proves that it says each of `words` in one line and leaves nothing.
fn assert_refused(engine: &Engine, run: &Run, words: &[&str]) {
    let before = Census::take(&engine.bundles());
    let output = engine.run(run);
    assert_ne!(output.code(), 0, "{}", output.text());
    let told = output.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(told, "no line with {words:?} in:\n{}\ncontainerd's log:\n{}", output.stderr, engine.log());
    engine.remove(&run.id);
    assert_nothing_beyond(engine, &before);
}

fn with_shim(engine: &Engine, prefix: &str, script: &str) -> Run {
    let mut run = Run::new(&id(prefix), &["true"]);
    run.runtime = engine.install_shim(prefix, script).expect("a shim to run");
    run
}

fn with_settings(engine: &Engine, prefix: &str, settings: &str) -> Run {
    let mut run = Run::new(&id(prefix), &["true"]);
    run.runtime = engine.install_settings(prefix, settings).expect("a shim to run");
    run
}

fn corrupt_spec(engine: &Engine) {
    let script =
        "case \"$*\" in *\" start\") echo '{\"ociVersion\": ' > config.json;; esac; exec $SHIM \"$@\"";
    assert_refused(engine, &with_shim(engine, "corrupt", script), &["config.json"]);
}

fn missing_rootfs(engine: &Engine) {
    let mut run = Run::new(&id("rootless"), &["true"]);
    let output = match engine.client() {
        Client::Ctr => {
            let before = Census::take(&engine.bundles());
            let arguments =
                ["run", "--rm", "--runtime", monohull_tests::engine::MONOHULL, "--rootfs", "/no/such/root"];
            let mut command = engine.ctr(&arguments);
            let output = monohull_tests::engine::finish(command.arg(&run.id).arg("true"));
            assert_nothing_beyond(engine, &before);
            output
        }
        Client::Nerdctl => {
            // nerdctl checks --rootfs itself, so the shim finds the mounted root's source gone.
            run.runtime = engine
                .install_shim("rootless", "sed -i 's#\"path\":\"rootfs\"#\"path\":\"/no/such/root\"#' config.json 2>/dev/null; exec $SHIM \"$@\"")
                .expect("a shim to run");
            run.extra = vec!["--rootfs".into()];
            let before = Census::take(&engine.bundles());
            let mut command = engine.nerdctl(&[
                "run",
                "--rm",
                "--net",
                "none",
                "--runtime",
                &run.runtime,
                "--name",
                &run.id,
            ]);
            let output = monohull_tests::engine::finish(command.args(["--rootfs", "/no/such/root", "true"]));
            assert_nothing_beyond(engine, &before);
            output
        }
    };
    assert_ne!(output.code(), 0);
    assert!(output.stderr.contains("/no/such/root"), "{}", output.stderr);
}

fn no_kvm(engine: &Engine) {
    let script = "exec unshare --mount sh -c 'mount --bind /dev/null /dev/kvm; shim=$1; shift; exec $shim \"$@\"' - $SHIM \"$@\"";
    assert_refused(engine, &with_shim(engine, "nokvm", script), &["/dev/kvm"]);
}

fn no_memory(engine: &Engine) {
    let run = with_settings(engine, "nomemory", "overhead_memory_mib = 16000000\n");
    assert_refused(engine, &run, &["memory"]);
}

fn host_network(engine: &Engine) {
    let mut run = Run::new(&id("hostnet"), &["true"]);
    run.extra = match engine.client() {
        Client::Ctr => vec!["--net-host".into()],
        Client::Nerdctl => vec!["--net".into(), "host".into()],
    };
    assert_refused(engine, &run, &["hostNetwork"]);
}

fn host_pid(engine: &Engine) {
    if engine.client() == Client::Nerdctl {
        let mut run = Run::new(&id("hostpid"), &["true"]);
        run.extra = vec!["--pid".into(), "host".into()];
        assert_refused(engine, &run, &["hostPID"]);
    } else {
        // `ctr` has no option for it: take the namespace out of the spec.
        let script = "sed -i 's#{\"type\":\"pid\"},##' config.json 2>/dev/null; exec $SHIM \"$@\"";
        assert_refused(engine, &with_shim(engine, "hostpid", script), &["hostPID"]);
    }
}
