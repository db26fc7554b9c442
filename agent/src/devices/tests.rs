use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Interprets the few instructions that a program is made of, for one access.
fn run(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
    let context = [access << 16 | kind, major, minor];
    let mut registers = [0u64; 7];
    let mut at = 0;
    loop {
        let word = program[at];
        let (code, registers_of, offset) = (word as u8, (word >> 8) as u8, (word >> 16) as u16);
        let immediate = word >> 32;
        let (target, source) = (usize::from(registers_of & 15), usize::from(registers_of >> 4));
        at += 1;
        match code {
            LOAD_WORD => registers[target] = context[usize::from(offset) / 4].into(),
            MOVE => registers[target] = immediate,
            MOVE_REGISTER => registers[target] = registers[source],
            AND => registers[target] &= immediate,
            SHIFT_RIGHT => registers[target] >>= immediate,
            JUMP_EQUAL if registers[target] == immediate => at += usize::from(offset),
            JUMP_NOT_EQUAL if registers[target] != immediate => at += usize::from(offset),
            JUMP_EQUAL | JUMP_NOT_EQUAL => {}
            EXIT => return registers[0] == 1,
            other => panic!("{other:#x} is no instruction of ours"),
        }
    }
}

fn linux(rules: serde_json::Value, devices: serde_json::Value) -> Linux {
    serde_json::from_value(json!({"resources": {"devices": rules}, "devices": devices})).unwrap()
}

/// What engines write for an ordinary container.
fn usual() -> serde_json::Value {
    json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "access": "m"},
        {"allow": true, "type": "b", "access": "m"},
        {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
        {"allow": true, "type": "b", "major": 254, "minor": 0, "access": "rwm"},
        {"allow": true, "type": "c", "major": 195, "minor": 0, "access": "rwm"},
    ])
}

#[test]
fn an_ordinary_container_has_the_default_devices_and_no_disk() {
    let program = program(&linux(usual(), json!([])), &[]).unwrap();
    let may = |kind, access, major, minor| run(&program, kind, access, major, minor);
    assert!(may(CHARACTER, READ | WRITE, 1, 3));
    assert!(may(CHARACTER, READ | WRITE, 136, 7));
    assert!(may(CHARACTER, READ, 10, 200));
    assert!(may(BLOCK, MKNOD, 254, 0), "making a node is not using it");
    assert!(!may(BLOCK, READ, 254, 0), "the number is of a disk of the host");
    assert!(!may(CHARACTER, READ, 195, 0));
    assert!(!may(CHARACTER, READ, 1, 1), "no physical memory");
}

#[test]
fn any_node_may_be_made_also_without_a_rule_for_it() {
    let program = program(&linux(json!([{"allow": false, "access": "rwm"}]), json!([])), &[]).unwrap();
    for kind in [BLOCK, CHARACTER] {
        assert!(run(&program, kind, MKNOD, 8, 0));
        assert!(!run(&program, kind, MKNOD | READ, 8, 0));
    }
}

#[test]
fn a_device_of_the_guests_own_spec_is_allowed() {
    let devices = json!([{"path": "/dev/data", "type": "b", "major": 259, "minor": 3}]);
    let program = program(&linux(usual(), devices), &[]).unwrap();
    assert!(run(&program, BLOCK, READ | WRITE, 259, 3));
    assert!(!run(&program, BLOCK, READ, 259, 4));
}

#[test]
fn a_block_device_of_the_host_may_be_used_as_its_rules_say_under_its_number_here() {
    let mut rules = usual();
    rules.as_array_mut().unwrap().extend([
        json!({"allow": true, "type": "b", "major": 7, "minor": 0, "access": "rwm"}),
        json!({"allow": true, "type": "b", "major": 7, "minor": 1, "access": "r"}),
        // Devices of the host that were not brought along, whose numbers are others' here.
        json!({"allow": true, "type": "b", "major": 259, "minor": 0, "access": "rwm"}),
        json!({"allow": false, "type": "b", "major": 254, "minor": 1, "access": "rwm"}),
    ]);
    let devices = json!([
        {"path": "/dev/a", "type": "b", "major": 7, "minor": 0},
        {"path": "/dev/b", "type": "b", "major": 7, "minor": 1, "fileMode": 432},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
    ]);
    let mut linux = linux(rules, devices);
    let renumbered = [((7, 0), (254, 1)), ((7, 1), (259, 0))].map(|(host, guest)| Renumbered { host, guest });

    renumber(&mut linux, &renumbered);

    let devices = linux.devices().as_ref().unwrap();
    let numbers: Vec<_> = devices.iter().map(|device| (device.major(), device.minor())).collect();
    assert_eq!(numbers, [(254, 1), (259, 0), (1, 3)]);
    let program = program(&linux, &renumbered).unwrap();
    let may = |access, major, minor| run(&program, BLOCK, access, major, minor);
    assert!(may(READ | WRITE, 254, 1));
    assert!(may(READ, 259, 0) && !may(READ | WRITE, 259, 0));
    assert!(!may(READ, 7, 0));
}

#[test]
fn privileged_containers_may_use_everything() {
    let all = linux(json!([{"allow": true, "access": "rwm"}]), json!([]));
    assert!(run(&program(&all, &[]).unwrap(), BLOCK, READ | WRITE, 254, 0));
    assert_eq!(program(&Linux::default(), &[]), None);
}

#[test]
fn the_last_rule_counts_and_a_denial_of_a_part_denies_the_whole() {
    let rules = json!([
        {"allow": true, "access": "rwm"},
        {"allow": false, "type": "c", "major": 4, "minor": 64, "access": "w"},
    ]);
    let program = program(&linux(rules, json!([])), &[]).unwrap();
    assert!(run(&program, CHARACTER, READ, 4, 64));
    assert!(!run(&program, CHARACTER, READ | WRITE, 4, 64));
    assert!(run(&program, CHARACTER, READ | WRITE, 4, 65));
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let number = || prop_oneof![Just(None), (0u32..3).prop_map(Some)];
    let kind = prop_oneof![Just(None), Just(Some(BLOCK)), Just(Some(CHARACTER))];
    (any::<bool>(), kind, number(), number(), 0..=ALL).prop_map(|(allow, kind, major, minor, access)| Rule {
        allow,
        kind,
        major,
        minor,
        access,
    })
}

proptest! {
    #[test]
    fn programs_do_what_the_rules_say(
        rules in proptest::collection::vec(any_rule(), 0..12),
        kind in BLOCK..=CHARACTER, access in 1..=ALL, major in 0u32..3, minor in 0u32..3,
    ) {
        let matches = |rule: &&Rule| {
            rule.kind.is_none_or(|wanted| wanted == kind)
                && rule.major.is_none_or(|wanted| wanted == major)
                && rule.minor.is_none_or(|wanted| wanted == minor)
                && if rule.allow { access & !rule.access == 0 } else { access & rule.access != 0 }
        };
        let expected = rules.iter().rev().find(matches).is_some_and(|rule| rule.allow);
        prop_assert_eq!(run(&assemble(&rules), kind, access, major, minor), expected);
    }
}
