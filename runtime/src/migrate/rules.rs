//! What becomes of each setting of Kata Containers 3 and 4, of both its runtimes and all its VMMs.

use super::Key;

/// What becomes of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// It becomes one of ours.
    Becomes(Key),
    /// It has nothing to set here, for this reason.
    NotNeeded(&'static str),
    /// What it turns on is not there; this is what there is. Turned off it is not needed.
    Missing(&'static str),
    /// As [`Self::Missing`] for any value but these, which are what Kata's own files have.
    MissingUnless(&'static [&'static str], &'static str),
}

use Rule::{Becomes, Missing, MissingUnless, NotNeeded};

const OWN_FILES: &str = "Monohull comes with its own kernel, initramfs and VMM";
const NO_PATHS: &str = "no annotation can name a path or a program";
const NO_QEMU: &str = "the VMM has no such device or machine";
const NO_PASSTHROUGH: &str = "devices of the host can't be passed to a pod, but for block devices";
const NO_CONFIDENTIAL: &str = "no memory encryption: the host can read a pod's memory";
const OWN_SERVER: &str = "host directories have one server, which needs no tuning";
const ON_DEMAND: &str = "memory is plugged when limits ask for it, up to what they may become";
const TRACING: &str =
    "name a collector of OpenTelemetry on the node as traces: it gets each start's steps as spans";
const GUEST_KERNEL: &str =
    "the guest kernel has no modules: what containers need is built in, see docs/architecture.md";
const TIMEOUT: &str = "nothing polls; the engine's own time limits hold";
const BLOCK: &str = "one virtio-blk device with the host's page cache; flushes reach the disk";

/// The rules, by the table that a key is in and its name.
pub(super) const RULES: &[(&str, &[(&str, Rule)])] =
    &[("hypervisor", HYPERVISOR), ("runtime", RUNTIME), ("agent", AGENT), ("factory", FACTORY)];

const HYPERVISOR: &[(&str, Rule)] = &[
    ("default_memory", Becomes(Key::Memory)),
    ("default_vcpus", Becomes(Key::Cpus)),
    ("default_maxvcpus", Becomes(Key::MaxCpus)),
    ("default_max_vcpus", Becomes(Key::MaxCpus)),
    ("rx_rate_limiter_max_rate", Becomes(Key::NetworkBits)),
    ("tx_rate_limiter_max_rate", Becomes(Key::NetworkBits)),
    ("net_rate_limiter_bw_max_rate", Becomes(Key::NetworkBits)),
    ("net_rate_limiter_ops_max_rate", Becomes(Key::NetworkFrames)),
    ("disk_rate_limiter_bw_max_rate", Becomes(Key::DiskBits)),
    ("disk_rate_limiter_ops_max_rate", Becomes(Key::DiskRequests)),
    ("net_rate_limiter_bw_one_time_burst", NotNeeded("a second's worth may always pass at once")),
    ("net_rate_limiter_ops_one_time_burst", NotNeeded("a second's worth may always pass at once")),
    ("disk_rate_limiter_bw_one_time_burst", NotNeeded("a second's worth may always pass at once")),
    ("disk_rate_limiter_ops_one_time_burst", NotNeeded("a second's worth may always pass at once")),
    ("path", NotNeeded(OWN_FILES)),
    ("ctlpath", NotNeeded(OWN_FILES)),
    ("kernel", NotNeeded(OWN_FILES)),
    ("image", NotNeeded(OWN_FILES)),
    ("initrd", NotNeeded(OWN_FILES)),
    ("rootfs_type", NotNeeded(OWN_FILES)),
    ("firmware", NotNeeded(OWN_FILES)),
    ("firmware_volume", NotNeeded(OWN_FILES)),
    ("jailer_path", NotNeeded("every VMM is jailed, see docs/threat-model.md")),
    ("rootless", NotNeeded("every VMM has a user of its own")),
    ("seccompsandbox", NotNeeded("every thread of the VMM has a filter")),
    ("disable_seccomp", NotNeeded("every thread of the VMM has a filter")),
    (
        "enable_annotations",
        NotNeeded("pods can set io.monohull.memory_mib and io.monohull.cpus, and nothing else"),
    ),
    ("valid_hypervisor_paths", NotNeeded(NO_PATHS)),
    ("valid_ctlpaths", NotNeeded(NO_PATHS)),
    ("valid_jailer_paths", NotNeeded(NO_PATHS)),
    ("valid_virtio_fs_daemon_paths", NotNeeded(NO_PATHS)),
    ("valid_vhost_user_store_paths", NotNeeded(NO_PATHS)),
    ("valid_file_mem_backends", NotNeeded(NO_PATHS)),
    ("valid_entropy_sources", NotNeeded(NO_PATHS)),
    ("entropy_source", NotNeeded("guests get their random numbers from the host's kernel")),
    (
        "kernel_params",
        MissingUnless(
            &["", "agent.log=debug"],
            "the guest kernel's command line can't be changed; sysctls of the pod's spec can",
        ),
    ),
    ("kernel_verity_params", NotNeeded("there is no root image to verify")),
    ("machine_type", NotNeeded(NO_QEMU)),
    ("machine_accelerators", NotNeeded(NO_QEMU)),
    ("default_bridges", NotNeeded(NO_QEMU)),
    ("pflashes", NotNeeded(NO_QEMU)),
    ("msize_9p", NotNeeded(NO_QEMU)),
    ("use_vsock", NotNeeded("the agent is always reached by vsock")),
    ("use_legacy_serial", NotNeeded(NO_QEMU)),
    ("extra_monitor_socket", Missing("there is no monitor: `monohull top`, `monohull metrics`")),
    (
        "cpu_features",
        MissingUnless(
            &["", "pmu=off"],
            "guests see the CPU that KVM offers, without the performance counters",
        ),
    ),
    ("memory_slots", NotNeeded(ON_DEMAND)),
    ("default_maxmemory", NotNeeded(ON_DEMAND)),
    ("memory_offset", NotNeeded(ON_DEMAND)),
    ("enable_virtio_mem", NotNeeded(ON_DEMAND)),
    (
        "enable_mem_prealloc",
        Missing(
            "memory is taken when the guest touches it; requests of the pod reserve it in the scheduler's books",
        ),
    ),
    (
        "enable_hugepages",
        NotNeeded("transparent huge pages are used (`huge_pages`), none need to be reserved"),
    ),
    ("reclaim_guest_freed_memory", NotNeeded("what a guest frees returns to the host within seconds")),
    ("file_mem_backend", NotNeeded("guest memory is private to the VMM")),
    ("shared_fs", NotNeeded("host directories are shared by virtio-fs where a pod has any")),
    ("virtio_fs_daemon", NotNeeded(OWN_SERVER)),
    ("virtio_fs_cache", NotNeeded(OWN_SERVER)),
    ("virtio_fs_cache_size", NotNeeded(OWN_SERVER)),
    ("virtio_fs_queue_size", NotNeeded(OWN_SERVER)),
    ("virtio_fs_extra_args", NotNeeded(OWN_SERVER)),
    ("virtio_fs_inode_file_handles", NotNeeded(OWN_SERVER)),
    ("virtio_fs_is_dax", NotNeeded(OWN_SERVER)),
    (
        "disable_block_device_use",
        NotNeeded("images of erofs, blockfile and devmapper snapshotters are extents of the pod's disk"),
    ),
    ("block_device_driver", NotNeeded(BLOCK)),
    ("block_device_aio", NotNeeded(BLOCK)),
    ("block_device_cache_set", NotNeeded(BLOCK)),
    ("block_device_cache_direct", Missing(BLOCK)),
    ("block_device_cache_noflush", Missing(BLOCK)),
    ("block_device_num_queues", NotNeeded(BLOCK)),
    ("block_device_queue_size", NotNeeded(BLOCK)),
    ("blk_logical_sector_size", Missing("sectors have 512 bytes")),
    ("blk_physical_sector_size", Missing("sectors have 512 bytes")),
    ("enable_iothreads", NotNeeded("the disk has a thread of its own")),
    ("num_iothreads", NotNeeded("the disk has a thread of its own")),
    ("indep_iothreads", NotNeeded("the disk has a thread of its own")),
    ("enable_vhost_user_store", Missing("vhost-user disks; block devices are passed as raw volumes")),
    ("vhost_user_store_path", NotNeeded("there are no vhost-user disks")),
    ("vhost_user_reconnect_timeout_sec", NotNeeded("there are no vhost-user disks")),
    ("disable_image_nvdimm", NotNeeded(OWN_FILES)),
    ("disable_vhost_net", NotNeeded("vhost-net is not used")),
    ("network_queues", Missing("a network interface has one queue")),
    ("enable_iommu", Missing(NO_PASSTHROUGH)),
    ("enable_iommu_platform", Missing(NO_PASSTHROUGH)),
    ("hot_plug_vfio", MissingUnless(&["", "no-port"], NO_PASSTHROUGH)),
    ("cold_plug_vfio", MissingUnless(&["", "no-port"], NO_PASSTHROUGH)),
    ("hotplug_vfio_on_root_bus", Missing(NO_PASSTHROUGH)),
    ("pcie_root_port", Missing(NO_PASSTHROUGH)),
    ("pcie_switch_port", Missing(NO_PASSTHROUGH)),
    ("default_gpus", Missing(NO_PASSTHROUGH)),
    ("default_gpu_model", Missing(NO_PASSTHROUGH)),
    ("confidential_guest", Missing(NO_CONFIDENTIAL)),
    ("sev_snp_guest", Missing(NO_CONFIDENTIAL)),
    ("snp_id_block", Missing(NO_CONFIDENTIAL)),
    ("snp_id_auth", Missing(NO_CONFIDENTIAL)),
    ("snp_guest_policy", NotNeeded(NO_CONFIDENTIAL)),
    ("tdx_quote_generation_service_socket_port", NotNeeded(NO_CONFIDENTIAL)),
    ("measurement_algo", NotNeeded(NO_CONFIDENTIAL)),
    ("initdata", Missing(NO_CONFIDENTIAL)),
    ("guest_hook_path", Missing("hooks run on the host, as the OCI specification has them")),
    (
        "guest_memory_dump_path",
        Missing("no dumps: the kernel's last words are in the reason for the pod's end"),
    ),
    ("guest_memory_dump_paging", NotNeeded("there are no dumps")),
    ("enable_guest_swap", Missing("guests have no swap")),
    ("guest_swap_size_percent", NotNeeded("guests have no swap")),
    ("guest_swap_create_threshold_secs", NotNeeded("guests have no swap")),
    ("enable_numa", Missing("a guest has one node of memory")),
    ("disable_selinux", NotNeeded("SELinux does not label the VMM")),
    ("disable_guest_selinux", NotNeeded("the guest kernel has no SELinux")),
    ("disable_nesting_checks", NotNeeded("`monohull check` tells how fast KVM is")),
    ("enable_debug", NotNeeded("containerd's own log level decides")),
    (
        "enable_vcpus_pinning",
        Missing("CPUs are not pinned one by one; the kubelet's cpuset holds for all of a pod"),
    ),
];

const RUNTIME: &[(&str, Rule)] = &[
    ("name", NotNeeded(OWN_FILES)),
    ("hypervisor_name", NotNeeded(OWN_FILES)),
    ("agent_name", NotNeeded(OWN_FILES)),
    ("enable_debug", NotNeeded("containerd's own log level decides")),
    ("log_level", NotNeeded("containerd's own log level decides")),
    ("keep_abnormal", Missing("what a failed pod leaves is always removed; its reason is in the log")),
    (
        "internetworking_model",
        MissingUnless(
            &["tcfilter", "macvtap"],
            "interfaces of a pod's namespace are joined to its VM, there is no other model",
        ),
    ),
    ("disable_guest_seccomp", NotNeeded("seccomp profiles apply in the guest")),
    (
        "enable_vcpus_pinning",
        Missing("CPUs are not pinned one by one; the kubelet's cpuset holds for all of a pod"),
    ),
    ("guest_selinux_label", Missing("the guest kernel has no SELinux")),
    ("enable_tracing", Missing(TRACING)),
    ("jaeger_endpoint", Missing(TRACING)),
    ("jaeger_user", Missing(TRACING)),
    ("jaeger_password", Missing(TRACING)),
    ("disable_new_netns", Missing("a pod has a network namespace")),
    ("sandbox_cgroup_only", NotNeeded("all processes of a pod are in its cgroup")),
    ("enable_pprof", Missing("the shim has no profiler")),
    (
        "static_sandbox_resource_mgmt",
        NotNeeded("a VM begins with what its pod's limits say, and grows with them"),
    ),
    ("sandbox_bind_mounts", Missing("directories of the host reach pods as volumes")),
    ("vfio_mode", MissingUnless(&["", "vfio", "guest-kernel"], NO_PASSTHROUGH)),
    (
        "disable_guest_empty_dir",
        NotNeeded("an emptyDir is the host's directory, with medium Memory the guest's"),
    ),
    ("emptydir_mode", NotNeeded("an emptyDir is the host's directory, with medium Memory the guest's")),
    ("experimental", Missing("nothing is experimental")),
    ("experimental_force_guest_pull", Missing("images are the engine's; they are not pulled in the guest")),
    ("create_container_timeout", NotNeeded(TIMEOUT)),
    ("dan_conf", MissingUnless(&["", "/run/kata-containers/dans"], "networks come from CNI")),
    ("pod_resource_api_sock", Missing(NO_PASSTHROUGH)),
    ("shared_mounts", Missing("volumes are shared by what the pod's spec mounts")),
    ("use_passfd_io", NotNeeded("streams have sockets of their own")),
    ("passfd_listener_port", NotNeeded("streams have sockets of their own")),
];

const AGENT: &[(&str, Rule)] = &[
    ("enable_debug", NotNeeded("the guest's messages: `monohull run --console`")),
    ("log_level", NotNeeded("the guest's messages: `monohull run --console`")),
    ("enable_tracing", Missing(TRACING)),
    ("kernel_modules", Missing(GUEST_KERNEL)),
    ("debug_console_enabled", Missing("name a static busybox as debug_shell, for `monohull exec`")),
    ("container_pipe_size", NotNeeded("pipes are as large as the kernel makes them")),
    ("dial_timeout", NotNeeded(TIMEOUT)),
    ("dial_timeout_ms", NotNeeded(TIMEOUT)),
    ("reconnect_timeout_ms", NotNeeded(TIMEOUT)),
    ("create_container_timeout", NotNeeded(TIMEOUT)),
    ("health_check_request_timeout_ms", NotNeeded(TIMEOUT)),
    ("server_port", NotNeeded(OWN_FILES)),
    ("log_port", NotNeeded(OWN_FILES)),
    ("cdh_api_timeout", NotNeeded(NO_CONFIDENTIAL)),
    ("cdh_api_timeout_ms", NotNeeded(NO_CONFIDENTIAL)),
    ("launch_process_timeout", NotNeeded(NO_CONFIDENTIAL)),
    ("mem_agent_enable", Missing("guests are not asked to reclaim; what they free returns by itself")),
    ("policy", Missing("the agent has no policy: it does what its pod's shim says")),
];

const FACTORY: &[(&str, Rule)] = &[
    ("enable_template", NotNeeded("pods are forked from a template by default (`templates`)")),
    ("template_path", NotNeeded("templates are in `state_dir`")),
    ("vm_cache_number", NotNeeded("a fork needs no VMs in store")),
    ("vm_cache_endpoint", NotNeeded("a fork needs no VMs in store")),
];
