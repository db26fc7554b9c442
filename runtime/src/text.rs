//! Texts for people: what untrusted parties wrote, and chains of errors.

/// At most `max` characters of a text that a guest or VMM wrote, on one line, without control characters.
pub(crate) fn untrusted(text: &str, max: usize) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().take(max).map(clean).collect();
    if text.chars().nth(max).is_some() {
        short.push('…');
    }
    short.trim().to_owned()
}

/// An error with all its causes on one line: "cannot read x: permission denied".
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untrusted_text_is_short_and_on_one_line() {
        assert_eq!(untrusted("a\nb\x1b[31mc", 100), "a b [31mc");
        assert_eq!(untrusted("äöü", 2), "äö…");
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        let error = crate::settings::SettingsError::Read("/x".into(), std::io::Error::other("gone"));
        assert_eq!(chain(&error), "cannot read /x: gone");
    }
}
