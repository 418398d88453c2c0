//! Examples before each document, as the harness draws and renders them.

use crate::Error;
use crate::python_random::Random;
use crate::tasks::{Document, Split, TARGET_DELIMITER, Task};

/// Stands after each example.
const EXAMPLE_DELIMITER: &str = "\n\n";

impl Task {
    /// Puts `shots` examples out of `pool` before every document. Each document draws its own, in order, from one
    /// generator, so that a limit changes nothing for those that are kept.
    ///
    /// Where the task's own data has no test split the harness compares "no split" with "no split", takes the pool for
    /// the scored documents, draws one example more and leaves out what equals the document. That is done here too.
    ///
    /// # Errors
    /// The pool has too few documents.
    pub fn add_shots(&mut self, pool: &[Document], shots: usize, seed: u32) -> Result<(), Error> {
        if shots == 0 {
            return Ok(());
        }
        let excludes = self.definition.config.split == Split::Validation;
        let drawn = shots + usize::from(excludes);
        let few = |have: usize| Error::File {
            file: format!("examples of {}", self.name),
            reason: format!("{have} documents to draw from, {drawn} are needed; lower --num-fewshot"),
        };
        if pool.len() < drawn {
            return Err(few(pool.len()));
        }
        let mut random = Random::new(seed);
        for document in &mut self.documents {
            let mut examples: Vec<usize> = random.sample(pool.len(), drawn);
            if excludes {
                examples.retain(|&i| pool[i].doc != document.doc);
                examples.truncate(shots);
            }
            if examples.len() < shots {
                let others: Vec<usize> = (0..pool.len()).filter(|&i| pool[i].doc != document.doc).collect();
                if others.len() < shots {
                    return Err(few(others.len()));
                }
                examples = random.sample(others.len(), shots).into_iter().map(|i| others[i]).collect();
            }
            let before: String = examples.into_iter().map(|i| example(&pool[i])).collect();
            for context in &mut document.contexts {
                context.insert_str(0, &before);
            }
        }
        self.shots = shots;
        Ok(())
    }
}

/// A document with its answer. One without an answer is its context alone.
fn example(document: &Document) -> String {
    let (context, answer) = (document.context(document.gold), &document.choices[document.gold]);
    // Where each choice has a context of its own, the answer is a text; an empty one counts as none.
    if document.contexts.len() > 1 && answer.is_empty() {
        return context.to_owned();
    }
    format!("{context}{TARGET_DELIMITER}{answer}{EXAMPLE_DELIMITER}")
}
