//! WinoGrande: which of two names a blank stands for (Sakaguchi et al. 2020), scored by what follows the blank.

use serde_json::Map;

use super::{Definition, Document, HarnessConfig, Metric, Split};
use crate::python_text::strip;
use crate::record::Record;

pub(super) static WINOGRANDE: Definition = Definition {
    name: "winogrande",
    title: "WinoGrande",
    headline: Metric::Acc,
    accepted: "dev.jsonl with a field `sentence`, or winogrande/**/validation*.parquet or .jsonl",
    config: HarnessConfig {
        split: Split::Validation,
        doc_to_text: "the sentence up to its first `_`, then option1 or option2",
        doc_to_target: "the sentence after its first `_`, stripped",
        doc_to_choice: "the two contexts; the target is scored after each",
    },
    adapt,
    document,
};

/// The authors number their sentences; the data set does not.
fn adapt(mut record: Record) -> Result<Record, String> {
    if record.has("qID") {
        let columns = ["sentence", "option1", "option2", "answer"];
        let pairs = columns.map(|column| record.0.remove_entry(column));
        record.0 = pairs.into_iter().flatten().collect::<Map<_, _>>();
    }
    Ok(record)
}

fn document(record: Record) -> Result<Document, String> {
    let sentence = record.text("sentence")?;
    let (before, after) =
        sentence.split_once('_').ok_or_else(|| format!("field `sentence` has no blank `_`: {sentence:?}"))?;
    let tail = strip(after).to_owned();
    let contexts = vec![format!("{before}{}", record.text("option1")?), format!("{before}{}", record.text("option2")?)];
    let gold = match record.text("answer")? {
        "1" => 0,
        "2" => 1,
        other => return Err(format!("field `answer` must be \"1\" or \"2\"; found {other:?}")),
    };
    Ok(Document { contexts, choices: vec![tail.clone(), tail.clone()], gold, target: tail, doc: record.0.into() })
}

#[cfg(test)]
mod tests {
    use super::super::document_of;
    use super::*;

    fn sentence(sentence: &str, answer: &str) -> Result<Document, String> {
        let json = serde_json::json!({
            "qID": "q", "sentence": sentence, "option1": "Ann", "option2": "Al", "answer": answer
        });
        document_of(&WINOGRANDE, &json.to_string())
    }

    #[test]
    fn the_option_goes_into_the_context() {
        let document = sentence("They went to _'s house and _ again.", "2").unwrap();
        assert_eq!((document.context(0), document.context(1)), ("They went to Ann", "They went to Al"));
        assert_eq!(document.continuation(0), " 's house and _ again.");
        assert_eq!(document.continuation(1), document.continuation(0));
        assert_eq!((document.gold, document.target.as_str()), (1, "'s house and _ again."));
        let columns: Vec<&String> = document.doc.as_object().unwrap().keys().collect();
        assert_eq!(columns, ["sentence", "option1", "option2", "answer"]);
    }

    #[test]
    fn a_blank_at_the_start_leaves_the_option_alone() {
        let document = sentence("_ left. \u{1f}", "1").unwrap();
        assert_eq!((document.context(0), document.continuation(0).as_str()), ("Ann", " left."));
    }

    #[test]
    fn bad_records_are_refused() {
        assert!(sentence("no blank", "1").unwrap_err().contains("no blank"));
        assert!(sentence("a _ b", "").unwrap_err().contains("must be \"1\" or \"2\""));
    }
}
