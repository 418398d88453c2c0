//! The requests of all tasks together, and the way back.

use microscale_model::{Divergence, Request};

use super::{Kept, TaskAnswers};
use crate::encode::TaskRequests;

/// The distinct requests of all tasks, longest first.
pub(super) struct Pool {
    pub(super) requests: Vec<Request>,
    /// For each choice of each document of each task, in that order, its index in `requests`.
    places: Vec<usize>,
}

impl Pool {
    pub(super) fn of(tasks: &[TaskRequests]) -> Self {
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
    pub(super) fn sort_back(&self, tasks: &[TaskRequests], known: &[Option<Kept>]) -> Vec<TaskAnswers> {
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
