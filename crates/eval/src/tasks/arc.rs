//! ARC: science questions of grade school, the easy and the challenge set (Clark et al. 2018).

use serde_json::{Map, Value, json};

use super::{Definition, Document, HarnessConfig, Metric, Split};
use crate::record::{Record, text, texts};

pub(super) static ARC_EASY: Definition = Definition {
    name: "arc_easy",
    title: "ARC-Easy",
    headline: Metric::AccNorm,
    accepted: "ARC-Easy-Test.jsonl, or ARC-Easy/**/test*.parquet or .jsonl",
    config: CONFIG,
    adapt,
    document,
};

pub(super) static ARC_CHALLENGE: Definition = Definition {
    name: "arc_challenge",
    title: "ARC-Challenge",
    headline: Metric::AccNorm,
    accepted: "ARC-Challenge-Test.jsonl, or ARC-Challenge/**/test*.parquet or .jsonl",
    config: CONFIG,
    adapt,
    document,
};

const CONFIG: HarnessConfig = HarnessConfig {
    split: Split::Test,
    doc_to_text: "Question: {{question}}\nAnswer:",
    doc_to_target: "{{choices.label.index(answerKey)}}",
    doc_to_choice: "{{choices.text}}",
};

/// The authors nest stem and choices in `question` and list choices as objects; the data set lists their columns.
fn adapt(record: Record) -> Result<Record, String> {
    let Some(question) = record.0.get("question").and_then(Value::as_object) else {
        return Ok(record);
    };
    let question = Record(question.clone());
    let stem = question.text("stem")?;
    let listed = question.value("choices")?.as_array().map_or(&[][..], Vec::as_slice);
    let column = |name: &str| -> Result<Vec<&str>, String> {
        let values = listed.iter().map(|choice| {
            let value = choice.get(name).ok_or_else(|| format!("a choice has no field `{name}`: {choice}"))?;
            text(value, name)
        });
        values.collect()
    };
    let choices = json!({ "text": column("text")?, "label": column("label")? });
    let mut map = Map::new();
    map.insert("id".to_owned(), record.0.get("id").cloned().unwrap_or_default());
    map.insert("question".to_owned(), stem.into());
    map.insert("choices".to_owned(), choices);
    map.insert("answerKey".to_owned(), record.value("answerKey")?.clone());
    Ok(Record(map))
}

/// The right choice is where the key stands among this question's own labels, which may be letters or digits.
fn document(record: Record) -> Result<Document, String> {
    let listed = record.value("choices")?;
    let field = |name: &str| listed.get(name).ok_or_else(|| format!("field `choices.{name}` is missing"));
    let choices = texts(field("text")?, "choices.text")?;
    let labels = texts(field("label")?, "choices.label")?;
    if labels.len() != choices.len() {
        return Err(format!("{} choices but {} labels", choices.len(), labels.len()));
    }
    let key = record.text("answerKey")?;
    let gold = labels
        .iter()
        .position(|label| label == key)
        .ok_or_else(|| format!("field `answerKey` is {key:?}, which is none of the labels {}", labels.join(", ")))?;
    Ok(Document {
        contexts: vec![format!("Question: {}\nAnswer:", record.text("question")?)],
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

    const AUTHORS: &str = r#"{"id":"x","question":{"stem":"Which is hot?","choices":[{"text":"ice","label":"1"},{"text":"fire ","label":"2"},{"text":"sand","label":"3"}]},"answerKey":"2"}"#;
    const HUB: &str = r#"{"id":"x","question":"Which is hot?","choices":{"text":["ice","fire ","sand"],"label":["1","2","3"]},"answerKey":"2"}"#;

    #[test]
    fn both_shapes_give_the_same_document() {
        let document = document_of(&ARC_EASY, AUTHORS).unwrap();
        assert_eq!(document, document_of(&ARC_EASY, HUB).unwrap());
        assert_eq!(document.doc.to_string(), HUB);
        assert_eq!(document.context(2), "Question: Which is hot?\nAnswer:");
        assert_eq!(document.continuation(1), " fire ");
        assert_eq!((document.gold, document.choices.len()), (1, 3));
    }

    #[test]
    fn bad_records_are_refused() {
        let bad_key = AUTHORS.replace(r#""answerKey":"2""#, r#""answerKey":"B""#);
        assert!(document_of(&ARC_EASY, &bad_key).unwrap_err().contains("none of the labels 1, 2, 3"));
        let no_choices = r#"{"id":"x","question":{"stem":"s","choices":[]},"answerKey":"A"}"#;
        assert!(document_of(&ARC_EASY, no_choices).unwrap_err().contains("at least one text"));
        let ragged = HUB.replace(r#","3"]"#, "]");
        assert_eq!(document_of(&ARC_EASY, &ragged).unwrap_err(), "3 choices but 2 labels");
        assert!(document_of(&ARC_EASY, r#"{"id":"x","question":"q"}"#).unwrap_err().contains("`choices` is missing"));
    }
}
