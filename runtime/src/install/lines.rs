//! Monohull's lines in a file that others write: between two marks, so that they can be told and taken out again.

/// The line before Monohull's lines.
const BEGIN: &str = "# >>> 'monohull install' wrote these lines, 'monohull uninstall' removes them";
/// The line after them.
const END: &str = "# <<< monohull";

/// A file's text, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// Without Monohull's lines.
    pub(super) rest: String,
    /// Monohull's lines, without the marks, if they are there.
    pub(super) lines: Option<String>,
}

/// Takes a text apart. A mark without its other one is not a mark.
pub(super) fn split(text: &str) -> Parts {
    let apart = || {
        let start = line_start(text, BEGIN)?;
        let lines_start = start + BEGIN.len() + 1;
        let tail = text.get(lines_start..)?;
        let length = line_start(tail, END)?;
        let end = tail.get(length + END.len()..)?;
        let before = text.get(..start)?;
        // The empty line that is put before the first mark.
        let before =
            before.strip_suffix("\n\n").map_or(before, |_| before.strip_suffix('\n').unwrap_or(before));
        let rest = format!("{before}{}", end.strip_prefix('\n').unwrap_or(end));
        Some(Parts { rest, lines: Some(tail.get(..length)?.to_owned()) })
    };
    apart().unwrap_or_else(|| Parts { rest: text.to_owned(), lines: None })
}

/// Where the line `line` starts.
fn line_start(text: &str, line: &str) -> Option<usize> {
    let mut start = 0;
    for candidate in text.split_inclusive('\n') {
        if candidate.trim_end_matches(['\n', '\r']) == line {
            return Some(start);
        }
        start += candidate.len();
    }
    None
}

/// The text with `lines` between marks at its end.
pub(super) fn append(text: &str, lines: &str) -> String {
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let empty = if text.is_empty() { "" } else { "\n" };
    format!("{text}{newline}{empty}{BEGIN}\n{lines}{END}\n")
}

/// The text with `lines` in the place of the lines that are there.
pub(super) fn replace(text: &str, old: &str, lines: &str) -> String {
    text.replacen(&format!("{BEGIN}\n{old}{END}"), &format!("{BEGIN}\n{lines}{END}"), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_taken_out_again() {
        for text in ["", "version = 3\n", "a = 1\n\n\n", "# comment only\n", "[a]\nb = 1\n\n"] {
            let with = append(text, "[x]\ny = 1\n");
            assert_eq!(
                split(&with),
                Parts { rest: text.into(), lines: Some("[x]\ny = 1\n".into()) },
                "{text:?}"
            );
        }
    }

    #[test]
    fn lines_after_the_marks_stay_in_their_place() {
        let text = append("a = 1\n", "[x]\n") + "[after]\n";
        assert_eq!(split(&text).rest, "a = 1\n[after]\n");
    }

    #[test]
    fn one_mark_alone_is_not_a_mark() {
        for text in [format!("{BEGIN}\n[x]\n"), format!("{END}\n"), format!("{END}\n{BEGIN}\n")] {
            assert_eq!(split(&text), Parts { rest: text.clone(), lines: None });
        }
    }

    #[test]
    fn lines_are_replaced_where_they_are() {
        let text = append("a = 1\n", "[x]\n") + "[after]\n";
        let new = replace(&text, "[x]\n", "[y]\n");
        assert_eq!(split(&new).lines.as_deref(), Some("[y]\n"));
        assert!(new.ends_with("[after]\n"));
    }
}
