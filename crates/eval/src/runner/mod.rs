//! Puts the requests of all tasks to a scorer, all rows together, and sorts its answers back to documents.

mod pool;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use microscale_model::{Divergence, Event, Outcome, Request, Scorer};

use self::pool::Pool;

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
    /// Tokens' worth of work on requests that are not scored yet.
    pub tokens_underway: usize,
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
    /// knows not at all. `progress` hears of every scored request, of work between, and of the start; when it answers
    /// `Break` the run ends, and what was scored by then is returned.
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
        scorer.score(&rows, &requests, &mut |event| {
            let outcome = match event {
                Event::Scored(outcome) => outcome,
                Event::Underway { tokens } => {
                    board.now.tokens_underway = tokens;
                    flow = progress(board.now);
                    return flow;
                }
            };
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
        now.tokens_underway = now.tokens_underway.saturating_sub(request.tokens.len());
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
