//! The table in Markdown.

use super::{MODEL_HEAD, Report};

pub(super) fn render(report: &Report) -> String {
    let columns = report.column_heads();
    let own = report.heads();
    let heads: Vec<&str> =
        std::iter::once(MODEL_HEAD).chain(columns.iter().copied()).chain(own.iter().map(String::as_str)).collect();
    let left = 1 + columns.len();
    let rules: Vec<&str> = (0..heads.len()).map(|column| if column < left { ":--" } else { "--:" }).collect();
    let mut text = line(heads) + &line(rules);
    for row in &report.rows {
        let mut cells = vec![row.model.clone()];
        cells.extend(row.columns.iter().map(|(_, value)| value.clone()));
        cells.extend(report.cells(row).into_iter().map(|(a, b)| format!("{a} {b}").trim_end().to_owned()));
        text += &line(cells.iter().map(String::as_str));
    }
    text + "\n" + &report.legend() + "\n\n" + &report.manifest_line + "\n"
}

fn line<'a>(cells: impl IntoIterator<Item = &'a str>) -> String {
    let cells: Vec<String> = cells.into_iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect();
    format!("| {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    #[test]
    fn heads_stand_in_the_published_order() {
        let markdown = super::super::tests::sample().to_markdown();
        let lines: Vec<&str> = markdown.lines().collect();
        assert_eq!(
            lines[0],
            "| Model | ProjW | ProjA | MlpW | MlpA | Query | Key | Value | Atten W | PIQA | ARC-Easy | ARC-Challenge \
             | HellaSwag | WinoGrande | Aver. Acc. (%) | Acc. Δ (%) | Δ 95 % | Verdict | KL (nats) |"
        );
        assert!(lines[2].ends_with(
            "| 75.00 ±0.46 | 81.00 ±0.46 | 53.00 ±0.46 | 79.00 ±0.46 | 73.00 ±0.46 | 72.20 | – | – | – | – |"
        ));
        assert!(lines[3].ends_with("| 70.95 | -1.25 | – | – | – |"));
        assert!(markdown.ends_with("scale rule floor · seed 7\n"));
    }
}
