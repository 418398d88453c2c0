//! The table in Markdown.

use super::{AVERAGE_HEAD, DELTA_HEAD, MODEL_HEAD, NONE, Report, percent, signed_percent, title, value_and_error};

pub(super) fn render(report: &Report) -> String {
    let tasks = report.task_names();
    let columns = report.column_heads();
    let mut heads = vec![MODEL_HEAD];
    heads.extend(&columns);
    heads.extend(tasks.iter().map(|task| title(task)));
    heads.extend([AVERAGE_HEAD, DELTA_HEAD]);
    let left = 1 + columns.len();
    let rules: Vec<&str> = (0..heads.len()).map(|column| if column < left { ":--" } else { "--:" }).collect();
    let mut text = line(heads.iter().copied()) + &line(rules);
    for row in &report.rows {
        let mut cells = vec![row.model.clone()];
        cells.extend(row.columns.iter().map(|(_, value)| value.clone()));
        cells.extend(tasks.iter().map(|task| {
            row.score(task).map_or(NONE.to_owned(), |score| {
                let (value, error) = value_and_error(score.headline());
                format!("{value} {error}").trim_end().to_owned()
            })
        }));
        cells.extend([percent(row.average.value), signed_percent(row.delta)]);
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
             | HellaSwag | WinoGrande | Aver. Acc. (%) | Acc. Δ (%) |"
        );
        assert!(
            lines[2].ends_with("| 75.00 ±0.46 | 81.00 ±0.46 | 53.00 ±0.46 | 79.00 ±0.46 | 73.00 ±0.46 | 72.20 | – |")
        );
        assert!(lines[3].ends_with("| 70.95 | -1.25 |"));
        assert!(markdown.ends_with("scale rule floor · seed 7\n"));
    }
}
