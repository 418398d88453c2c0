//! HellaSwag: which of four endings continues a scene (Zellers et al. 2019).

use serde_json::{Map, Value};

use super::{Definition, Document, HarnessConfig, Metric, Split, custom};
use crate::python_text::{capitalize, strip};
use crate::record::Record;

pub(super) static HELLASWAG: Definition = Definition {
    name: "hellaswag",
    title: "HellaSwag",
    headline: Metric::AccNorm,
    accepted: "hellaswag_val.jsonl, hellaswag_val.query-choices-gold.jsonl, or \
               hellaswag/**/validation*.parquet or .jsonl",
    config: HarnessConfig {
        split: Split::Validation,
        doc_to_text: "{{query}}",
        doc_to_target: "{{label}}",
        doc_to_choice: "choices",
    },
    adapt,
    document,
};

/// The columns of the data set, in their order.
const COLUMNS: [&str; 10] =
    ["ind", "activity_label", "ctx_a", "ctx_b", "ctx", "endings", "source_id", "split", "split_type", "label"];

/// The authors write the label as a number; the data set writes it as text and orders the columns otherwise.
fn adapt(record: Record) -> Result<Record, String> {
    if !record.0.get("label").is_some_and(Value::is_number) {
        return Ok(record);
    }
    let mut map = Map::new();
    for column in COLUMNS {
        if let Some(value) = record.0.get(column) {
            let value = if column == "label" { value.to_string().into() } else { value.clone() };
            map.insert(column.to_owned(), value);
        }
    }
    Ok(Record(map))
}

/// Makes query, choices and gold of a raw record; a record that has them already and nothing raw is used as it is.
fn document(mut record: Record) -> Result<Document, String> {
    if !record.has("ctx_a") && record.has("query") {
        return custom::document(record);
    }
    let scene = format!("{} {}", record.text("ctx_a")?, capitalize(record.text("ctx_b")?));
    let query = clean(&format!("{}: {scene}", record.text("activity_label")?));
    let choices: Vec<String> = record.texts("endings")?.iter().map(|ending| clean(ending)).collect();
    let gold = record.index("label", choices.len())?;
    record.0.insert("query".to_owned(), query.clone().into());
    record.0.insert("choices".to_owned(), choices.clone().into());
    record.0.insert("gold".to_owned(), gold.into());
    Ok(Document { contexts: vec![query], choices, gold, target: gold.to_string(), doc: record.0.into() })
}

/// Takes WikiHow's marks out of a text. The steps and their order are the harness's; there is no second strip, so a
/// text that began with a mark keeps the space after it.
fn clean(raw: &str) -> String {
    remove_bracketed(&strip(raw).replace(" [title]", ". ")).replace("  ", " ")
}

/// Deletes every shortest `[…]` that does not reach over a line feed.
fn remove_bracketed(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let end = rest[open..].find([']', '\n']).map_or(rest.len(), |offset| open + offset);
        // Where the line or the text ends first, no bracket before that end is ever closed.
        let closed = rest[end..].starts_with(']');
        kept.push_str(&rest[..if closed { open } else { end }]);
        rest = &rest[if closed { end + 1 } else { end }..];
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::super::document_of;
    use super::*;

    fn raw(label: &str, ctx_a: &str, ctx_b: &str, ending: &str) -> Document {
        let json = serde_json::json!({
            "ind": 4, "activity_label": label, "ctx_a": ctx_a, "ctx_b": ctx_b, "ctx": "unused",
            "split": "val", "split_type": "indomain", "label": 1, "endings": ["x", ending], "source_id": "s",
        });
        document_of(&HELLASWAG, &json.to_string()).unwrap()
    }

    #[test]
    fn cleaning_is_the_harnesss() {
        let document = raw("Removing ice from car", "Then, the man writes over the snow.", "then", "e");
        assert_eq!(document.context(0), "Removing ice from car: Then, the man writes over the snow. Then");
        let document = raw("l", "a", "b", "[header] of it [title] Do it [step] Now.  Then  go.");
        assert_eq!(document.continuation(1), "  of it. Do it Now. Then go.");
        let document = raw("How to X", "[header] How to do X [title] Get Y. [step] First   you go.", "", "e");
        assert_eq!(document.context(0), "How to X: How to do X. Get Y. First  you go.");
        let document = raw("l", "a.", "the US girl WINS iPhone", "e");
        assert_eq!(document.context(0), "l: a. The us girl wins iphone");
    }

    #[test]
    fn brackets_follow_the_regular_expression() {
        for (text, expected) in [
            ("a[b]c", "ac"),
            ("[[a]]", "]"),
            ("[a\n]b", "[a\n]b"),
            ("[a\n[b]c]", "[a\nc]"),
            ("[", "["),
            ("[]x[", "x["),
            ("[a[\nb]", "[a[\nb]"),
            ("é[ö]ü", "éü"),
        ] {
            assert_eq!(remove_bracketed(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_logged_document_has_the_data_sets_columns() {
        let document = raw("l", "a", "b", "e");
        let columns: Vec<&String> = document.doc.as_object().unwrap().keys().collect();
        assert_eq!(columns[..10], COLUMNS);
        assert_eq!(columns[10..], ["query", "choices", "gold"]);
        assert_eq!(document.doc["label"], "1");
        assert_eq!((document.gold, document.target.as_str()), (1, "1"));
    }

    #[test]
    fn a_clean_record_is_used_as_it_is() {
        let json = r#"{"query": "a  b ", "choices": [" [x] c", "d"], "gold": 1}"#;
        let document = document_of(&HELLASWAG, json).unwrap();
        assert_eq!((document.context(0), document.continuation(0).as_str()), ("a  b ", "  [x] c"));
    }

    #[test]
    fn a_bad_label_is_refused() {
        let json = r#"{"activity_label":"l","ctx_a":"a","ctx_b":"b","endings":["x"],"label":""}"#;
        assert!(document_of(&HELLASWAG, json).unwrap_err().contains("`label`"));
        assert!(document_of(&HELLASWAG, "{}").unwrap_err().contains("`ctx_a` is missing"));
    }
}
