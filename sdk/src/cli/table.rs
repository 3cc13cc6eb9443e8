//! Aligned columns of plain text.

/// Lays out `rows` under `head`, two spaces between columns, nothing at line ends.
/// Columns whose name ends in `>` are aligned to the right, the mark is not shown.
#[must_use]
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let names = head.iter().map(|name| name.trim_end_matches('>').to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(names)
        .chain(rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()))
        .collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            lines.iter().filter_map(|line| line.get(column)).map(|cell| width(cell)).max().unwrap_or(0)
        })
        .collect();
    lines.iter().map(|line| row(line, head, &widths)).collect()
}

fn row(cells: &[String], head: &[&str], widths: &[usize]) -> String {
    let padded: Vec<String> = cells
        .iter()
        .zip(head)
        .zip(widths)
        .map(
            |((cell, name), width)| {
                if name.ends_with('>') { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            },
        )
        .collect();
    format!("{}\n", padded.join("  ").trim_end())
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// `text` without characters that move the cursor, change colours or reorder what is read:
/// names and reasons come from strangers.
#[must_use]
pub fn clean(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().map(|c| if hidden(c) { '?' } else { c }).collect()
}

/// [`clean`] for a text whose line breaks are our own.
#[must_use]
pub fn clean_lines(text: &str) -> String {
    text.split('\n').map(clean).collect::<Vec<_>>().join("\n")
}

/// `text` cut to `chars` characters, with three dots in place of what is missing.
#[must_use]
pub fn cut(text: &str, chars: usize) -> String {
    if width(text) <= chars {
        return text.to_owned();
    }
    let kept: String = text.chars().take(chars.saturating_sub(3)).collect();
    format!("{kept}...")
}

/// A command as a person would type it.
#[must_use]
pub fn command_line(argv: &[String]) -> String {
    argv.iter().map(|arg| quoted(arg)).collect::<Vec<_>>().join(" ")
}

fn quoted(arg: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@%+".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) {
        return arg.to_owned();
    }
    format!("'{}'", arg.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let rows = [vec!["a".into(), "10".into(), "x".into()], vec!["bcd".into(), "9".into(), String::new()]];
        assert_eq!(table(&["N", "COUNT>", "LAST"], &rows), "N    COUNT  LAST\na       10  x\nbcd      9\n");
    }

    #[test]
    fn a_strangers_name_cannot_move_the_cursor() {
        assert_eq!(clean("gpu\u{1b}[2Jbox\n\u{202e}"), "gpu?[2Jbox??");
    }

    #[test]
    fn a_command_is_quoted_where_it_must_be() {
        let argv = ["python3", "-c", "print('a b')", ""].map(str::to_owned);
        assert_eq!(command_line(&argv), r"python3 -c 'print('\''a b'\'')' ''");
    }

    #[test]
    fn a_long_text_is_cut_visibly() {
        assert_eq!((cut("abcdef", 5).as_str(), cut("abcde", 5).as_str()), ("ab...", "abcde"));
    }

    proptest! {
        #[test]
        fn every_row_is_one_line(cells in proptest::collection::vec(any::<String>(), 3)) {
            let text = table(&["A", "B>", "C"], &[cells]);
            prop_assert_eq!(text.lines().count(), 2);
        }
    }
}
