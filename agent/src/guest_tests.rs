//! The agent's promises, kept inside a real guest: over ttrpc, with containers of a busybox image.
//!
//! They need root, the guest's kernel and a machine of their own, so they are ignored by default; `agent/tests/in-guest`
//! boots one in QEMU and runs them. There, `/agent` is the agent's binary, `/dev/vda` holds an erofs image of busybox
//! from sector 2048 on and an ext4 filesystem behind it.

mod debug;
mod host;
mod network;

use std::time::{Duration, Instant};

use monohull_protocol::agent::{
    CreateContainerRequest, Empty, ResizeRequest, ResizeSandboxRequest, Stdio, UpdateRequest, WaitOomRequest,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::context::with_timeout;

use crate::server::End;
use debug::{
    a_program_of_the_host_has_a_terminal_of_the_right_size,
    a_program_of_the_host_runs_in_the_guest_and_all_that_it_started_ends_with_it,
    a_program_that_lacks_its_loader_is_refused, one_in_the_way_of,
};
use host::{
    CONTAINERS, DEADLINE, EROFS, EXT4, Host, container, extent, nothing_left, process, refusal, rootfs,
    shell, spec, storage,
};
use network::{the_network_follows_the_host, the_network_is_the_hosts};

async fn cpus_go_offline_and_online_again(host: &Host) {
    let online = || std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let set = async |cpus| {
        let request = ResizeSandboxRequest { cpus, ..Default::default() };
        host.client.resize_sandbox(with_timeout(DEADLINE), &request).await.map(drop)
    };
    assert_eq!(online(), "0-1\n");
    set(1).await.unwrap();
    assert_eq!(online(), "0\n");
    set(2).await.unwrap();
    assert_eq!(online(), "0-1\n");
    let error = set(3).await.unwrap_err().to_string();
    assert!(error.contains("the VM has 2, not 3"), "{error}");
}

async fn a_container_runs_in_its_own_namespaces(host: &Host) {
    let script = "hostname; echo $$; cat /proc/self/cgroup; df /dev/shm | tail -1 | cut -d' ' -f1; \
        echo x >/etc/x && cat /etc/x; stat -c %F /dev/stdout/ 2>/dev/null; echo again >/dev/stdout; exit 42";
    let (exit, output) = host.run("c", &shell(script)).await;
    assert_eq!(output, "box\n1\n0::/\nshm\nx\nagain\n");
    assert_eq!((exit.exit_code, exit.oom_kills), (42, 0));
    assert!(exit.exited_at_ns > 1_800_000_000_000_000_000);
    nothing_left("c");
}

async fn output_before_a_sudden_end_is_complete(host: &Host) {
    let (exit, output) = host.run("fast", &shell("yes | head -c 8388608")).await;
    assert_eq!((exit.exit_code, output.len()), (0, 8 << 20));
}

async fn input_reaches_the_process_and_ends(host: &Host) {
    let (mut input, mut output) = (host.stream("i").await, host.stream("o").await);
    let stdio = Stdio { stdin: "i".into(), stdout: "o".into(), ..Default::default() };
    host.create("in", &shell("md5sum"), stdio).await.unwrap();
    host.start("in").await.unwrap();
    let mut text = String::new();
    let write = async {
        input.write_all(&vec![0; 20 << 20]).await.unwrap();
        input.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(output.read_to_string(&mut text), write);
    read.unwrap();
    assert_eq!(text, "8f4e33f3dc3e414ff94e5fb6905cba8c  -\n");
    host.wait("in", "").await;
    host.delete("in").await.unwrap();
}

async fn what_cannot_be_executed_is_an_error_that_names_it(host: &Host) {
    let cases = [
        ("nope", "exec: \"nope\": executable file not found in $PATH"),
        ("/bin/nope", "stat /bin/nope: no such file or directory"),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
    ];
    let begin = Instant::now();
    for (name, expected) in cases {
        let error = refusal(host.create("bad", &spec(&[name]), Stdio::default()).await);
        assert!(error.contains(expected), "{error}");
        nothing_left("bad");
    }
    host.sleeper("good", &spec(&["true"])).await;
    for (name, expected) in cases {
        let error = refusal(host.exec("good", "e", &process(&[name]), Stdio::default()).await);
        assert!(error.contains(expected), "{error}");
    }
    assert!(begin.elapsed() < Duration::from_secs(10));
    // Found, but not a program: the error comes when it is executed.
    host.create("script", &spec(&["/bin/broken"]), Stdio::default()).await.unwrap();
    let error = refusal(host.start("script").await);
    assert!(error.contains("exec /bin/broken: no such file or directory"), "{error}");
    assert_eq!(host.wait("script", "").await.exit_code, 255);
    host.delete("script").await.unwrap();
    host.end("good").await;
}

async fn execs_have_their_own_streams_and_exit_codes(host: &Host) {
    host.sleeper("c", &spec(&["true"])).await;
    let (code, output) = host.run_exec("c", "e1", &process(&["sh", "-c", "hostname; exit 7"])).await;
    assert_eq!((code, output.as_str()), (7, "box\n"));
    // The name is free again, and three at once do not get in each other's way.
    let sleep = process(&["sleep", "1000"]);
    for id in ["e1", "e2", "e3"] {
        host.exec("c", id, &sleep, Stdio::default()).await.unwrap();
    }
    let again = refusal(host.exec("c", "e1", &sleep, Stdio::default()).await);
    assert!(again.contains("ALREADY_EXISTS"), "{again}");
    let listed = host.client.list_processes(with_timeout(DEADLINE), &container("c")).await.unwrap();
    let mut ids: Vec<_> = listed.processes.iter().map(|process| process.exec_id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["", "e1", "e2", "e3"]);
    host.signal("c", "e1", 15, false).await.unwrap();
    assert_eq!(host.wait("c", "e1").await.exit_code, 143);
    host.signal("c", "e2", 34, false).await.unwrap();
    assert_eq!(host.wait("c", "e2").await.exit_code, 128 + 34);
    host.signal("c", "", 9, false).await.unwrap();
    assert_eq!(host.wait("c", "").await.exit_code, 137);
    assert_eq!(host.wait("c", "e3").await.exit_code, 137);
    let late = refusal(host.exec("c", "e4", &sleep, Stdio::default()).await);
    assert!(late.contains("FAILED_PRECONDITION"), "{late}");
    host.delete("c").await.unwrap();
    nothing_left("c");
    let gone = refusal(host.delete("c").await);
    assert!(gone.contains("NOT_FOUND"), "{gone}");
}

async fn a_terminal_has_its_size_and_echoes(host: &Host) {
    let (mut input, mut output) = (host.stream("i").await, host.stream("o").await);
    let stdio = Stdio {
        terminal: true,
        stdin: "i".into(),
        stdout: "o".into(),
        width: 101,
        height: 33,
        ..Default::default()
    };
    let mut spec =
        shell("tty; stty size; read line; stty size; ls -ln /proc/self/fd/0 | wc -l; echo \"<$line>\"");
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    host.create("t", &spec, stdio).await.unwrap();
    host.start("t").await.unwrap();
    let mut text = vec![0; 256];
    let mut seen = String::new();
    while !seen.contains("33 101\r\n") {
        let length = output.read(&mut text).await.unwrap();
        assert!(length > 0, "the terminal ended after {seen:?}");
        seen.push_str(std::str::from_utf8(&text[..length]).unwrap());
    }
    let size = ResizeRequest { container_id: "t".into(), width: 80, height: 24, ..Default::default() };
    host.client.resize(with_timeout(DEADLINE), &size).await.unwrap();
    input.write_all(b"hello\n").await.unwrap();
    output.read_to_string(&mut seen).await.unwrap();
    assert!(seen.contains("24 80\r\n") && seen.ends_with("<hello>\r\n"), "{seen:?}");
    assert_eq!(host.wait("t", "").await.exit_code, 0);
    host.delete("t").await.unwrap();
    // A terminal of an exec.
    host.sleeper("t", &shell("")).await;
    let mut output = host.stream("o2").await;
    let stdio = Stdio { terminal: true, stdout: "o2".into(), ..Default::default() };
    host.exec("t", "e", &process(&["tty"]), stdio).await.unwrap();
    let mut seen = String::new();
    output.read_to_string(&mut seen).await.unwrap();
    assert_eq!(seen, "/dev/pts/0\r\n");
    host.end("t").await;
}

async fn a_killed_child_is_told_while_init_lives(host: &Host) {
    let mut spec = shell("tail /dev/zero & wait; exec sleep 1000");
    spec["linux"]["resources"] = json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}});
    host.create("kill", &spec, Stdio::default()).await.unwrap();
    host.start("kill").await.unwrap();
    let request = |seen| WaitOomRequest { container_id: "kill".into(), seen, ..Default::default() };
    let first = host.client.wait_oom(with_timeout(DEADLINE), &request(0)).await.unwrap().kills;
    assert!(first >= 1);
    let metrics = host.client.stats(with_timeout(DEADLINE), &container("kill")).await.unwrap();
    assert_eq!((metrics.memory.usage_limit, metrics.memory_events.oom_kill), (16 << 20, first));
    let (client, request) = (host.client.clone(), request(first));
    let next = tokio::spawn(async move { client.wait_oom(with_timeout(DEADLINE), &request).await });
    host.end("kill").await;
    assert!(
        matches!(next.await.unwrap(), Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::NOT_FOUND)
    );
}

async fn a_paused_container_stands_still_and_can_be_killed(host: &Host) {
    host.create("still", &shell("while true; do :; done"), Stdio::default()).await.unwrap();
    host.start("still").await.unwrap();
    let used = async || {
        let metrics = host.client.stats(with_timeout(DEADLINE), &container("still")).await.unwrap();
        assert!(metrics.pids.current >= 1 && metrics.memory.usage > 0, "{metrics}");
        metrics.cpu.usage_usec
    };
    host.client.pause(with_timeout(DEADLINE), &container("still")).await.unwrap();
    let before = used().await;
    assert!(before > 0);
    let refused = host.exec("still", "e", &process(&["true"]), Stdio::default()).await;
    assert!(refused.unwrap_err().to_string().contains("is paused"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(used().await, before);
    host.client.resume(with_timeout(DEADLINE), &container("still")).await.unwrap();
    host.exec("still", "e", &process(&["true"]), Stdio::default()).await.unwrap();
    host.client.pause(with_timeout(DEADLINE), &container("still")).await.unwrap();
    host.end("still").await;
    nothing_left("still");
}

async fn limits_change_while_the_container_runs(host: &Host) {
    host.sleeper("limits", &shell("")).await;
    let resources = json!({
        "memory": {"limit": 64 << 20, "reservation": 32 << 20}, "pids": {"limit": 7},
        "cpu": {"quota": 50000, "period": 100_000, "shares": 2048, "cpus": "0-63"},
        "unified": {"memory.high": "50331648"},
    });
    let request = UpdateRequest {
        container_id: "limits".into(),
        resources: resources.to_string().into(),
        ..Default::default()
    };
    host.client.update(with_timeout(DEADLINE), &request).await.unwrap();
    let read = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/pod/limits/{file}")).unwrap();
    for (file, value) in [
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("memory.high", "50331648"),
        ("pids.max", "7"),
        ("cpu.max", "50000 100000"),
    ] {
        assert_eq!(read(file).trim(), value, "{file}");
    }
    let metrics = host.client.stats(with_timeout(DEADLINE), &container("limits")).await.unwrap();
    assert_eq!((metrics.pids.limit, metrics.memory.usage_limit), (7, 64 << 20));
    let bad = UpdateRequest { resources: b"{\"pids\": 1}".to_vec(), ..request };
    assert!(host.client.update(with_timeout(DEADLINE), &bad).await.is_err());
    host.end("limits").await;
}

async fn the_memory_limit_kills_and_says_so(host: &Host) {
    let mut spec = shell("exec tail /dev/zero");
    spec["linux"]["resources"] = json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}});
    let (exit, _) = host.run("oom", &spec).await;
    assert_eq!((exit.exit_code, exit.oom_kills), (137, 1));
    nothing_left("oom");
}

async fn limits_reach_the_cgroup(host: &Host) {
    let mut spec = shell("cd /sys/fs/cgroup; cat pids.max cpu.max cpu.weight memory.max memory.swap.max");
    spec["linux"]["resources"] = json!({
        "pids": {"limit": 9}, "cpu": {"quota": 50000, "period": 100_000, "shares": 512, "cpus": "0-63"},
        "memory": {"limit": 64 << 20, "swap": 64 << 20}, "devices": [{"allow": false, "access": "rwm"}],
        "hugepageLimits": [{"pageSize": "1GB", "limit": 0}]
    });
    let (exit, output) = host.run("limits", &spec).await;
    assert_eq!(exit.exit_code, 0);
    assert_eq!(output, "9\n50000 100000\n59\n67108864\n0\n");
    // libcontainer's own processes do not count.
    spec["linux"]["resources"]["pids"]["limit"] = json!(1);
    spec["process"]["args"] = json!(["echo", "alone"]);
    assert_eq!(host.run("limits", &spec).await.1, "alone\n");
}

async fn seccomp_and_capabilities_hold_for_init_and_exec(host: &Host) {
    let script = "mkdir /tmp/d 2>&1; grep -E 'CapEff|CapBnd|Seccomp:|NoNewPrivs' /proc/self/status";
    let filter = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
    for no_new_privileges in [false, true] {
        let mut spec = shell(script);
        spec["linux"]["seccomp"] = filter.clone();
        spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let (_, of_init) = host.run("s", &spec).await;
        assert!(of_init.contains("can't create directory '/tmp/d': Operation not permitted"), "{of_init}");
        let status = format!(
            "CapEff:\t00000000000000e1\nCapBnd:\t00000000000000e1\nNoNewPrivs:\t{}\nSeccomp:\t2\n",
            u8::from(no_new_privileges)
        );
        assert!(of_init.ends_with(&status), "{of_init}");
        host.sleeper("s", &spec).await;
        let (_, of_exec) = host.run_exec("s", "e", &spec["process"]).await;
        assert_eq!(of_init, of_exec);
        let mut user = spec["process"].clone();
        user["user"] = json!({"uid": 1000, "gid": 1000});
        user["args"] =
            json!(["sh", "-c", "id -u; grep -E 'CapEff|Seccomp:' /proc/self/status; echo x >/dev/stdout"]);
        let (code, of_user) = host.run_exec("s", "u", &user).await;
        assert_eq!((code, of_user.as_str()), (0, "1000\nCapEff:\t0000000000000000\nSeccomp:\t2\nx\n"));
        host.end("s").await;
    }
}

async fn a_hundred_layers_and_a_writable_extent_are_mounted(host: &Host) {
    let id = "layers";
    let base = format!("{CONTAINERS}/{id}");
    let mut storages = vec![storage(id, "erofs", extent(EROFS, true), "image")];
    let mut layers = format!("lowerdir={base}/image");
    for number in 0..120 {
        let name = format!("a-layer-with-a-long-name-{number}");
        storages.push(storage(id, "tmpfs", None, &name));
        layers.push_str(&format!(":{base}/{name}"));
    }
    let mut volume = storage(id, "ext4", extent(EXT4, false), "volume");
    volume.directories = vec!["upper".into(), "work".into()];
    storages.push(volume);
    let mut root = storage(id, "overlay", None, "rootfs");
    root.options =
        vec![layers, format!("upperdir={base}/volume/upper"), format!("workdir={base}/volume/work")];
    storages.push(root);
    for expected in ["", "1\n"] {
        let mut out = host.stream("out").await;
        let stdio = Stdio { stdout: "out".into(), ..Default::default() };
        let spec = shell("cat /kept 2>/dev/null; echo 1 >/kept");
        host.create_with(id, &spec, stdio, storages.clone()).await.unwrap();
        host.start(id).await.unwrap();
        let mut text = String::new();
        out.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, expected, "what the first container wrote is on the disk for the second");
        host.wait(id, "").await;
        host.delete(id).await.unwrap();
        nothing_left(id);
    }
}

async fn a_failed_storage_leaves_nothing_and_says_why(host: &Host) {
    let mut storages = rootfs("x");
    storages.push(storage("x", "ext4", extent((0, 2048), true), "more"));
    let error = refusal(host.create_with("x", &shell(""), Stdio::default(), storages).await);
    assert!(
        error.contains("/x/more") && error.contains("mount ext4 from /dev/vda2: Invalid argument"),
        "{error}"
    );
    nothing_left("x");
}

async fn a_request_may_overtake_the_growth_of_the_disk(host: &Host) {
    // `in-guest` makes the disk larger when it reads this line. What is there then is no filesystem.
    println!("in-guest: grow the disk");
    let beyond = vec![storage("x", "ext4", extent((65536, 8192), true), "image")];
    let error = refusal(host.create_with("x", &shell(""), Stdio::default(), beyond).await);
    assert!(error.contains("mount ext4 from /dev/vda1: Invalid argument"), "{error}");
    nothing_left("x");
}

async fn containers_can_share_the_pods_namespaces(host: &Host) {
    let namespaces = json!([{"type": "pid", "path": "/proc/9/ns/pid"}, {"type": "uts", "path": "/proc/9/ns/uts"},
        {"type": "ipc", "path": "/proc/9/ns/ipc"}, {"type": "mount"}]);
    let mut sleeper = spec(&["true"]);
    sleeper["linux"]["namespaces"] = namespaces.clone();
    host.sleeper("first", &sleeper).await;
    let mut spec = shell("hostname; ps | grep -c '[s]leep 1000'; grep -c keep-pod-pids /proc/1/cmdline");
    spec["linux"]["namespaces"] = namespaces;
    let (_, output) = host.run("app", &spec).await;
    assert_eq!(output, "pod\n1\n1\n");
    // The end of the first one is not that of the others.
    host.end("first").await;
    let (_, output) = host.run("app", &spec).await;
    assert_eq!(output, "pod\n0\n1\n");
}

async fn a_container_can_join_the_processes_of_another(host: &Host) {
    host.sleeper("bystander", &shell("")).await;
    host.sleeper("target", &shell("")).await;
    let mut spec = shell("exit 7");
    spec["process"]["args"] =
        json!(["sh", "-c", "ps | grep -c '[s]leep 1000'; grep -c sleep /proc/1/cmdline"]);
    spec["linux"]["namespaces"] = json!([{"type": "pid", "path": "/proc/9/ns/pid"}, {"type": "mount"}]);
    spec["root"] = json!({"path": format!("{CONTAINERS}/debug/rootfs")});
    let mut output = host.stream("debug").await;
    let mut request = CreateContainerRequest {
        id: "debug".into(),
        spec: spec.to_string().into(),
        storages: rootfs("debug"),
        stdio: Some(Stdio { stdout: "debug".into(), ..Default::default() }).into(),
        pid_namespace_of: "target".into(),
        ..Default::default()
    };
    host.client.create_container(with_timeout(DEADLINE), &request).await.unwrap();
    host.start("debug").await.unwrap();
    let mut seen = String::new();
    output.read_to_string(&mut seen).await.unwrap();
    assert_eq!(seen, "1\n1\n");
    host.wait("debug", "").await;
    host.delete("debug").await.unwrap();
    host.signal("target", "", 9, true).await.unwrap();
    host.wait("target", "").await;
    host.delete("target").await.unwrap();
    host.end("bystander").await;
    request.id = "late".into();
    let error = refusal(host.client.create_container(with_timeout(DEADLINE), &request).await);
    assert!(error.contains("there is no container target"), "{error}");
}

async fn devices_that_are_not_allowed_cannot_be_used(host: &Host) {
    let number = std::fs::read_to_string("/sys/block/vda/dev").unwrap().trim().replace(':', " ");
    let script = format!(
        "mknod /dev/disk b {number} && (head -c 1 /dev/disk >/dev/null 2>&1 || echo refused); \
         echo x > /dev/null && head -c 4 /dev/zero | wc -c"
    );
    let mut spec = shell(&script);
    spec["process"]["capabilities"] = json!({"bounding": ["CAP_MKNOD"], "effective": ["CAP_MKNOD"],
        "permitted": ["CAP_MKNOD"]});
    spec["linux"]["resources"] = json!({"devices": [
        {"allow": false, "access": "rwm"}, {"allow": true, "type": "b", "access": "m"}]});
    let (_, output) = host.run("devices", &spec).await;
    assert_eq!(output, "refused\n4\n");
    spec["linux"]["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
    let (_, output) = host.run("devices", &spec).await;
    assert_eq!(output, "4\n", "a privileged container may use the disk");
}

async fn processes_left_behind_end_with_the_container(host: &Host) {
    let (exit, _) = host.run("left", &shell("(sleep 1000 >/dev/null 2>&1 &) ; exit 3")).await;
    assert_eq!(exit.exit_code, 3);
    nothing_left("left");
}

async fn shutdown_ends_all_and_answers(host: Host) {
    host.sleeper("a", &spec(&["true"])).await;
    host.create("b", &spec(&["true"]), Stdio::default()).await.unwrap();
    one_in_the_way_of(&host, "a").await;
    host.client.shutdown(with_timeout(DEADLINE), &Empty::new()).await.unwrap();
    assert_eq!(host.server.await.unwrap(), End::Shutdown);
    nothing_left("a");
    nothing_left("b");
}

#[tokio::test]
#[ignore = "needs the guest's kernel: run agent/tests/in-guest"]
async fn the_agent_keeps_its_promises() {
    let host = Host::new().await;
    macro_rules! run {
        ($($case:ident)*) => {$(
            let begin = Instant::now();
            $case(&host).await;
            println!("  {} ({} ms)", stringify!($case), begin.elapsed().as_millis());
        )*};
    }
    run! {
        cpus_go_offline_and_online_again
        a_container_runs_in_its_own_namespaces
        output_before_a_sudden_end_is_complete
        input_reaches_the_process_and_ends
        what_cannot_be_executed_is_an_error_that_names_it
        execs_have_their_own_streams_and_exit_codes
        a_terminal_has_its_size_and_echoes
        the_memory_limit_kills_and_says_so
        a_killed_child_is_told_while_init_lives
        a_paused_container_stands_still_and_can_be_killed
        limits_change_while_the_container_runs
        limits_reach_the_cgroup
        seccomp_and_capabilities_hold_for_init_and_exec
        a_hundred_layers_and_a_writable_extent_are_mounted
        a_failed_storage_leaves_nothing_and_says_why
        a_request_may_overtake_the_growth_of_the_disk
        the_network_is_the_hosts
        the_network_follows_the_host
        containers_can_share_the_pods_namespaces
        a_container_can_join_the_processes_of_another
        devices_that_are_not_allowed_cannot_be_used
        processes_left_behind_end_with_the_container
        a_program_of_the_host_runs_in_the_guest_and_all_that_it_started_ends_with_it
        a_program_of_the_host_has_a_terminal_of_the_right_size
        a_program_that_lacks_its_loader_is_refused
    }
    shutdown_ends_all_and_answers(host).await;
}
