//! What is asked: a task is data plus one function from a record to a [`Document`].
//!
//! Prompts, choices and gold are those of EleutherAI's lm-evaluation-harness, task versions 1.0, zero-shot.

mod arc;
mod custom;
mod hellaswag;
mod piqa;
mod winogrande;

use serde_json::Value;

pub(crate) use custom::CUSTOM;

use crate::metrics::{TaskScore, Verdict};
use crate::record::Record;
use crate::runner::Answer;

/// Stands between a context and its continuation.
pub(crate) const TARGET_DELIMITER: &str = " ";

/// The version of all task definitions, as the harness counts.
pub const TASK_VERSION: f64 = 1.0;

/// A metric that judges one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The choice of the highest log-likelihood is right.
    Acc,
    /// The choice of the highest log-likelihood per character is right.
    AccNorm,
}

impl Metric {
    /// Its name in lm-eval.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Acc => "acc",
            Metric::AccNorm => "acc_norm",
        }
    }
}

/// One question with its choices, ready to be asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// What precedes the choices: one text for all of them, or one for each.
    pub contexts: Vec<String>,
    /// The choices as texts, without delimiter and untrimmed; `acc_norm` counts their characters. At least one.
    pub choices: Vec<String>,
    /// Index of the right choice.
    pub gold: usize,
    /// The target as lm-eval logs it.
    pub target: String,
    /// The record as lm-eval logs it: the columns of the Hugging Face data set, in their order.
    pub doc: Value,
}

impl Document {
    /// The context of choice `choice`.
    pub fn context(&self, choice: usize) -> &str {
        if self.contexts.len() == 1 { &self.contexts[0] } else { &self.contexts[choice] }
    }

    /// The continuation that is scored for choice `choice`, with the delimiter space.
    pub fn continuation(&self, choice: usize) -> String {
        format!("{TARGET_DELIMITER}{}", self.choices[choice])
    }
}

/// What a task is, apart from its data.
#[derive(Debug)]
pub struct Definition {
    /// Its name in lm-eval.
    pub name: &'static str,
    /// Its name in the published table.
    pub title: &'static str,
    /// The metric that enters the average: `acc_norm` where the task has it.
    pub headline: Metric,
    /// The files it is read from, for messages.
    pub accepted: &'static str,
    /// What lm-eval's configuration of the task says.
    pub config: HarnessConfig,
    /// Brings a record of the authors' release into the columns of the Hugging Face data set; leaves others alone.
    pub(crate) adapt: fn(Record) -> Result<Record, String>,
    /// Makes a document of an adapted record.
    pub(crate) document: fn(Record) -> Result<Document, String>,
}

impl Definition {
    /// The metrics it reports: `acc`, and `acc_norm` where lengths can differ.
    pub fn metrics(&self) -> &'static [Metric] {
        match self.headline {
            Metric::Acc => &[Metric::Acc],
            Metric::AccNorm => &[Metric::Acc, Metric::AccNorm],
        }
    }
}

/// Equal where the names are: definitions are constants.
impl PartialEq for Definition {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// The part of lm-eval's task configuration that says what is scored and how it is rendered.
#[derive(Clone, Copy, Debug)]
pub struct HarnessConfig {
    /// The scored split.
    pub split: Split,
    /// The context as a template over the columns.
    pub doc_to_text: &'static str,
    /// The target.
    pub doc_to_target: &'static str,
    /// The choices.
    pub doc_to_choice: &'static str,
}

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The validation split, scored where the test split is not public.
    Validation,
    /// The test split.
    Test,
}

impl Split {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Split::Validation => "validation",
            Split::Test => "test",
        }
    }
}

/// The five tasks of the published table, in its order.
pub static BUILT_IN: [&Definition; 5] =
    [&piqa::PIQA, &arc::ARC_EASY, &arc::ARC_CHALLENGE, &hellaswag::HELLASWAG, &winogrande::WINOGRANDE];

/// A task with its documents.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its name: that of the definition, or the file stem of a custom task.
    pub name: String,
    /// What it is.
    pub definition: &'static Definition,
    /// The documents to score, in the order of the data set.
    pub documents: Vec<Document>,
    /// Number of documents of the data set, before any limit.
    pub available: usize,
    /// The files the documents came from.
    pub sources: Vec<String>,
    /// SHA-256 of those files, one after the other, in hexadecimal.
    pub sha256: String,
    /// Examples before each document.
    pub shots: usize,
}

impl Task {
    /// Keeps the first documents only, as lm-eval's `--limit` does: `limit` documents, or, below 1, that fraction of
    /// them, rounded up.
    pub fn limit(&mut self, limit: f64) {
        let count = if limit < 1.0 { (limit * self.documents.len() as f64).ceil() } else { limit.floor() };
        self.documents.truncate(count.max(0.0) as usize);
    }

    /// Number of requests it makes: one for each choice of each document.
    pub fn request_count(&self) -> usize {
        self.documents.iter().map(|document| document.choices.len()).sum()
    }

    /// The verdicts on its documents, from one answer per choice; `None` where a document has none.
    pub fn verdicts(&self, answers: &[Option<Vec<Answer>>]) -> Vec<Option<Verdict>> {
        let judge = |(document, answers): (&Document, &Option<Vec<Answer>>)| {
            answers.as_ref().map(|answers| Verdict::of(document, answers))
        };
        self.documents.iter().zip(answers).map(judge).collect()
    }

    /// Its scores over the documents that have all their answers.
    pub fn score(&self, answers: &[Option<Vec<Answer>>]) -> TaskScore {
        let verdicts: Vec<Verdict> = self.verdicts(answers).into_iter().flatten().collect();
        TaskScore::of(self.definition, &verdicts)
    }
}

/// What a table calls the task `name`: a custom one goes by its own name.
pub fn title(name: &str) -> &str {
    BUILT_IN.iter().find(|task| task.name == name).map_or(name, |task| task.title)
}

/// Leaves a record as it is.
pub(crate) fn as_it_is(record: Record) -> Result<Record, String> {
    Ok(record)
}

#[cfg(test)]
pub(crate) fn document_of(definition: &Definition, json: &str) -> Result<Document, String> {
    (definition.document)((definition.adapt)(Record(serde_json::from_str(json).unwrap()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_counts_or_takes_a_fraction() {
        let document = document_of(&CUSTOM, r#"{"query":"q","choices":["a"],"gold":0}"#).unwrap();
        let task = Task {
            name: "t".to_owned(),
            definition: &CUSTOM,
            documents: vec![document; 10],
            available: 10,
            sources: vec![],
            sha256: String::new(),
            shots: 0,
        };
        for (limit, count) in [(3.0, 3), (3.9, 3), (0.25, 3), (1.0, 1), (0.999, 10), (99.0, 10), (0.0, 0)] {
            let mut limited = task.clone();
            limited.limit(limit);
            assert_eq!(limited.documents.len(), count, "{limit}");
            assert_eq!(limited.available, 10);
        }
    }
}
