//! Puts the requests of all tasks to a scorer, row by row, and sorts its answers back to documents.

use std::ops::ControlFlow;

use microscale_model::{Request, Scorer};

use crate::Error;
use crate::encode::TaskRequests;

/// The score of one choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// Summed natural-log likelihood of the continuation.
    pub log_likelihood: f64,
    /// Whether every token of it was the most likely one.
    pub greedy: bool,
}

/// The answers of one row to one task, by document.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskAnswers {
    /// Name of the task.
    pub task: String,
    /// For each document one answer per choice; `None` where the run stopped before all its choices were scored.
    pub documents: Vec<Option<Vec<Answer>>>,
}

/// The answers of one row to all tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct RowAnswers {
    /// Index of the row in [`Scorer::rows`].
    pub row: usize,
    /// In the order of the tasks given.
    pub tasks: Vec<TaskAnswers>,
}

/// What a run has given so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    /// In the order of the rows asked for.
    pub rows: Vec<RowAnswers>,
    /// Whether everything was scored.
    pub complete: bool,
}

/// How far a run is. Exact duplicates of requests count once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Position of the row at work among those asked for, from 0.
    pub row: usize,
    /// Requests scored, over all rows.
    pub requests_done: usize,
    /// Requests to score, over all rows.
    pub requests_total: usize,
    /// Tokens of the requests scored.
    pub tokens_done: usize,
    /// Tokens of all requests.
    pub tokens_total: usize,
}

/// Scores the requests of all tasks under each of `rows`, which index [`Scorer::rows`].
///
/// The requests of all tasks are pooled, longest first, so that a batch holds like lengths and memory peaks at the
/// start; exact duplicates are scored once. Rows are scored one after the other. `progress` hears of every scored
/// request, and of the start; when it answers `Break` the run ends, and what was scored by then is returned.
///
/// # Errors
/// The scorer fails, answers for a row or request it was not asked for, or ends without all answers.
pub fn run(
    scorer: &mut dyn Scorer,
    rows: &[usize],
    tasks: &[TaskRequests],
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Answers, Error> {
    let pool = Pool::of(tasks);
    let tokens: usize = pool.requests.iter().map(|request| request.tokens.len()).sum();
    let mut now = Progress {
        requests_total: pool.requests.len() * rows.len(),
        tokens_total: tokens * rows.len(),
        ..Progress::default()
    };
    let mut stopped = progress(now).is_break();
    let mut answered = Vec::with_capacity(rows.len());
    for (position, &row) in rows.iter().enumerate() {
        now.row = position;
        let mut answers = vec![None; pool.requests.len()];
        if !stopped {
            stopped = score_row(scorer, row, &pool.requests, &mut answers, &mut |request| {
                now.requests_done += 1;
                now.tokens_done += request.tokens.len();
                progress(now)
            })?
            .is_break();
        }
        answered.push(RowAnswers { row, tasks: pool.sort_back(tasks, &answers) });
    }
    Ok(Answers { rows: answered, complete: now.requests_done == now.requests_total })
}

/// Fills `answers`, one for each request; `Break` where `heard` asked to stop.
fn score_row(
    scorer: &mut dyn Scorer,
    row: usize,
    requests: &[Request],
    answers: &mut [Option<Answer>],
    heard: &mut dyn FnMut(&Request) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Error> {
    let label = scorer.rows().get(row).cloned();
    let contract = |reason: String| Error::Scorer { row: label.clone().unwrap_or_else(|| row.to_string()), reason };
    if label.is_none() {
        return Err(contract("does not exist".to_owned()));
    }
    if requests.is_empty() {
        return Ok(ControlFlow::Continue(()));
    }
    let mut flow = ControlFlow::Continue(());
    let mut fault = None;
    scorer.score(&[row], requests, &mut |outcome| {
        let slot = answers.get_mut(outcome.request).filter(|slot| outcome.row == row && slot.is_none());
        let Some(slot) = slot else {
            fault = Some(format!("answered twice or unasked: row {}, request {}", outcome.row, outcome.request));
            return ControlFlow::Break(());
        };
        *slot = Some(Answer { log_likelihood: outcome.log_likelihood, greedy: outcome.greedy });
        if flow.is_continue() {
            flow = heard(&requests[outcome.request]);
        }
        flow
    })?;
    if let Some(reason) = fault {
        return Err(contract(reason));
    }
    let missing = answers.iter().filter(|answer| answer.is_none()).count();
    if flow.is_continue() && missing > 0 {
        return Err(contract(format!("left {missing} of {} requests unanswered", requests.len())));
    }
    Ok(flow)
}

/// The distinct requests of all tasks, longest first.
struct Pool {
    requests: Vec<Request>,
    /// For each choice of each document of each task, in that order, its index in `requests`.
    places: Vec<usize>,
}

impl Pool {
    fn of(tasks: &[TaskRequests]) -> Self {
        let all: Vec<&Request> = tasks.iter().flat_map(|task| &task.documents).flatten().collect();
        let mut order: Vec<usize> = (0..all.len()).collect();
        let key = |index: &usize| {
            let request = all[*index];
            (std::cmp::Reverse(request.tokens.len()), &request.tokens, request.context)
        };
        order.sort_by(|a, b| key(a).cmp(&key(b)));
        let mut requests: Vec<Request> = Vec::new();
        let mut places = vec![0; all.len()];
        for index in order {
            // Sorted, so that equal requests stand side by side.
            if requests.last() != Some(all[index]) {
                requests.push(all[index].clone());
            }
            places[index] = requests.len() - 1;
        }
        Pool { requests, places }
    }

    /// Answers by task and document, from answers by pooled request.
    fn sort_back(&self, tasks: &[TaskRequests], answers: &[Option<Answer>]) -> Vec<TaskAnswers> {
        let mut places = self.places.iter();
        let mut document_answers = |choices: &Vec<Request>| {
            let own: Vec<Option<Answer>> = places.by_ref().take(choices.len()).map(|&place| answers[place]).collect();
            own.into_iter().collect::<Option<Vec<Answer>>>()
        };
        tasks
            .iter()
            .map(|task| TaskAnswers {
                task: task.task.clone(),
                documents: task.documents.iter().map(&mut document_answers).collect(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use microscale_model::Outcome;

    /// Scores by a formula over the tokens, in a scrambled order, and remembers what it was asked.
    struct Fake {
        rows: Vec<String>,
        asked: Vec<(usize, Vec<Request>)>,
        backwards: bool,
        forget: bool,
    }

    impl Fake {
        fn new(backwards: bool) -> Self {
            Fake { rows: vec!["bf16".to_owned(), "w4a8".to_owned()], asked: vec![], backwards, forget: false }
        }
    }

    fn formula(row: usize, request: &Request) -> f64 {
        let sum: u32 = request.tokens[request.context..].iter().sum();
        -f64::from(sum) - request.context as f64 * 0.5 - row as f64 * 100.0
    }

    impl Scorer for Fake {
        fn rows(&self) -> &[String] {
            &self.rows
        }

        fn score(
            &mut self,
            rows: &[usize],
            requests: &[Request],
            sink: &mut dyn FnMut(Outcome) -> ControlFlow<()>,
        ) -> Result<(), microscale_model::Error> {
            for &row in rows {
                self.asked.push((row, requests.to_vec()));
                let mut order: Vec<usize> = (0..requests.len()).collect();
                if self.backwards {
                    order.reverse();
                }
                for request in order.into_iter().skip(usize::from(self.forget)) {
                    let log_likelihood = formula(row, &requests[request]);
                    if sink(Outcome { row, request, log_likelihood, greedy: request % 2 == 0 }).is_break() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        }
    }

    fn request(tokens: &[u32], context: usize) -> Request {
        Request { tokens: tokens.to_vec(), context }
    }

    fn tasks() -> Vec<TaskRequests> {
        let first = vec![
            vec![request(&[1, 2, 3], 2), request(&[1, 2, 4, 5], 2)],
            vec![request(&[1, 9], 1), request(&[1, 2, 3], 2), request(&[1, 2, 3], 1)],
        ];
        let second = vec![vec![request(&[1, 2, 3], 2), request(&[7, 7, 7, 7, 7], 4)], vec![]];
        let named = |task: &str, documents| TaskRequests { task: task.to_owned(), documents, truncated: 0 };
        vec![named("a", first), named("b", second)]
    }

    fn go_on(_: Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn answers_come_back_in_place_whatever_the_order() {
        let tasks = tasks();
        let forward = run(&mut Fake::new(false), &[1, 0], &tasks, &mut go_on).unwrap();
        let backward = run(&mut Fake::new(true), &[1, 0], &tasks, &mut go_on).unwrap();
        assert_eq!(forward, backward);
        assert!(forward.complete);
        assert_eq!(forward.rows.iter().map(|row| row.row).collect::<Vec<_>>(), [1, 0]);
        for row in &forward.rows {
            for (task, answers) in tasks.iter().zip(&row.tasks) {
                assert_eq!(task.task, answers.task);
                for (requests, answers) in task.documents.iter().zip(&answers.documents) {
                    let expected: Vec<f64> = requests.iter().map(|request| formula(row.row, request)).collect();
                    let found: Vec<f64> = answers.as_ref().unwrap().iter().map(|a| a.log_likelihood).collect();
                    assert_eq!(found, expected);
                }
            }
        }
    }

    #[test]
    fn requests_are_sorted_and_duplicates_scored_once() {
        let mut fake = Fake::new(false);
        let mut steps = Vec::new();
        run(&mut fake, &[0, 1], &tasks(), &mut |progress| {
            steps.push(progress);
            ControlFlow::Continue(())
        })
        .unwrap();
        let expected = vec![
            request(&[7, 7, 7, 7, 7], 4),
            request(&[1, 2, 4, 5], 2),
            request(&[1, 2, 3], 1),
            request(&[1, 2, 3], 2),
            request(&[1, 9], 1),
        ];
        assert_eq!(fake.asked, [(0, expected.clone()), (1, expected)]);
        let last = Progress { row: 1, requests_done: 10, requests_total: 10, tokens_done: 34, tokens_total: 34 };
        assert_eq!(steps.len(), 11);
        assert_eq!(steps[0], Progress { requests_total: 10, tokens_total: 34, ..Progress::default() });
        assert_eq!(steps[10], last);
    }

    #[test]
    fn a_stop_keeps_whole_documents_only() {
        // After three requests of the second row: [7…], [1,2,4,5], [1,2,3]/1 are known, [1,2,3]/2 is not.
        let stop_at = |count: usize| {
            move |progress: Progress| {
                if progress.requests_done == count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
        };
        let answers = run(&mut Fake::new(false), &[0, 1], &tasks(), &mut stop_at(8)).unwrap();
        assert!(!answers.complete);
        assert!(answers.rows[0].tasks.iter().flat_map(|task| &task.documents).all(Option::is_some));
        assert!(answers.rows[1].tasks[0].documents.iter().all(Option::is_none));
        let answers = run(&mut Fake::new(false), &[0, 1], &tasks(), &mut stop_at(9)).unwrap();
        let known: Vec<bool> = answers.rows[1].tasks[0].documents.iter().map(Option::is_some).collect();
        assert_eq!(known, [true, false]);
        let mut fake = Fake::new(false);
        let none = run(&mut fake, &[0], &tasks(), &mut stop_at(0)).unwrap();
        assert!(fake.asked.is_empty() && none.rows[0].tasks[0].documents.iter().all(Option::is_none));
    }

    #[test]
    fn a_stop_at_the_very_end_is_complete() {
        let mut stop = |progress: Progress| {
            if progress.requests_done == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        assert!(run(&mut Fake::new(false), &[0], &tasks(), &mut stop).unwrap().complete);
    }

    #[test]
    fn a_scorer_that_breaks_its_contract_is_named() {
        let mut fake = Fake::new(false);
        fake.forget = true;
        let error = run(&mut fake, &[1], &tasks(), &mut go_on).unwrap_err();
        assert_eq!(error.to_string(), "the scorer of row `w4a8` left 1 of 5 requests unanswered");
        let error = run(&mut Fake::new(false), &[2], &tasks(), &mut go_on).unwrap_err();
        assert_eq!(error.to_string(), "the scorer of row `2` does not exist");
    }
}
