//! Which devices a container may use: its device rules as a BPF program on its cgroup
//! (Documentation/admin-guide/cgroup-v2.rst, "Device controller").
//!
//! Rules come from the host, whose device numbers mean others here: of those that allow something, only such hold that
//! name a device every Linux has under the same number, or that name none. What the guest's spec has for devices is
//! allowed anyway.

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

/// The program for a container's rules; none when it has no rules, which allows everything.
pub(crate) fn program(linux: &Linux) -> Option<Vec<u64>> {
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref());
    let rules = rules.filter(|rules| !rules.is_empty())?;
    Some(assemble(&collect(rules, linux)))
}

/// In the order of increasing precedence.
fn collect(given: &[LinuxDeviceCgroup], linux: &Linux) -> Vec<Rule> {
    let mut rules: Vec<Rule> = given.iter().map(parse).filter(holds_here).collect();
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
    rules.extend(devices.map(|device| Rule {
        allow: true,
        kind: kind(Some(device.typ())),
        major: number(Some(device.major())),
        minor: number(Some(device.minor())),
        access: ALL,
    }));
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
