//! A task of one's own: a JSONL file of `{"query", "choices", "gold"}`, named by the file.

use super::{Definition, Document, HarnessConfig, Metric, Split, as_it_is};
use crate::record::Record;

pub(crate) static CUSTOM: Definition = Definition {
    name: "custom",
    title: "custom",
    headline: Metric::AccNorm,
    accepted: "NAME.jsonl with the fields `query`, `choices` and `gold` on each line",
    config: HarnessConfig {
        split: Split::Validation,
        doc_to_text: "{{query}}",
        doc_to_target: "gold",
        doc_to_choice: "choices",
    },
    adapt: as_it_is,
    document,
};

pub(super) fn document(record: Record) -> Result<Document, String> {
    let choices = record.texts("choices")?;
    let gold = record.index("gold", choices.len())?;
    let query = record.text("query")?.to_owned();
    Ok(Document { contexts: vec![query], choices, gold, target: gold.to_string(), doc: record.0.into() })
}

#[cfg(test)]
mod tests {
    use super::super::document_of;
    use super::*;

    #[test]
    fn a_query_is_the_whole_context() {
        let document = document_of(&CUSTOM, r#"{"query":"2 + 2 =","choices":["3","4",""],"gold":1}"#).unwrap();
        assert_eq!(document.context(0), "2 + 2 =");
        assert_eq!(document.continuation(1), " 4");
        assert_eq!(document.continuation(2), " ");
    }

    #[test]
    fn bad_records_are_refused() {
        let refuse = |json: &str| document_of(&CUSTOM, json).unwrap_err();
        assert!(refuse(r#"{"query":"q","choices":["a"],"gold":1}"#).contains("0 to 0; found 1"));
        assert!(refuse(r#"{"query":"q","choices":[],"gold":0}"#).contains("at least one text"));
        assert!(refuse(r#"{"query":"q","choices":[1],"gold":0}"#).contains("must be a text"));
        assert!(refuse(r#"{"query":1,"choices":["a"],"gold":0}"#).contains("`query` must be a text"));
    }
}
