//! The sandbox service, and containers in a sandbox.

use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::SandboxClient;
use protobuf::{EnumOrUnknown, MessageField};

use super::*;
use crate::sandbox_config::messages::pod_sandbox_config as cri;

impl Fixture {
    fn sandbox(&self) -> SandboxClient {
        SandboxClient::new(self.client.clone())
    }

    async fn create_sandbox(&self, id: &str, config: &cri::PodSandboxConfig) -> ttrpc::Result<()> {
        let options = Any {
            type_url: "runtime.v1.PodSandboxConfig".into(),
            value: config.write_to_bytes().unwrap(),
            ..Default::default()
        };
        let request = api::CreateSandboxRequest {
            sandbox_id: id.into(),
            bundle_path: self.dir.path().to_str().unwrap().into(),
            options: Some(options).into(),
            ..Default::default()
        };
        self.sandbox().create_sandbox(Context::default(), &request).await.map(drop)
    }

    async fn start_sandbox(&self) -> ttrpc::Result<api::StartSandboxResponse> {
        let request = api::StartSandboxRequest { sandbox_id: "p1".into(), ..Default::default() };
        self.sandbox().start_sandbox(Context::default(), &request).await
    }

    async fn stop_sandbox(&self) -> ttrpc::Result<()> {
        let request = api::StopSandboxRequest { sandbox_id: "p1".into(), ..Default::default() };
        self.sandbox().stop_sandbox(Context::default(), &request).await.map(drop)
    }

    async fn sandbox_status(&self) -> ttrpc::Result<api::SandboxStatusResponse> {
        let request =
            api::SandboxStatusRequest { sandbox_id: "p1".into(), verbose: true, ..Default::default() };
        self.sandbox().sandbox_status(Context::default(), &request).await
    }

    async fn wait_sandbox(&self) -> ttrpc::Result<u32> {
        let request = api::WaitSandboxRequest { sandbox_id: "p1".into(), ..Default::default() };
        self.sandbox().wait_sandbox(Context::default(), &request).await.map(|response| response.exit_status)
    }

    async fn ping_sandbox(&self) -> ttrpc::Result<()> {
        let request = api::PingRequest { sandbox_id: "p1".into(), ..Default::default() };
        self.sandbox().ping_sandbox(Context::default(), &request).await.map(drop)
    }

    async fn shutdown_sandbox(&self) -> ttrpc::Result<()> {
        let request = api::ShutdownSandboxRequest { sandbox_id: "p1".into(), ..Default::default() };
        self.sandbox().shutdown_sandbox(Context::default(), &request).await.map(drop)
    }
}

fn config() -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        hostname: "web-0".into(),
        dns_config: MessageField::some(cri::DNSConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
            ..Default::default()
        }),
        linux: MessageField::some(cri::LinuxPodSandboxConfig {
            sysctls: [("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())].into(),
            resources: MessageField::some(cri::LinuxContainerResources {
                memory_limit_in_bytes: 256 << 20,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_sandbox_lives_without_containers() {
    let t = Fixture::new().await;
    t.create_sandbox("p1", &config()).await.unwrap();
    assert_eq!(t.sandbox_status().await.unwrap().state, "SANDBOX_NOTREADY");
    let started = t.start_sandbox().await.unwrap();
    assert!(started.pid == SHIM_PID && started.created_at.seconds > 0);
    let made = t.guest().config.clone();
    assert_eq!(made.hostname, "web-0");
    assert_eq!(made.demand.pod.memory, Some(256 << 20));
    assert!(made.sysctls.contains_key("net.ipv4.ip_unprivileged_port_start"));
    let status = t.sandbox_status().await.unwrap();
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_READY", SHIM_PID));
    assert!(status.exited_at.is_none());
    t.ping_sandbox().await.unwrap();
    let (stopped, waited) = tokio::join!(t.stop_sandbox(), t.wait_sandbox());
    stopped.unwrap();
    assert_eq!(waited.unwrap(), 0);
    t.stop_sandbox().await.unwrap();
    let status = t.sandbox_status().await.unwrap();
    assert_eq!((status.state.as_str(), status.exited_at.seconds > 0), ("SANDBOX_NOTREADY", true));
    assert_eq!(refusal(t.ping_sandbox().await).0, Code::FAILED_PRECONDITION);
    t.shutdown_sandbox().await.unwrap();
    assert!(!t.dir.path().join("task").exists());
    t.pod.stop_requested().await;
}

#[tokio::test]
async fn a_sandbox_outlives_its_containers() {
    let t = Fixture::new().await;
    t.create_sandbox("p1", &config()).await.unwrap();
    t.start_sandbox().await.unwrap();
    for _ in 0..2 {
        t.create("c1", json!({})).await.unwrap();
        t.start("c1", "").await.unwrap();
        t.kill("c1", "", 9).await.unwrap();
        t.wait("c1", "").await.unwrap();
        t.delete("c1", "").await.unwrap();
        // containerd offers the shim to end after each container, unless it knows the sandbox.
        t.task.shutdown(Context::default(), &ShutdownRequest::default()).await.unwrap();
        assert!(t.dir.path().join("task").exists());
    }
    assert_eq!(t.sandbox_status().await.unwrap().state, "SANDBOX_READY");
}

#[tokio::test]
async fn containers_get_the_sandboxs_files_and_shared_memory() {
    let t = Fixture::new().await;
    t.create_sandbox("p1", &config()).await.unwrap();
    t.start_sandbox().await.unwrap();
    let spec = json!({
        "mounts": [
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=65536k"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/kubelet/etc-hosts", "options": ["rbind"]},
        ],
        "linux": {"namespaces": [{"type": "network"}, {"type": "ipc", "path": format!("/proc/{SHIM_PID}/ns/ipc")}]},
    });
    t.create("c1", spec.clone()).await.unwrap();
    let mounts = |t: &Fixture| {
        let latest = t.guest().latest.lock().unwrap().clone().unwrap();
        let mounts = latest.spec.mounts().clone().unwrap_or_default().into_iter();
        mounts
            .map(|mount| {
                (mount.destination().display().to_string(), mount.source().clone().unwrap_or_default())
            })
            .collect::<HashMap<_, _>>()
    };
    let found = mounts(&t);
    assert_eq!(found["/dev/shm"], Path::new("/dev/shm"));
    assert_eq!(found["/etc/hosts"], Path::new("/kubelet/etc-hosts"));
    let read = |path: &str| std::fs::read_to_string(&found[path]).unwrap();
    assert_eq!(
        read("/etc/resolv.conf"),
        "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
    );
    assert_eq!(read("/etc/hostname"), "web-0\n");

    let mut own = spec;
    own["linux"]["namespaces"] = json!([{"type": "network"}, {"type": "ipc"}]);
    t.create("c2", own).await.unwrap();
    assert_eq!(mounts(&t)["/dev/shm"], Path::new("shm"), "memory of its own with IPC of its own");
}

#[tokio::test]
async fn a_dead_vm_ends_the_sandbox_with_a_reason() {
    let t = Fixture::new().await;
    t.create_sandbox("p1", &config()).await.unwrap();
    t.start_sandbox().await.unwrap();
    t.create("c1", json!({})).await.unwrap();
    t.start("c1", "").await.unwrap();
    t.guest().end.send_replace(Some(ExitReason::GuestPanic("out of luck".into())));
    assert_eq!(t.wait_sandbox().await.unwrap(), 137);
    let status = t.sandbox_status().await.unwrap();
    assert_eq!(
        (status.state.as_str(), &*status.info["reason"]),
        ("SANDBOX_NOTREADY", "guest kernel panic: out of luck")
    );
    t.stop_sandbox().await.unwrap();
    t.shutdown_sandbox().await.unwrap();
}

#[tokio::test]
async fn requests_out_of_order_are_refused() {
    let t = Fixture::new().await;
    assert_eq!(refusal(t.start_sandbox().await).0, Code::FAILED_PRECONDITION);
    assert_eq!(refusal(t.sandbox_status().await).0, Code::FAILED_PRECONDITION);
    assert_eq!(refusal(t.create_sandbox("p2", &config()).await).0, Code::NOT_FOUND);
    t.create_sandbox("p1", &config()).await.unwrap();
    for id in ["p1", "p2"] {
        assert_eq!(refusal(t.create_sandbox(id, &config()).await).0, Code::ALREADY_EXISTS);
    }
    t.start_sandbox().await.unwrap();
    assert_eq!(refusal(t.start_sandbox().await).0, Code::FAILED_PRECONDITION);
}

#[tokio::test]
async fn a_sandbox_that_fails_can_be_shut_down() {
    let t = Fixture::new().await;
    let bad = cri::PodSandboxConfig { hostname: "no-kvm".into(), ..config() };
    assert_eq!(
        refusal(t.create_sandbox("p1", &bad).await),
        (Code::INVALID_ARGUMENT, "cannot open /dev/kvm".into())
    );
    t.shutdown_sandbox().await.unwrap();
    t.pod.stop_requested().await;
}

#[tokio::test]
async fn a_cgroup_parent_that_leads_elsewhere_is_refused_by_field() {
    let t = Fixture::new().await;
    let linux = cri::LinuxPodSandboxConfig { cgroup_parent: "/pods/../..".into(), ..Default::default() };
    let bad = cri::PodSandboxConfig { linux: MessageField::some(linux), ..Default::default() };
    let (code, message) = refusal(t.create_sandbox("p1", &bad).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(message.starts_with("linux.cgroup_parent \"/pods/../..\" is neither"), "{message}");
}

#[tokio::test]
async fn namespaces_of_the_host_and_users_are_refused_by_field() {
    let t = Fixture::new().await;
    let with = |options: cri::NamespaceOption| {
        let security_context = cri::LinuxSandboxSecurityContext {
            namespace_options: MessageField::some(options),
            ..Default::default()
        };
        let security_context = MessageField::some(security_context);
        let linux = cri::LinuxPodSandboxConfig { security_context, ..Default::default() };
        cri::PodSandboxConfig { linux: MessageField::some(linux), ..Default::default() }
    };
    let host = EnumOrUnknown::new(cri::NamespaceMode::NODE);
    let users =
        cri::UserNamespace { mode: EnumOrUnknown::new(cri::NamespaceMode::POD), ..Default::default() };
    for (options, field) in [
        (cri::NamespaceOption { network: host, ..Default::default() }, "network: a pod in a VM"),
        (cri::NamespaceOption { pid: host, ..Default::default() }, "pid: a pod in a VM"),
        (cri::NamespaceOption { ipc: host, ..Default::default() }, "ipc: a pod in a VM"),
        (cri::NamespaceOption { userns_options: Some(users).into(), ..Default::default() }, "userns_options"),
    ] {
        let (code, message) = refusal(t.create_sandbox("p1", &with(options)).await);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(message.contains(field), "{message} does not name {field}");
    }
}
