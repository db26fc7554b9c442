use super::*;

#[test]
fn a_call_has_conditions_in_all_its_rules_or_in_none() {
    for rule in TABLE.iter().filter(|rule| rule.when.is_empty()) {
        let rules = TABLE.iter().filter(|other| other.call == rule.call).count();
        assert_eq!(rules, 1, "{}", rule.name);
    }
}

#[test]
fn every_filter_compiles() {
    for (class, name) in CLASSES {
        assert!(compile(rules(class)).is_ok(), "{name}");
    }
}
