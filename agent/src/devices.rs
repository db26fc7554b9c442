//! Which devices a container may use: its device rules as a BPF program on its cgroup
//! (Documentation/admin-guide/cgroup-v2.rst, "Device controller").
//!
//! Rules come from the host, whose device numbers mean others here: of those that allow something, only such hold that
//! name a device every Linux has under the same number, or that name none, or that name a block device which was brought
//! along: they get its number here. Other devices that the spec has are allowed anyway.

use oci_spec::runtime::{Linux, LinuxDeviceCgroup, LinuxDeviceType};

/// Character devices whose numbers are the same everywhere (Documentation/admin-guide/devices.txt): major, and the
/// minor or all.
const UNIVERSAL: [(u32, Option<u32>); 12] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (10, Some(200)),
    (10, Some(229)),
    (10, Some(232)),
    (136, None),
];
/// Those of [`UNIVERSAL`] that every container may use: null, zero, full, random, urandom, tty, console, ptmx, pts/*.
const DEFAULT: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// `BPF_DEVCG_DEV_*` and `BPF_DEVCG_ACC_*` of linux/bpf.h.
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// What one rule says. `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

/// A block device of the host that has another number here: both as major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Renumbered {
    pub(crate) host: (u32, u32),
    pub(crate) guest: (u32, u32),
}

/// Gives block devices, and the rules about exactly one of them, the numbers they have here. Rules about other block
/// devices of the host go: here their numbers are those of others.
pub(crate) fn renumber(linux: &mut Linux, renumbered: &[Renumbered]) {
    let guest = |major: i64, minor: i64| {
        let host = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
        let (major, minor) = renumbered.iter().find(|device| device.host == host)?.guest;
        Some((i64::from(major), i64::from(minor)))
    };
    let mut devices = linux.devices().clone();
    for device in devices.iter_mut().flatten().filter(|device| device.typ() == LinuxDeviceType::B) {
        if let Some((major, minor)) = guest(device.major(), device.minor()) {
            device.set_major(major).set_minor(minor);
        }
    }
    linux.set_devices(devices);
    let mut resources = linux.resources().clone();
    if let Some(rules) = resources.as_mut().and_then(|resources| resources.devices_mut().as_mut()) {
        rules.retain_mut(|rule| {
            let number = rule.major().zip(rule.minor()).filter(|(major, minor)| *major >= 0 && *minor >= 0);
            let Some((major, minor)) = number.filter(|_| rule.typ() == Some(LinuxDeviceType::B)) else {
                return true;
            };
            let Some((major, minor)) = guest(major, minor) else { return false };
            rule.set_major(Some(major)).set_minor(Some(minor));
            true
        });
    }
    linux.set_resources(resources);
}

/// The program for a container's rules; none when it has no rules, which allows everything. Rules about the `renumbered`
/// devices have the guest's numbers.
pub(crate) fn program(linux: &Linux, renumbered: &[Renumbered]) -> Option<Vec<u64>> {
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref());
    let rules = rules.filter(|rules| !rules.is_empty())?;
    Some(assemble(&collect(rules, linux, renumbered)))
}

/// In the order of increasing precedence.
fn collect(given: &[LinuxDeviceCgroup], linux: &Linux, renumbered: &[Renumbered]) -> Vec<Rule> {
    let here = |rule: &Rule| {
        let number = rule.major.zip(rule.minor).filter(|_| rule.kind == Some(BLOCK));
        number.is_some_and(|number| renumbered.iter().any(|device| device.guest == number))
    };
    let mut rules: Vec<Rule> =
        given.iter().map(parse).filter(|rule| holds_here(rule) || here(rule)).collect();
    let character = |&(major, minor): &(u32, Option<u32>)| Rule {
        allow: true,
        kind: Some(CHARACTER),
        major: Some(major),
        minor,
        access: ALL,
    };
    // As runc has it, whatever the rules say: making a node is not using it, and takes CAP_MKNOD.
    rules.push(Rule { allow: true, kind: None, major: None, minor: None, access: MKNOD });
    rules.extend(DEFAULT.iter().map(character));
    let devices = linux.devices().iter().flatten();
    let devices = devices.map(|device| Rule {
        allow: true,
        kind: kind(Some(device.typ())),
        major: number(Some(device.major())),
        minor: number(Some(device.minor())),
        access: ALL,
    });
    rules.extend(devices.filter(|rule| !here(rule)));
    rules
}

fn parse(rule: &LinuxDeviceCgroup) -> Rule {
    let access = rule.access().as_deref().unwrap_or("rwm");
    let bit = |letter, bit| if access.contains(letter) { bit } else { 0 };
    Rule {
        allow: rule.allow(),
        kind: kind(rule.typ()),
        major: number(rule.major()),
        minor: number(rule.minor()),
        access: bit('r', READ) | bit('w', WRITE) | bit('m', MKNOD),
    }
}

fn kind(typ: Option<LinuxDeviceType>) -> Option<u32> {
    match typ {
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
        _ => None,
    }
}

/// A negative number stands for any.
fn number(value: Option<i64>) -> Option<u32> {
    value.and_then(|value| u32::try_from(value).ok())
}

fn holds_here(rule: &Rule) -> bool {
    let Some(major) = rule.major else { return true };
    let universal =
        |&(known, minor): &(u32, Option<u32>)| known == major && (minor.is_none() || minor == rule.minor);
    !rule.allow || (rule.kind == Some(CHARACTER) && UNIVERSAL.iter().any(universal))
}

/// Registers: the context, and what is read from it.
const R0: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// Opcodes of Documentation/bpf/standardization/instruction-set.rst.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// An instruction: opcode, destination and source register, offset, immediate.
fn instruction(code: u8, target: u8, source: u8, offset: u16, immediate: u32) -> u64 {
    u64::from(code)
        | u64::from(target | source << 4) << 8
        | u64::from(offset) << 16
        | u64::from(immediate) << 32
}

/// A program that returns 1 for what the last rule that matches allows, and else 0.
fn assemble(rules: &[Rule]) -> Vec<u64> {
    // struct bpf_cgroup_dev_ctx: access_type (access << 16 | kind), major, minor.
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        program.extend(assemble_rule(rule));
    }
    program.extend(verdict(false));
    program
}

/// Returns from the program if the rule matches, and else goes on behind itself.
fn assemble_rule(rule: &Rule) -> Vec<u64> {
    // Pairs of what must be so and the jump away if it is not, whose distance is filled in below.
    let mut checks = Vec::new();
    for (register, wanted) in [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
        checks.extend(wanted.map(|wanted| (JUMP_NOT_EQUAL, register, wanted)));
    }
    // To allow, a rule must allow all that is wanted; to deny, any of it.
    let (mask, jump) =
        if rule.allow { (!rule.access & ALL, JUMP_NOT_EQUAL) } else { (rule.access, JUMP_EQUAL) };
    let mut code: Vec<u64> = Vec::new();
    let tail = [instruction(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0), instruction(AND, SCRATCH, 0, 0, mask)];
    let length = checks.len() + tail.len() + 1 + verdict(rule.allow).len();
    let to_end = |at: usize| u16::try_from(length - at - 1).unwrap_or_default();
    for (code_of_jump, register, wanted) in checks {
        code.push(instruction(code_of_jump, register, 0, to_end(code.len()), wanted));
    }
    code.extend(tail);
    code.push(instruction(jump, SCRATCH, 0, to_end(code.len()), 0));
    code.extend(verdict(rule.allow));
    code
}

fn verdict(allow: bool) -> [u64; 2] {
    [instruction(MOVE, R0, 0, 0, allow.into()), instruction(EXIT, 0, 0, 0, 0)]
}

#[cfg(test)]
#[path = "devices/tests.rs"]
mod tests;
