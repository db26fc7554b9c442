//! Is there a KVM, and does it run guests on the hardware?

use std::fs::File;
use std::io;
use std::path::Path;

use super::Finding;

const DEVICE: &str = "/dev/kvm";
/// The only version of the interface since Linux 2.6.22 (Documentation/virt/kvm/api.rst, KVM_GET_API_VERSION).
const API_VERSION: i32 = 12;
/// Guest instructions per microsecond below which KVM interprets: PVM runs about 1, hardware hundreds to thousands.
const INTERPRETED: f64 = 20.0;
/// Below this the machine is most likely itself emulated in software.
const SLOW: f64 = 100.0;

pub(super) fn look() -> Vec<Finding> {
    let opened = File::options().read(true).write(true).open(DEVICE);
    let mut findings = vec![device(opened.as_ref().err())];
    let Ok(kvm) = opened else { return findings };
    match kvm_ioctls::Kvm::new() {
        Ok(version) => findings.push(api(version.get_api_version())),
        Err(error) => findings.push(device(Some(&io::Error::from_raw_os_error(error.errno())))),
    }
    findings.push(match monohull_vmm::probe::probe_speed(&kvm) {
        Ok(speed) => classify(speed.instructions_per_us, Path::new("/sys/module/kvm_pvm").exists()),
        Err(error) => Finding::problem(
            "kvm speed",
            format!("a tiny guest does not run: {}", crate::text::chain(&error)),
            "look at `dmesg`; update the host's kernel or its firmware's virtualization settings",
        ),
    });
    findings
}

/// Judges the attempt to open the device.
fn device(error: Option<&io::Error>) -> Finding {
    let Some(error) = error else { return Finding::ok("kvm", format!("{DEVICE} opens")) };
    let finding = format!("cannot open {DEVICE}: {error}");
    let fix = match error.kind() {
        io::ErrorKind::NotFound => {
            "enable virtualization in the firmware (or nested virtualization for this machine), \
             then `modprobe kvm_intel` or `modprobe kvm_amd`"
        }
        io::ErrorKind::PermissionDenied => "run as root, as containerd does",
        _ => "`modprobe kvm_intel` or `modprobe kvm_amd`, and look at `dmesg`",
    };
    Finding::problem("kvm", finding, fix)
}

fn api(version: i32) -> Finding {
    if version == API_VERSION {
        return Finding::ok("kvm api", format!("version {version}"));
    }
    let finding = format!("version {version}, not {API_VERSION}");
    Finding::problem("kvm api", finding, "use a kernel with KVM of Linux 2.6.22 or later")
}

/// Judges what the tiny guest measured. `pvm`: the host's KVM is the PVM kind.
fn classify(instructions_per_us: f64, pvm: bool) -> Finding {
    let digits = if instructions_per_us < 10.0 { 1 } else { 0 };
    let measured = format!("{instructions_per_us:.digits$} guest instructions per microsecond");
    if instructions_per_us.is_nan() || instructions_per_us < INTERPRETED {
        let kind = if pvm { "this is KVM of the PVM kind" } else { "no hardware virtualization" };
        return Finding::problem(
            "kvm speed",
            format!("{measured}: KVM interprets ordinary kernels instead of running them ({kind})"),
            "use bare metal or a VM with nested VT-x or AMD-V; to try Monohull here, `tests/run` emulates such a machine",
        );
    }
    if instructions_per_us < SLOW {
        return Finding::note(
            "kvm speed",
            format!("{measured}: slow, this machine is probably emulated"),
            "fine for tests; for use take bare metal or hardware-assisted nested virtualization",
        );
    }
    Finding::ok("kvm speed", measured)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn interpreted_slow_and_hardware_speeds_are_told_apart() {
        for (speed, level) in [
            (0.0, Level::Problem),
            (1.1, Level::Problem),
            (19.9, Level::Problem),
            (f64::NAN, Level::Problem),
            (20.0, Level::Note),
            (99.9, Level::Note),
            (100.0, Level::Ok),
            (3000.0, Level::Ok),
        ] {
            assert_eq!(classify(speed, false).level, level, "{speed}");
        }
    }

    #[test]
    fn pvm_is_named_only_where_it_is() {
        assert!(classify(1.0, true).finding.contains("PVM"));
        assert!(!classify(1.0, false).finding.contains("PVM"));
        assert!(!classify(500.0, true).finding.contains("PVM"));
    }

    #[test]
    fn each_way_the_device_fails_has_its_own_fix() {
        let fix = |errno| device(Some(&io::Error::from_raw_os_error(errno))).fix.unwrap();
        assert!(fix(libc::ENOENT).contains("firmware"));
        assert!(fix(libc::EACCES).contains("root"));
        assert!(fix(libc::ENODEV).contains("modprobe"));
        assert_eq!(device(None).level, Level::Ok);
    }

    #[test]
    fn another_api_version_is_a_problem() {
        assert_eq!(api(12).level, Level::Ok);
        assert_eq!(api(11).level, Level::Problem);
    }
}
