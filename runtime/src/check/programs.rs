//! Our own files, and the programs of others that we need or work with.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Finding;
use crate::settings::Settings;

/// Ours. All parts of one installation have the same.
const VERSION: &str = env!("CARGO_PKG_VERSION");
const SHIM: &str = "containerd-shim-monohull-v2";
/// `e_ident` of a 64-bit little-endian ELF file, and `e_machine` of x86-64 (elf(5)).
const ELF64: &[u8] = b"\x7fELF\x02\x01";
const EM_X86_64: [u8; 2] = [62, 0];
/// How a cpio archive begins that the kernel takes (Documentation/driver-api/early-userspace/buffer-format.rst).
const CPIO: &[u8] = b"07070";

pub(super) fn look(settings: &Settings) -> Vec<Finding> {
    let containerd = find("containerd");
    let mut findings = vec![
        Finding::ok("monohull", format!("version {VERSION}")),
        part("vmm", &settings.vmm, "install Monohull again, or set vmm in the settings"),
        part("fs server", &settings.fs_server, "install Monohull again, or set fs_server in the settings"),
        data("guest kernel", &settings.kernel, "kernel", "an ELF vmlinux for x86-64", is_vmlinux),
        data("initramfs", &settings.initramfs, "initramfs", "an uncompressed cpio archive", |head| {
            head.starts_with(CPIO)
        }),
        shim(find(SHIM).as_deref(), containerd.is_some()),
    ];
    findings.extend(containerd.map(|path| engine("containerd", &path)));
    findings.extend(find("nerdctl").map(|path| engine("nerdctl", &path)));
    findings
}

fn part(check: &'static str, path: &Path, fix: &str) -> Finding {
    if !is_program(path) {
        return Finding::problem(check, format!("{} is no program", path.display()), fix);
    }
    same_version(check, path, first_lines(path, "--version"))
}

fn shim(path: Option<&Path>, containerd: bool) -> Finding {
    match path {
        Some(path) => same_version("shim", path, first_lines(path, "-v")),
        None if containerd => Finding::problem(
            "shim",
            format!("{SHIM} is not in PATH: containerd can't start pods"),
            "install it where containerd finds programs: /usr/local/bin",
        ),
        None => Finding::note(
            "shim",
            format!("{SHIM} is not in PATH; `monohull run` works without"),
            "install it and containerd to run pods for an engine",
        ),
    }
}

/// Judges a program of ours by what it says its version is.
fn same_version(check: &'static str, path: &Path, said: Option<String>) -> Finding {
    let path = path.display();
    match said {
        Some(said) if said.split([' ', ':', '\n']).any(|word| word.trim_start_matches('v') == VERSION) => {
            Finding::ok(check, format!("{path}, version {VERSION}"))
        }
        Some(said) => Finding::problem(
            check,
            format!("{path} is of another release, it says {:?}", said.lines().next().unwrap_or_default()),
            format!("install all parts of Monohull {VERSION} together"),
        ),
        None => {
            Finding::problem(check, format!("{path} does not tell its version"), "install Monohull again")
        }
    }
}

fn engine(check: &'static str, path: &Path) -> Finding {
    let said = first_lines(path, "--version").unwrap_or_default();
    let line = said.lines().next().unwrap_or("does not tell its version");
    Finding::ok(check, format!("{}: {}", path.display(), crate::text::untrusted(line, 100)))
}

/// Judges a file by how it begins.
fn data(
    check: &'static str,
    path: &Path,
    setting: &str,
    wanted: &str,
    good: impl Fn(&[u8]) -> bool,
) -> Finding {
    let fix = format!("install Monohull again, or set {setting} in the settings");
    let mut head = Vec::new();
    let length = File::open(path).and_then(|file| {
        let length = file.metadata()?.len();
        file.take(64).read_to_end(&mut head)?;
        Ok(length)
    });
    let path = path.display();
    match length {
        Err(error) => Finding::problem(check, format!("cannot read {path}: {error}"), fix),
        Ok(_) if !good(&head) => Finding::problem(check, format!("{path} is not {wanted}"), fix),
        Ok(length) => Finding::ok(check, format!("{path}, {} KiB", length / 1024)),
    }
}

fn is_vmlinux(head: &[u8]) -> bool {
    head.starts_with(ELF64) && head.get(18..20) == Some(&EM_X86_64)
}

/// The program of that name in PATH.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What a program prints when asked for its version, whatever its exit code.
fn first_lines(path: &Path, flag: &str) -> Option<String> {
    let output = Command::new(path).arg(flag).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Level;
    use super::*;
    use crate::fake::write_program;

    #[test]
    fn parts_of_another_release_are_a_problem() {
        let judge =
            |said: Option<&str>| same_version("vmm", Path::new("/x"), said.map(ToOwned::to_owned)).level;
        assert_eq!(judge(Some(&format!("monohull-vmm {VERSION}"))), Level::Ok);
        assert_eq!(judge(Some(&format!("{SHIM}:\n  Version:  v{VERSION}\n"))), Level::Ok);
        assert_eq!(judge(Some("monohull-vmm 99.0.0")), Level::Problem);
        assert_eq!(judge(None), Level::Problem);
    }

    #[test]
    fn guest_files_are_judged_by_their_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let judge = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            data("guest kernel", &path, "kernel", "an ELF", is_vmlinux).level
        };
        let mut elf = [0; 64];
        elf[..6].copy_from_slice(ELF64);
        elf[18] = 62;
        assert_eq!(judge(&elf), Level::Ok);
        elf[18] = 183;
        assert_eq!(judge(&elf), Level::Problem);
        assert_eq!(judge(b"\x1f\x8b"), Level::Problem);
        assert_eq!(data("x", Path::new("/none"), "x", "x", |_| true).level, Level::Problem);
    }

    #[test]
    fn shim_matters_where_containerd_is() {
        assert_eq!(shim(None, true).level, Level::Problem);
        assert_eq!(shim(None, false).level, Level::Note);
    }

    #[test]
    fn version_is_what_a_program_prints_even_if_it_fails() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        write_program(&path, "#!/bin/sh\necho \"$1\"\n");
        assert_eq!(first_lines(&path, "--version").as_deref(), Some("--version"));
        write_program(&path, "#!/bin/sh\necho 1.5; exit 3\n");
        assert_eq!(first_lines(&path, "--version").as_deref(), Some("1.5"));
        write_program(&path, "#!/bin/sh\nexit 0\n");
        assert_eq!(first_lines(&path, "--version"), None);
    }
}
