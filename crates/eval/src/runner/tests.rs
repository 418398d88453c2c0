//! With a scorer that answers by a formula.

use std::ops::ControlFlow;

use microscale_model::{Divergence, Event, Outcome, Request, Scorer};

use super::*;
use crate::Error;
use crate::encode::TaskRequests;

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
        sink: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<(), microscale_model::Error> {
        for &row in rows {
            self.asked.push((row, requests.to_vec()));
            let mut order: Vec<usize> = (0..requests.len()).collect();
            if self.backwards {
                order.reverse();
            }
            for request in order.into_iter().skip(usize::from(self.forget)) {
                let log_likelihood = formula(row, &requests[request]);
                let length = requests[request].tokens.len();
                let divergence = (row != rows[0]).then(|| Divergence { kl: vec![row as f32], agreed: length });
                let greedy = length.is_multiple_of(2);
                let outcome = Outcome { row, request, log_likelihood, greedy, divergence, reused: 1 };
                if sink(Event::Scored(outcome)).is_break() {
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
    let last =
        Progress { requests_done: 10, requests_total: 10, tokens_done: 34, tokens_underway: 0, tokens_total: 34 };
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

/// Keeps everything, by row and request.
#[derive(Default)]
struct Memory(Vec<(usize, Request, Kept)>);

impl Archive for Memory {
    fn recall(&mut self, row: usize, requests: &[Request]) -> Result<Vec<Option<Kept>>, Error> {
        let find = |request| self.0.iter().find(|(r, q, _)| *r == row && q == request).map(|(.., kept)| kept.clone());
        Ok(requests.iter().map(find).collect())
    }

    fn keep(&mut self, row: usize, request: &Request, kept: &Kept) -> Result<(), Error> {
        self.0.retain(|(r, q, _)| !(*r == row && q == request));
        self.0.push((row, request.clone(), kept.clone()));
        Ok(())
    }
}

#[test]
fn an_interrupted_run_is_taken_up_where_it_ended() {
    let tasks = tasks();
    let undisturbed = run(&mut Fake::new(false), &[0, 1], &tasks, &mut go_on).unwrap();
    for stop in 0..10 {
        let mut memory = Memory::default();
        let mut score = |rows: &[usize], divergence, stop: usize| {
            let mut progress = |now: Progress| {
                if now.requests_done == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let run = Run { rows, tasks: &tasks, divergence, archive: Some(&mut memory) };
            run.score(&mut Fake::new(stop.is_multiple_of(2)), &mut progress).unwrap()
        };
        let first = score(&[0, 1], true, stop);
        assert!(!first.complete && first.counts.scored == stop, "{:?}", first.counts);
        let second = score(&[0, 1], true, 99);
        assert_eq!(second.rows, undisturbed.rows);
        assert_eq!(second.counts.scored + stop, 10);
        assert_eq!(second.counts.reused, stop);
        let third = score(&[0, 1], true, 99);
        assert_eq!((third.rows, third.counts.scored), (second.rows, 0));
    }
}

#[test]
fn a_known_first_row_is_computed_again_for_divergences_only() {
    let tasks = tasks();
    let mut memory = Memory::default();
    let mut score = |rows: &[usize], divergence| {
        let run = Run { rows, tasks: &tasks, divergence, archive: Some(&mut memory) };
        run.score(&mut Fake::new(false), &mut go_on).unwrap().counts
    };
    let counts = |c: Counts| (c.scored, c.reused, c.repeated);
    assert_eq!(counts(score(&[0], true)), (5, 0, 0));
    assert_eq!(counts(score(&[0, 1], false)), (5, 5, 0));
    assert_eq!(counts(score(&[0, 1], true)), (5, 5, 5));
    assert_eq!(counts(score(&[0, 1], true)), (0, 10, 0));
    memory.0[2].2.answer.log_likelihood += 1.0;
    memory.0.retain(|(row, ..)| *row == 0);
    let run = Run { rows: &[0, 1], tasks: &tasks, divergence: true, archive: Some(&mut memory) };
    let error = run.score(&mut Fake::new(false), &mut go_on).unwrap_err().to_string();
    assert!(error.contains("delete that run"), "{error}");
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
