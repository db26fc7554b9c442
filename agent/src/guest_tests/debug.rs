//! Programs in the guest itself.

use monohull_protocol::agent::{DebugRequest, Empty, ResizeRequest, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::context::with_timeout;

use super::host::{CONTAINERS, DEADLINE, Host, refusal, shell};

impl Host {
    /// Starts busybox with these arguments.
    async fn debug(&self, exec_id: &str, args: &[&str], stdio: Stdio) -> ttrpc::Result<u32> {
        self.debug_with(&std::fs::read("/bin/busybox").unwrap(), exec_id, args, stdio).await
    }

    async fn debug_with(
        &self,
        program: &[u8],
        exec_id: &str,
        args: &[&str],
        stdio: Stdio,
    ) -> ttrpc::Result<u32> {
        let name = format!("{exec_id}-program");
        let mut stream = self.stream(&name).await;
        let request = DebugRequest {
            exec_id: exec_id.into(),
            program: name,
            args: args.iter().map(|&arg| arg.into()).collect(),
            env: vec!["TERM=test".into()],
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        let send = async {
            // Who refuses does not read to the end: the answer says it.
            let _ = stream.write_all(program).await;
            let _ = stream.shutdown().await;
        };
        tokio::join!(self.client.debug(with_timeout(DEADLINE), &request), send).0.map(|answer| answer.pid)
    }

    /// Runs a script to its end: exit code and standard output.
    async fn debug_script(&self, exec_id: &str, script: &str) -> (u32, String) {
        let mut output = self.stream(&format!("{exec_id}-out")).await;
        let stdio = Stdio { stdout: format!("{exec_id}-out"), ..Default::default() };
        self.debug(exec_id, &["sh", "-c", script], stdio).await.unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).await.unwrap();
        (self.wait("", exec_id).await.exit_code, text)
    }
}

pub(super) async fn a_program_of_the_host_runs_in_the_guest_and_all_that_it_started_ends_with_it(
    host: &Host,
) {
    host.sleeper("c", &shell("")).await;
    let script = "echo $TERM $HOME $$; cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 100[0]'; \
        ls /run/monohull/containers; cat /proc/self/cgroup; sleep 3000 & exit 7";
    let (code, output) = host.debug_script("d1", script).await;
    let pid = output.split_whitespace().nth(2).unwrap().to_owned();
    assert_eq!(output, format!("test / {pid}\n1\nc\n0::/debug-d1\n"));
    assert_eq!(code, 7);
    let (_, output) = host.debug_script("d2", "ls -d /run/monohull/debug/* /sys/fs/cgroup/debug-*").await;
    assert_eq!(output, "/run/monohull/debug/d2\n/sys/fs/cgroup/debug-d2\n", "its own alone are there");
    let (_, output) =
        host.debug_script("d3", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 300[0]'").await;
    assert_eq!(output, "0\n");

    let stdio = || Stdio { stdout: "killed".into(), ..Default::default() };
    let mut output = host.stream("killed").await;
    host.debug("d1", &["sh", "-c", "sleep 3000; true"], stdio()).await.unwrap();
    let again = refusal(host.debug("d1", &["true"], Stdio::default()).await);
    assert!(again.contains("ALREADY_EXISTS"), "{again}");
    let frozen = refusal(host.client.freeze(with_timeout(DEADLINE), &Empty::new()).await);
    assert!(frozen.contains("monohull exec"), "{frozen}");
    host.signal("", "d1", 9, false).await.unwrap();
    assert_eq!(output.read(&mut [0; 1]).await.unwrap(), 0, "nothing holds its output open");
    assert_eq!(host.wait("", "d1").await.exit_code, 137);
    host.end("c").await;
}

pub(super) async fn a_program_of_the_host_has_a_terminal_of_the_right_size(host: &Host) {
    let (mut input, mut output) = (host.stream("di").await, host.stream("do").await);
    let stdio = Stdio {
        terminal: true,
        stdin: "di".into(),
        stdout: "do".into(),
        width: 101,
        height: 33,
        ..Default::default()
    };
    let script = "stty size < /dev/tty; read line; stty size; echo \"<$line>\"";
    host.debug("t", &["sh", "-c", script], stdio).await.unwrap();
    let mut size = [0; 8];
    output.read_exact(&mut size).await.unwrap();
    assert_eq!(&size, b"33 101\r\n");
    let resize = ResizeRequest { exec_id: "t".into(), width: 80, height: 24, ..Default::default() };
    host.client.resize(with_timeout(DEADLINE), &resize).await.unwrap();
    input.write_all(b"hello\n").await.unwrap();
    let mut seen = String::new();
    output.read_to_string(&mut seen).await.unwrap();
    assert!(seen.contains("24 80\r\n") && seen.ends_with("<hello>\r\n"), "{seen:?}");
    assert_eq!(host.wait("", "t").await.exit_code, 0);
}

pub(super) async fn a_program_that_lacks_its_loader_is_refused(host: &Host) {
    let refused = refusal(host.debug_with(b"#!/no/such\n", "d", &[], Stdio::default()).await);
    assert!(refused.contains("INVALID_ARGUMENT") && refused.contains("is it static?"), "{refused}");
    let (code, _) = host.debug_script("d", "exit 3").await;
    assert_eq!(code, 3, "the name is free again");
}

/// One whose working directory is in a container's root.
pub(super) async fn one_in_the_way_of(host: &Host, id: &str) {
    let mut output = host.stream("way").await;
    let stdio = Stdio { stdout: "way".into(), ..Default::default() };
    let script = format!("cd {CONTAINERS}/{id}/rootfs && echo there; sleep 3000; true");
    host.debug("way", &["sh", "-c", &script], stdio).await.unwrap();
    let mut said = [0; 6];
    output.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"there\n");
}
