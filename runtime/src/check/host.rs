//! Memory and kernel features of the host.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use super::Finding;
use crate::meminfo::Meminfo;
use crate::settings::Settings;

/// `f_type` of a tmpfs (statfs(2), linux/magic.h).
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// `f_type` of the cgroup v2 hierarchy.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// As many inotify instances as a full node's pods and its own programs take.
const ENOUGH_INSTANCES: u32 = 1024;

/// What the pods' interfaces are joined with: module, and kernel option.
const TC: [(&str, &str); 3] = [
    ("sch_ingress", "CONFIG_NET_SCH_INGRESS"),
    ("cls_u32", "CONFIG_NET_CLS_U32"),
    ("act_mirred", "CONFIG_NET_ACT_MIRRED"),
];

pub(super) fn look(settings: &Settings) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let kernel = Kernel::of_this_host();
    let filesystems = read("/proc/filesystems");
    let mut findings = vec![
        memory(&read("/proc/meminfo"), settings),
        tun(Path::new("/dev/net/tun").exists(), kernel.feature("tun", "CONFIG_TUN")),
        tc(&kernel),
        port_forward(crate::forward::probe()),
        filesystem("overlayfs", &filesystems, "overlay", kernel.feature("overlay", "CONFIG_OVERLAY_FS")),
        filesystem("erofs", &filesystems, "erofs", kernel.feature("erofs", "CONFIG_EROFS_FS")),
        cgroup(fs_type(Path::new("/sys/fs/cgroup"))),
        inotify(&read("/proc/sys/fs/inotify/max_user_instances")),
    ];
    findings.push(state_dir(&settings.state_dir, fs_type(existing(&settings.state_dir))));
    findings.push(scratch_dir(&settings.scratch_dir));
    findings
}

/// Judges the memory that is free for pods, from `/proc/meminfo`.
fn memory(meminfo: &str, settings: &Settings) -> Finding {
    let Some(available) = Meminfo::parse(meminfo).map(|memory| memory.available_kib / 1024) else {
        return Finding::note("memory", "/proc/meminfo does not tell what is available", "mount /proc");
    };
    let overhead = u64::from(settings.overhead_memory_mib);
    let pod = u64::from(settings.default_memory_mib) + overhead;
    let fix =
        format!("free some, or set default_memory_mib below {} in the settings", settings.default_memory_mib);
    if available < overhead {
        let finding = format!("{available} MiB available, a guest needs {overhead} to boot");
        return Finding::problem("memory", finding, fix);
    }
    if available < pod {
        let finding = format!("{available} MiB available, a pod without a limit may use {pod}");
        return Finding::note("memory", finding, fix);
    }
    Finding::ok("memory", format!("{available} MiB available, a pod without a limit may use {pod}"))
}

/// Whether the kernel has a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feature {
    /// Built in or loaded.
    There,
    /// A module that loads when it is used.
    Loadable,
    Missing,
    /// The kernel's configuration and modules can't be read.
    Unknown,
}

/// What can be known of the running kernel's features.
#[derive(Debug, Default)]
struct Kernel {
    /// `/proc/config.gz`, option to value, if the kernel has it.
    config: Option<HashMap<String, String>>,
    /// `modules.builtin` and `modules.dep` of this release, if there.
    modules: Option<String>,
    /// Names in `/sys/module`.
    loaded: Vec<String>,
}

impl Kernel {
    fn of_this_host() -> Self {
        let loaded = fs::read_dir("/sys/module")
            .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let directory = Path::new("/lib/modules").join(release.trim());
        let modules = fs::read_to_string(directory.join("modules.builtin"))
            .and_then(|text| Ok(text + &fs::read_to_string(directory.join("modules.dep"))?));
        Self { config: config().ok(), modules: modules.ok(), loaded }
    }

    fn feature(&self, module: &str, option: &str) -> Feature {
        if self.loaded.iter().any(|loaded| loaded == module) {
            return Feature::There;
        }
        let listed = self.modules.as_ref().and_then(|modules| {
            modules.lines().find_map(|line| {
                let (path, dep) = line.split_once(':').map_or((line, false), |(path, _)| (path, true));
                let name = path.rsplit('/').next()?.split('.').next()?.replace('-', "_");
                (name == module).then_some(if dep { Feature::Loadable } else { Feature::There })
            })
        });
        let configured = self.config.as_ref().map(|config| config.get(option).map(String::as_str));
        match (listed, configured) {
            (Some(feature), _) => feature,
            (None, Some(Some("y"))) => Feature::There,
            // Configured as a module that is not installed.
            (None, Some(Some("m"))) if self.modules.is_none() => Feature::Unknown,
            (None, Some(_)) => Feature::Missing,
            (None, None) if self.modules.is_some() => Feature::Missing,
            (None, None) => Feature::Unknown,
        }
    }
}

fn config() -> io::Result<HashMap<String, String>> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(fs::File::open("/proc/config.gz")?).read_to_string(&mut text)?;
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(option, value)| (option.to_owned(), value.to_owned())).collect())
}

fn tun(node: bool, feature: Feature) -> Finding {
    const CHECK: &str = "tap devices";
    match (node, feature) {
        (true, Feature::There) => Finding::ok(CHECK, "/dev/net/tun is there"),
        (true, Feature::Loadable | Feature::Unknown) => {
            Finding::ok(CHECK, "/dev/net/tun is there, the module loads when it is opened")
        }
        (false, Feature::There | Feature::Loadable | Feature::Unknown) => Finding::problem(
            CHECK,
            "/dev/net/tun is missing: pods would have no network",
            "`modprobe tun`, and load it at boot",
        ),
        (_, Feature::Missing) => Finding::problem(
            CHECK,
            "the kernel has no tap devices (CONFIG_TUN): pods would have no network",
            "use a kernel that has",
        ),
    }
}

fn tc(kernel: &Kernel) -> Finding {
    const CHECK: &str = "traffic control";
    let with = |wanted: Feature| {
        let found = TC.iter().filter(|(module, option)| kernel.feature(module, option) == wanted);
        found.map(|(module, _)| *module).collect::<Vec<_>>().join(", ")
    };
    let (missing, unknown) = (with(Feature::Missing), with(Feature::Unknown));
    if !missing.is_empty() {
        return Finding::problem(
            CHECK,
            format!("the kernel lacks {missing}: pods would have no network"),
            "install the package with your kernel's extra modules, or use a kernel that has them",
        );
    }
    if !unknown.is_empty() {
        return Finding::note(
            CHECK,
            format!("cannot tell whether the kernel has {unknown}"),
            "mount /lib/modules here, or try `tc qdisc add dev lo clsact` in a network namespace",
        );
    }
    Finding::ok(CHECK, "ingress queueing, u32 filters and redirection are there")
}

/// `probe` is what came of loading the program that connections are redirected with.
fn port_forward(probe: io::Result<()>) -> Finding {
    const CHECK: &str = "port forward";
    match probe {
        Ok(()) => Finding::ok(CHECK, "the kernel takes socket lookup programs"),
        Err(error) => Finding::note(
            CHECK,
            format!(
                "the kernel takes no socket lookup program ({error}): port-forward reaches no pod's localhost"
            ),
            "use Linux 5.9 or newer with CONFIG_BPF_SYSCALL, and run as root",
        ),
    }
}

fn filesystem(check: &'static str, filesystems: &str, name: &str, feature: Feature) -> Finding {
    if filesystems.lines().filter_map(|line| line.split('\t').nth(1)).any(|known| known == name) {
        return Finding::ok(check, "known to the kernel");
    }
    match feature {
        Feature::There | Feature::Loadable => Finding::ok(check, "the module loads when it is used"),
        Feature::Missing | Feature::Unknown => Finding::note(
            check,
            "not known to the kernel: snapshotters that mount it on the host do not work",
            format!("`modprobe {name}`, or keep to other snapshotters"),
        ),
    }
}

fn cgroup(fs_type: Option<i64>) -> Finding {
    if fs_type == Some(CGROUP2_MAGIC) {
        return Finding::ok("cgroups", "version 2");
    }
    Finding::note(
        "cgroups",
        "version 1 or mixed: the guest always has version 2, the host's limits on the VMM are coarser",
        "boot with systemd.unified_cgroup_hierarchy=1",
    )
}

/// A pod with configMaps or secrets takes one inotify instance of root's.
fn inotify(instances: &str) -> Finding {
    match instances.trim().parse::<u32>() {
        Ok(instances) if instances >= ENOUGH_INSTANCES => {
            Finding::ok("inotify", format!("{instances} instances for each user"))
        }
        Ok(instances) => Finding::note(
            "inotify",
            format!(
                "{instances} instances for each user: in more pods, programs don't hear of updated configMaps"
            ),
            format!("sysctl fs.inotify.max_user_instances={ENOUGH_INSTANCES}"),
        ),
        Err(_) => Finding::note(
            "inotify",
            "the kernel has none: programs in pods don't hear of updated configMaps",
            "use a kernel with CONFIG_INOTIFY_USER",
        ),
    }
}

/// Where the running pods' state is kept must vanish with the pods, at a reboot.
fn state_dir(path: &Path, fs_type: Option<i64>) -> Finding {
    let path = path.display();
    if fs_type == Some(TMPFS_MAGIC) {
        return Finding::ok("state directory", format!("{path} is on a tmpfs"));
    }
    Finding::note(
        "state directory",
        format!("{path} is not on a tmpfs: what is in it outlives a reboot"),
        "set state_dir to a directory below /run",
    )
}

/// Archives are unpacked into unnamed files there.
fn scratch_dir(path: &Path) -> Finding {
    const CHECK: &str = "scratch directory";
    let found = existing(path);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if let Err(error) = rustix::fs::openat(CWD, found, flags, Mode::from_raw_mode(0o600)) {
        let finding =
            format!("no unnamed file can be made in {}: {}", found.display(), io::Error::from(error));
        let fix = "set scratch_dir to a directory on ext4, xfs, btrfs or tmpfs that root can write to";
        return Finding::problem(CHECK, finding, fix);
    }
    let free = rustix::fs::statvfs(found).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize) >> 20);
    Finding::ok(CHECK, format!("{}, {free} MiB free", path.display()))
}

/// The path, or the nearest directory above it that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn fs_type(path: &Path) -> Option<i64> {
    rustix::fs::statfs(path).ok().map(|stat| stat.f_type)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn memory_is_compared_with_one_pod() {
        let settings = Settings { default_memory_mib: 512, overhead_memory_mib: 128, ..Settings::default() };
        let level = |mib: u64| {
            let meminfo = format!("MemTotal: 9 kB\nMemAvailable:   {} kB\n", mib * 1024);
            memory(&meminfo, &settings).level
        };
        assert_eq!(level(127), Level::Problem);
        assert_eq!(level(639), Level::Note);
        assert_eq!(level(640), Level::Ok);
        assert_eq!(memory("", &settings).level, Level::Note);
    }

    #[test]
    fn few_inotify_instances_are_worth_a_note() {
        assert_eq!(inotify("128\n").level, Level::Note);
        assert_eq!(inotify("8192\n").level, Level::Ok);
        assert_eq!(inotify("").level, Level::Note);
    }

    #[test]
    fn feature_is_found_wherever_the_kernel_tells_of_it() {
        let config = |value: &str| Some(HashMap::from([("CONFIG_TUN".to_owned(), value.to_owned())]));
        let modules = |text: &str| Some(text.to_owned());
        let feature = |kernel: &Kernel| kernel.feature("tun", "CONFIG_TUN");
        let loaded = Kernel { loaded: vec!["tun".into()], ..Kernel::default() };
        let builtin = Kernel { modules: modules("kernel/drivers/net/tun.ko\n"), ..Kernel::default() };
        let module = Kernel { modules: modules("kernel/drivers/net/tun.ko.xz: a.ko\n"), ..Kernel::default() };
        let other = Kernel { modules: modules("kernel/drivers/net/tuna.ko: tun.ko\n"), ..Kernel::default() };
        assert_eq!(feature(&loaded), Feature::There);
        assert_eq!(feature(&builtin), Feature::There);
        assert_eq!(feature(&module), Feature::Loadable);
        assert_eq!(feature(&other), Feature::Missing);
        assert_eq!(feature(&Kernel { config: config("y"), ..Kernel::default() }), Feature::There);
        assert_eq!(feature(&Kernel { config: config("m"), ..Kernel::default() }), Feature::Unknown);
        assert_eq!(feature(&Kernel { config: Some(HashMap::new()), ..Kernel::default() }), Feature::Missing);
        assert_eq!(feature(&Kernel::default()), Feature::Unknown);
    }

    #[test]
    fn missing_traffic_control_is_a_problem_that_names_the_module() {
        let all: HashMap<_, _> =
            TC.iter().map(|(_, option)| ((*option).to_owned(), "y".to_owned())).collect();
        let mut some = all.clone();
        some.remove("CONFIG_NET_ACT_MIRRED");
        let judge = |config| tc(&Kernel { config, ..Kernel::default() });
        assert_eq!(judge(Some(all)).level, Level::Ok);
        assert_eq!(judge(None).level, Level::Note);
        let finding = judge(Some(some));
        assert_eq!(finding.level, Level::Problem);
        assert!(finding.finding.contains("act_mirred"));
    }

    #[test]
    fn tap_needs_the_node_and_the_kernel() {
        assert_eq!(tun(true, Feature::There).level, Level::Ok);
        assert_eq!(tun(false, Feature::There).level, Level::Problem);
        assert_eq!(tun(true, Feature::Missing).level, Level::Problem);
    }

    #[test]
    fn filesystem_is_matched_by_its_whole_name() {
        let known = "nodev\toverlay\n\text4\n";
        assert_eq!(filesystem("x", known, "overlay", Feature::Unknown).level, Level::Ok);
        assert_eq!(filesystem("x", known, "ext4", Feature::Unknown).level, Level::Ok);
        assert_eq!(filesystem("x", known, "over", Feature::Unknown).level, Level::Note);
        assert_eq!(filesystem("x", known, "erofs", Feature::Loadable).level, Level::Ok);
    }

    #[test]
    fn directories_are_judged_by_their_file_system() {
        assert_eq!(state_dir(Path::new("/run/x"), Some(TMPFS_MAGIC)).level, Level::Ok);
        assert_eq!(state_dir(Path::new("/x"), Some(0xef53)).level, Level::Note);
        assert_eq!(cgroup(Some(CGROUP2_MAGIC)).level, Level::Ok);
        assert_eq!(cgroup(Some(TMPFS_MAGIC)).level, Level::Note);
        assert_eq!(scratch_dir(Path::new("/proc/none")).level, Level::Problem);
        assert_eq!(scratch_dir(&std::env::temp_dir().join("not/yet/there")).level, Level::Ok);
    }
}
