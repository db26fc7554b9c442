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

/// Most characters of one error in a chain: enough for a path and a reason.
const MAX_ERROR: usize = 1024;

/// An error with all its causes on one line: "cannot read x: permission denied". What an error quotes may be anybody's words.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = untrusted(&error.to_string(), MAX_ERROR);
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&untrusted(&error.to_string(), MAX_ERROR));
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

    #[test]
    fn a_chain_is_one_line_whatever_its_errors_quote() {
        let source = std::io::Error::other("x".repeat(10_000));
        let error = crate::settings::SettingsError::Read("/x\n\u{1b}[31m".into(), source);
        let line = chain(&error);
        assert!(line.starts_with("cannot read /x  [31m: xxx"), "{line}");
        assert!(line.len() < 1100, "{}", line.len());
    }
}
