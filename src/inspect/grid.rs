//! Texts in, aligned lines out.

/// Rows under a header, each column as wide as its widest cell; columns named in `right` end at one place.
pub fn grid(header: &[&str], rows: &[Vec<String>], right: &[&str]) -> String {
    let header_row: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
    let all = || std::iter::once(&header_row).chain(rows);
    let widths: Vec<usize> = (0..header.len())
        .map(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let lines = all().map(|row| {
        let cells =
            row.iter().zip(&widths).zip(header).map(|((cell, &width), name)| match right.contains(name) {
                true => format!("{cell:>width$}"),
                false => format!("{cell:width$}"),
            });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// One line of at most `n_max` characters; what a terminal would obey is shown as an escape.
pub fn cut(text: &str, n_max: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= n_max {
        return text;
    }
    text.chars().take(n_max.saturating_sub(1)).chain(['…']).collect()
}

/// The text with its control characters as escapes.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["été".to_owned(), "100".to_owned()]];
        assert_eq!(grid(&["key", "n"], &rows, &["n"]), "key    n\na      1\nété  100");
    }

    #[test]
    fn a_terminal_obeys_nothing_of_it() {
        assert_eq!(printable("a\x1b[31m\nb é"), "a\\u{1b}[31m\\nb é");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("abcd", 4), "abcd");
    }
}
