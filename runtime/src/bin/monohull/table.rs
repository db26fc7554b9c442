//! Tables of text for terminals.

/// Rows under a heading. Every column but the last is as wide as its widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Debug)]
struct Column {
    title: &'static str,
    right: bool,
}

/// Between two columns.
const GAP: &str = "  ";
/// The least room that wrapping leaves to the last column.
const MIN_LAST: usize = 20;

impl Table {
    /// An empty table. A title that begins with `>` heads a column that is aligned to the right, without that sign.
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        let column = |title: &&'static str| Column {
            title: title.strip_prefix('>').unwrap_or(title),
            right: title.starts_with('>'),
        };
        Self { columns: titles.iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row, with a cell for each column.
    pub(crate) fn push(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text. With a width, the last column is wrapped between words so that lines fit into it.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let titles: Vec<_> = self.columns.iter().map(|column| column.title.to_owned()).collect();
        let widths = self.widths();
        let before = self.width_before_last();
        let room = width.map_or(usize::MAX, |width| width.saturating_sub(before).max(MIN_LAST));
        let mut text = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let last = wrap(row.last().map_or("", String::as_str), room);
            let mut line = String::new();
            for ((cell, width), column) in row.iter().zip(&widths).zip(&self.columns).take(row.len() - 1) {
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                let (left, right) = if column.right { (pad.as_str(), "") } else { ("", pad.as_str()) };
                line.extend([left, cell, right, GAP]);
            }
            for (number, part) in last.iter().enumerate() {
                let full = if number == 0 { format!("{line}{part}") } else { " ".repeat(before) + part };
                text.push_str(full.trim_end());
                text.push('\n');
            }
        }
        text
    }

    /// Columns of the terminal that are taken before the last column begins.
    pub(crate) fn width_before_last(&self) -> usize {
        let widths = self.widths();
        widths.iter().take(widths.len().saturating_sub(1)).map(|width| width + GAP.len()).sum()
    }

    fn widths(&self) -> Vec<usize> {
        let width = |(number, column): (usize, &Column)| {
            let cells = self.rows.iter().filter_map(|row| row.get(number));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(column.title.chars().count())
        };
        self.columns.iter().enumerate().map(width).collect()
    }
}

/// Breaks a text between words into lines of at most `room` characters; a longer word has a line of its own.
fn wrap(text: &str, room: usize) -> Vec<String> {
    if text.chars().count() <= room {
        return vec![text.to_owned()];
    }
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        if let Some(line) = lines.last_mut() {
            if line.is_empty() {
                line.push_str(word);
                continue;
            }
            if line.chars().count() + 1 + word.chars().count() <= room {
                line.push(' ');
                line.push_str(word);
                continue;
            }
        }
        lines.push(word.to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NAME", ">MB", "WHAT"]);
        table.push(["a".into(), "1".into(), "one two three four five six".into()]);
        table.push(["länger".into(), "1000".into(), String::new()]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_blanks_at_their_end() {
        let expected = "\
NAME      MB  WHAT
a          1  one two three four five six
länger  1000
";
        assert_eq!(table().render(None), expected);
    }

    #[test]
    fn last_column_wraps_between_words_below_itself() {
        let expected = "\
NAME      MB  WHAT
a          1  one two three four
              five six
länger  1000
";
        assert_eq!(table().render(Some(34)), expected);
    }

    #[test]
    fn narrow_terminal_still_shows_the_last_column() {
        assert!(table().render(Some(1)).contains("one two three four\n"));
    }

    #[test]
    fn word_longer_than_the_room_is_kept_whole() {
        assert_eq!(wrap("a loooooong b", 5), ["a", "loooooong", "b"]);
    }
}
