//! Puts the requests of all tasks to a scorer, all rows together, and sorts its answers back to documents.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use microscale_model::{Divergence, Outcome, Request, Scorer};

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

/// A score as it is kept between runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// What the request scored.
    pub answer: Answer,
    /// How the row differs from the first one there; none in the first row, and where it was not asked for.
    pub divergence: Option<Divergence>,
}

/// Where scores are kept between runs.
pub trait Archive {
    /// What is known of `requests` under `row`, in their order.
    ///
    /// # Errors
    /// What is kept cannot be read.
    fn recall(&mut self, row: usize, requests: &[Request]) -> Result<Vec<Option<Kept>>, Error>;

    /// Keeps a new score. It may be written later, in company.
    ///
    /// # Errors
    /// It cannot be written.
    fn keep(&mut self, row: usize, request: &Request, kept: &Kept) -> Result<(), Error>;
}

/// The answers of one row to one task, by document.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskAnswers {
    /// Name of the task.
    pub task: String,
    /// For each document one answer per choice; `None` where the run stopped before all its choices were scored.
    pub documents: Vec<Option<Vec<Answer>>>,
    /// How the row differs from the first, over all tokens scored; empty in the first row.
    pub divergence: Divergence,
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
    /// How much of it was done now.
    pub counts: Counts,
}

/// Where a run's scores come from; requests times rows, exact duplicates of requests once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Scored now.
    pub scored: usize,
    /// Known from the archive.
    pub reused: usize,
    /// Of the first row's known ones, how many were computed again since another row's divergence needed them.
    pub repeated: usize,
    /// Input tokens of what was computed now.
    pub input_tokens: usize,
    /// How many of these were not computed, since another request begins with them.
    pub shared_tokens: usize,
}

/// How far a run is, over what the archive did not have. Exact duplicates of requests count once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Requests scored, over all rows.
    pub requests_done: usize,
    /// Requests to score, over all rows.
    pub requests_total: usize,
    /// Tokens of the requests scored.
    pub tokens_done: usize,
    /// Tokens of all requests.
    pub tokens_total: usize,
}

/// What to score, and how.
pub struct Run<'a> {
    /// Index [`Scorer::rows`]; the others are compared with the first.
    pub rows: &'a [usize],
    /// The requests, by task.
    pub tasks: &'a [TaskRequests],
    /// Whether the other rows' divergence from the first is wanted.
    pub divergence: bool,
    /// What is known already, and where new scores go.
    pub archive: Option<&'a mut dyn Archive>,
}

/// Scores the requests of all tasks under each of `rows`, which index [`Scorer::rows`], and their divergence from the
/// first.
///
/// # Errors
/// As [`Run::score`].
pub fn run(
    scorer: &mut dyn Scorer,
    rows: &[usize],
    tasks: &[TaskRequests],
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Answers, Error> {
    Run { rows, tasks, divergence: true, archive: None }.score(scorer, progress)
}

impl Run<'_> {
    /// Does it.
    ///
    /// The requests of all tasks are pooled, longest first; exact duplicates are scored once, and what the archive
    /// knows not at all. `progress` hears of every scored request, and of the start; when it answers `Break` the run
    /// ends, and what was scored by then is returned.
    ///
    /// # Errors
    /// The scorer fails, answers for a row or request it was not asked for, or ends without all answers; the archive
    /// fails, or disagrees with the scorer.
    pub fn score(
        mut self,
        scorer: &mut dyn Scorer,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Answers, Error> {
        let pool = Pool::of(self.tasks);
        if let Some(&row) = self.rows.iter().find(|&&row| row >= scorer.rows().len()) {
            return Err(Error::Scorer { row: row.to_string(), reason: "does not exist".to_owned() });
        }
        let mut board = Board { known: Vec::new(), counts: Counts::default(), now: Progress::default() };
        for &row in self.rows {
            let known = match &mut self.archive {
                Some(archive) => archive.recall(row, &pool.requests)?,
                None => vec![None; pool.requests.len()],
            };
            board.counts.reused += known.iter().flatten().count();
            board.known.push(known);
        }
        let work = self.work(&mut board, &pool.requests);
        let mut flow = progress(board.now);
        for (positions, requests) in &work {
            if flow.is_continue() {
                flow = self.score_some(scorer, (positions, requests, &pool.requests), &mut board, progress)?;
            }
        }
        let missing = |known: &[Option<Kept>]| known.iter().any(Option::is_none);
        let complete = !board.known.iter().any(|known| missing(known));
        let rows = self.rows.iter().zip(&board.known);
        let rows = rows.map(|(&row, known)| RowAnswers { row, tasks: pool.sort_back(self.tasks, known) }).collect();
        Ok(Answers { rows, complete, counts: board.counts })
    }

    /// Which requests are to be scored under which rows (positions in `rows`): those that lack the same rows together.
    fn work(&self, board: &mut Board, requests: &[Request]) -> BTreeMap<Vec<usize>, Vec<usize>> {
        let mut work: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
        for (i, request) in requests.iter().enumerate() {
            let lacks = |&position: &usize| match &board.known[position][i] {
                None => true,
                Some(kept) => self.divergence && position > 0 && kept.divergence.is_none(),
            };
            let mut positions: Vec<usize> = (0..self.rows.len()).filter(lacks).collect();
            if self.divergence && positions.first().is_some_and(|&first| first > 0) {
                positions.insert(0, 0);
            }
            board.now.requests_total += positions.len();
            board.now.tokens_total += positions.len() * request.tokens.len();
            if !positions.is_empty() {
                work.entry(positions).or_default().push(i);
            }
        }
        work
    }

    /// Scores some of the requests under some of the rows; `Break` where `progress` asked to stop.
    fn score_some(
        &mut self,
        scorer: &mut dyn Scorer,
        (positions, indices, pool): (&[usize], &[usize], &[Request]),
        board: &mut Board,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        let rows: Vec<usize> = positions.iter().map(|&position| self.rows[position]).collect();
        let requests: Vec<Request> = indices.iter().map(|&i| pool[i].clone()).collect();
        let labels = scorer.rows().to_vec();
        let contract = |row: usize, reason: String| {
            let row = labels.get(row).cloned().unwrap_or_else(|| row.to_string());
            Error::Scorer { row, reason }
        };
        let mut answered = vec![vec![false; requests.len()]; rows.len()];
        let mut flow = ControlFlow::Continue(());
        let mut fault = None;
        scorer.score(&rows, &requests, &mut |outcome| {
            let (row, request) = (outcome.row, outcome.request);
            let place = rows.iter().position(|&asked| asked == row);
            let slot = place.and_then(|place| answered[place].get_mut(request)).filter(|slot| !**slot);
            let (Some(slot), Some(place)) = (slot, place) else {
                fault = Some(contract(row, format!("answered twice or unasked: row {row}, request {request}")));
                return ControlFlow::Break(());
            };
            *slot = true;
            if let Err(error) = self.take(board, (positions[place], indices[request]), &requests[request], outcome) {
                fault = Some(error);
                return ControlFlow::Break(());
            }
            if flow.is_continue() {
                flow = progress(board.now);
            }
            flow
        })?;
        if let Some(error) = fault {
            return Err(error);
        }
        for (row, answered) in rows.iter().zip(&answered) {
            let missing = answered.iter().filter(|answered| !**answered).count();
            if flow.is_continue() && missing > 0 {
                let reason = format!("left {missing} of {} requests unanswered", requests.len());
                return Err(contract(*row, reason));
            }
        }
        Ok(flow)
    }

    /// Writes an outcome down.
    fn take(
        &mut self,
        board: &mut Board,
        (position, index): (usize, usize),
        request: &Request,
        outcome: Outcome,
    ) -> Result<(), Error> {
        let Board { known, counts, now } = board;
        now.requests_done += 1;
        now.tokens_done += request.tokens.len();
        counts.input_tokens += request.input().len();
        counts.shared_tokens += outcome.reused;
        let answer = Answer { log_likelihood: outcome.log_likelihood, greedy: outcome.greedy };
        let slot = &mut known[position][index];
        if let Some(kept) = slot {
            let same = kept.answer.log_likelihood.to_bits() == answer.log_likelihood.to_bits();
            if !same || kept.answer.greedy != answer.greedy {
                let reason = format!(
                    "scored a request {} and has it as {} in the store; delete that run and score it again",
                    answer.log_likelihood, kept.answer.log_likelihood
                );
                return Err(Error::Scorer { row: self.rows[position].to_string(), reason });
            }
            if position == 0 || !self.divergence {
                counts.repeated += 1;
                return Ok(());
            }
            counts.reused -= 1; // its divergence was missing
        }
        counts.scored += 1;
        let kept = Kept { answer, divergence: outcome.divergence };
        if let Some(archive) = &mut self.archive {
            archive.keep(self.rows[position], request, &kept)?;
        }
        *slot = Some(kept);
        Ok(())
    }
}

/// What is known, by position of the row and index of the request.
struct Board {
    known: Vec<Vec<Option<Kept>>>,
    counts: Counts,
    now: Progress,
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

    /// Answers by task and document, from scores by pooled request.
    fn sort_back(&self, tasks: &[TaskRequests], known: &[Option<Kept>]) -> Vec<TaskAnswers> {
        let mut places = self.places.iter();
        let mut sorted = Vec::with_capacity(tasks.len());
        for task in tasks {
            let mut answers =
                TaskAnswers { task: task.task.clone(), documents: vec![], divergence: Divergence::default() };
            for choices in &task.documents {
                let own: Vec<Option<&Kept>> =
                    places.by_ref().take(choices.len()).map(|&place| known[place].as_ref()).collect();
                let own = own.into_iter().collect::<Option<Vec<&Kept>>>();
                for divergence in own.iter().flatten().filter_map(|kept| kept.divergence.as_ref()) {
                    answers.divergence.kl.extend_from_slice(&divergence.kl);
                    answers.divergence.agreed += divergence.agreed;
                }
                answers.documents.push(own.map(|own| own.iter().map(|kept| kept.answer).collect()));
            }
            sorted.push(answers);
        }
        sorted
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
                    let length = requests[request].tokens.len();
                    let divergence = (row != rows[0]).then(|| Divergence { kl: vec![row as f32], agreed: length });
                    let greedy = length.is_multiple_of(2);
                    if sink(Outcome { row, request, log_likelihood, greedy, divergence, reused: 1 }).is_break() {
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
        let last = Progress { requests_done: 10, requests_total: 10, tokens_done: 34, tokens_total: 34 };
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
            let find =
                |request| self.0.iter().find(|(r, q, _)| *r == row && q == request).map(|(.., kept)| kept.clone());
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
}
