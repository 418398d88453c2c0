//! PIQA: which of two solutions reaches a goal (Bisk et al. 2020).

use super::{Definition, Document, HarnessConfig, Metric, Split, as_it_is};
use crate::record::Record;

pub(super) static PIQA: Definition = Definition {
    name: "piqa",
    title: "PIQA",
    headline: Metric::AccNorm,
    accepted: "valid.jsonl with valid-labels.lst beside it, or piqa/**/validation*.parquet or .jsonl",
    config: HarnessConfig {
        split: Split::Validation,
        doc_to_text: "Question: {{goal}}\nAnswer:",
        doc_to_target: "label",
        doc_to_choice: "{{[sol1, sol2]}}",
    },
    adapt: as_it_is,
    document,
};

fn document(record: Record) -> Result<Document, String> {
    let choices = vec![record.text("sol1")?.to_owned(), record.text("sol2")?.to_owned()];
    let gold = record.index("label", 2)?;
    Ok(Document {
        contexts: vec![format!("Question: {}\nAnswer:", record.text("goal")?)],
        choices,
        gold,
        target: gold.to_string(),
        doc: record.0.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::document_of;
    use super::*;

    #[test]
    fn nothing_is_trimmed() {
        let json = r#"{"goal":" dry {{tent}} ","sol1":"wait \"now\" ","sol2":" hang it","label":1}"#;
        let document = document_of(&PIQA, json).unwrap();
        assert_eq!(document.context(0), "Question:  dry {{tent}} \nAnswer:");
        assert_eq!(document.context(1), document.context(0));
        assert_eq!(document.continuation(0), " wait \"now\" ");
        assert_eq!(document.continuation(1), "  hang it");
        assert_eq!((document.gold, document.target.as_str()), (1, "1"));
        assert_eq!(document.doc.to_string(), json);
    }

    #[test]
    fn bad_records_are_refused() {
        assert!(document_of(&PIQA, r#"{"goal":"g","sol1":"a","label":0}"#).unwrap_err().contains("`sol2` is missing"));
        for label in ["2", "-1", "null", "0.5"] {
            let json = format!(r#"{{"goal":"g","sol1":"a","sol2":"b","label":{label}}}"#);
            assert!(document_of(&PIQA, &json).unwrap_err().contains("0 to 1"));
        }
    }
}
