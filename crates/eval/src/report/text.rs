//! The table for a terminal.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

use super::{MODEL_HEAD, Report};

/// Three rules across and none down, which costs no width.
const RULE: LineStyle = LineStyle::none().fill('─').junction('─');
const STYLE: TableStyle = TableStyle::new().top_border(RULE).header_separator(RULE).bottom_border(RULE);

/// How far cells are broken to save width.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Breaking {
    /// One line per row.
    None,
    /// Standard errors and parts of heads on lines of their own.
    Errors,
    /// Values of the role columns too, at `_` and spaces, and task names shortened.
    Roles,
}

pub(super) fn render(report: &Report, width: usize) -> String {
    let ways = [Breaking::None, Breaking::Errors, Breaking::Roles];
    let mut tables = ways.into_iter().map(|breaking| table(report, breaking).to_string());
    let fits = |table: &String| table.lines().all(|line| line.chars().count() <= width);
    // Where nothing fits, the narrowest: cutting it up further would only make it harder to read.
    let narrowest = ways[ways.len() - 1];
    let table = tables.find(fits).unwrap_or_else(|| table(report, narrowest).to_string());
    let below = [report.legend(), report.manifest_line.clone()];
    let below: Vec<String> = below.iter().map(|text| wrap(text, width)).collect();
    let trimmed: Vec<&str> = table.lines().map(str::trim_end).collect();
    format!("{}\n{}\n", trimmed.join("\n"), below.join("\n"))
}

fn table(report: &Report, breaking: Breaking) -> Table {
    let columns = report.column_heads();
    let (errors, roles) = (breaking >= Breaking::Errors, breaking >= Breaking::Roles);
    let mut heads = vec![MODEL_HEAD.to_owned()];
    heads.extend(columns.iter().map(|head| break_at(head, errors)));
    heads.extend(report.heads().iter().map(|head| own_head(head, breaking)));
    let mut table = Table::new();
    table.load_style(STYLE).set_content_arrangement(ContentArrangement::Disabled).set_header(heads);
    for row in &report.rows {
        let mut cells = vec![break_at(&row.model, roles)];
        cells.extend(row.columns.iter().map(|(_, value)| break_at(value, roles)));
        let between = if errors { "\n" } else { " " };
        cells.extend(report.cells(row).into_iter().map(|(a, b)| format!("{a}{between}{b}").trim_end().to_owned()));
        table.add_row(cells);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 1));
        if index > columns.len() {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn own_head(title: &str, breaking: Breaking) -> String {
    match (breaking, title) {
        (Breaking::Roles, "ARC-Challenge") => "ARC-\nChall.".to_owned(),
        (Breaking::Roles, "HellaSwag") => "Hella-\nSwag".to_owned(),
        (Breaking::Roles, "WinoGrande") => "Wino-\nGrande".to_owned(),
        _ => break_at(title, breaking >= Breaking::Errors),
    }
}

/// A line feed for every space and after every `_` and `-`, where `wanted`.
fn break_at(text: &str, wanted: bool) -> String {
    if wanted { text.replace(' ', "\n").replace('_', "_\n").replace('-', "-\n") } else { text.to_owned() }
}

/// Words of `text` on lines of at most `width` characters; a longer word has a line to itself.
fn wrap(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_the_terminal() {
        let report = super::super::tests::sample();
        for width in [240, 160, 140] {
            let text = report.to_text(width);
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= width, "{widest} of {width}:\n{text}");
        }
        let wide = report.to_text(240);
        assert!(wide.contains("75.00 ±0.46") && wide.contains("ARC-Challenge") && wide.contains("seed 7"));
    }

    #[test]
    fn lines_are_wrapped_at_words() {
        assert_eq!(wrap("aa bb cc ddddddd", 5), "aa bb\ncc\nddddddd");
        assert_eq!(wrap("", 5), "");
    }
}
