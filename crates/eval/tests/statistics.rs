//! Statistics against scipy and statsmodels, and against what they promise: how often they err.

use std::collections::HashMap;

use microscale_eval::python_random::Random;
use microscale_eval::statistics::{Comparison, Conclusion, Equivalence, Flips, bootstrap_interval, resampled_interval};
use serde_json::Value;

fn flips(documents: usize, gained: usize, lost: usize) -> Flips {
    Flips { both_right: documents - gained - lost, both_wrong: 0, gained, lost }
}

#[test]
fn scipy_and_statsmodels_agree() {
    let golden: Value = serde_json::from_str(include_str!("fixtures/statistics/statistics.json")).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let count = |v: &Value| v.as_u64().unwrap() as usize;
        let tasks = case["tasks"].as_array().unwrap().iter();
        let tasks: Vec<Flips> = tasks.map(|t| flips(count(&t[0]), count(&t[1]), count(&t[2]))).collect();
        let margin = case["margin"].as_f64().unwrap();
        let found = Comparison::of(&tasks, &[], margin, golden["seed"].as_u64().unwrap() as u32);
        let near = |found: f64, key: &Value, what: &str| {
            let expected = key.as_f64().unwrap();
            assert!((found - expected).abs() < 1e-9, "{what} of {tasks:?}: {found} is not {expected}");
        };
        near(found.p, &case["mcnemar"], "McNemar's p");
        near(found.equivalence.t, &case["t"], "p of the t-tests");
        near(found.equivalence.score, &case["score"], "p of the score tests");
        near(found.interval[0], &case["interval"][0], "lower end");
        near(found.interval[1], &case["interval"][1], "upper end");
        if let Conclusion::Open { documents } = found.conclusion {
            let expected = case["needed"].as_f64().unwrap();
            assert!((documents.unwrap() as f64 - expected).abs() <= 1.0, "{documents:?} is not {expected}");
        }
    }
}

#[test]
fn lost_documents_are_worse_and_exchanged_ones_are_not() {
    let conclusion = |gained, lost| Comparison::of(&[flips(2000, gained, lost)], &[], 0.01, 1).conclusion;
    assert_eq!(conclusion(20, 60), Conclusion::Worse);
    assert_eq!(conclusion(60, 20), Conclusion::Better);
    assert_eq!(conclusion(20, 20), Conclusion::Equivalent);
    assert!(matches!(conclusion(60, 80), Conclusion::Open { documents: Some(2001..) }));
}

const RUNS: usize = 20_000;

/// Flips of `documents` documents that are gained and lost with these probabilities, [`RUNS`] times, counted.
fn simulated(documents: usize, [gained, lost]: [f64; 2], seed: u32) -> HashMap<(usize, usize), usize> {
    let mut random = Random::new(seed);
    let mut counts = HashMap::new();
    for _ in 0..RUNS {
        let (mut up, mut down) = (0, 0);
        for _ in 0..documents {
            let x = random.random();
            up += usize::from(x < gained);
            down += usize::from(x > 1.0 - lost);
        }
        *counts.entry((up, down)).or_default() += 1;
    }
    counts
}

fn share(counts: &HashMap<(usize, usize), usize>, holds: impl Fn(usize, usize) -> bool) -> f64 {
    let number: usize = counts.iter().filter(|((up, down), _)| holds(*up, *down)).map(|(_, n)| n).sum();
    number as f64 / RUNS as f64
}

/// False alarms stay below 5.5 % and intervals cover as often as they say.
#[test]
fn how_often_the_tests_err() {
    for (documents, probabilities) in [(2000, [0.02, 0.02]), (1200, [0.05, 0.05]), (500, [0.02, 0.02])] {
        let counts = simulated(documents, probabilities, 5);
        let alarms = share(&counts, |up, down| flips(documents, up, down).p() < 0.05);
        assert!(alarms <= 0.055, "McNemar, {documents} documents: {alarms}");
        let interval = |up, down| resampled_interval(&[flips(documents, up, down)], (up * 1009 + down) as u32, 2000);
        let outside = share(&counts, |up, down| interval(up, down)[0] > 0.0 || interval(up, down)[1] < 0.0);
        assert!((0.035..=0.055).contains(&outside), "interval, {documents} documents: {outside}");
    }
    for (documents, [gained, lost]) in [(2000, [0.01, 0.03]), (1838, [0.02, 0.03])] {
        let interval = |up, down| resampled_interval(&[flips(documents, up, down)], (up * 1009 + down) as u32, 2000);
        let truth = gained - lost;
        let counts = simulated(documents, [gained, lost], 6);
        let covered = share(&counts, |up, down| (interval(up, down)[0]..=interval(up, down)[1]).contains(&truth));
        assert!((0.935..=0.965).contains(&covered), "{documents} documents: {covered}");
    }
    // At the margin a verdict of equivalence is wrong; also where all flips go one way.
    for (documents, probabilities) in
        [(2000, [0.01, 0.02]), (2000, [0.015, 0.005]), (2000, [0.0, 0.01]), (320, [0.0, 0.01])]
    {
        let counts = simulated(documents, probabilities, 7);
        let alarms = share(&counts, |up, down| Equivalence::test(&[flips(documents, up, down)], 0.01).p() < 0.05);
        assert!(alarms <= 0.055, "equivalence, {documents} documents, {probabilities:?}: {alarms}");
    }
}

#[test]
fn the_interval_of_an_average_covers_it() {
    let tasks = [(320, [0.01, 0.02]), (640, [0.03, 0.03]), (100, [0.02, 0.0])];
    let truth = tasks.iter().map(|(_, [gained, lost])| gained - lost).sum::<f64>() / 3.0;
    let mut random = Random::new(8);
    let runs = 2000;
    let covered = (0..runs).filter(|&seed| {
        let flips = tasks.map(|(documents, [gained, lost])| {
            let draws: Vec<f64> = (0..documents).map(|_| random.random()).collect();
            let up = draws.iter().filter(|&&x| x < gained).count();
            flips(documents, up, draws.iter().filter(|&&x| x > 1.0 - lost).count())
        });
        let [low, high] = resampled_interval(&flips, seed, 1000);
        (low..=high).contains(&truth)
    });
    let share = covered.count() as f64 / f64::from(runs);
    assert!((0.925..=0.975).contains(&share), "{share}");
}

#[test]
fn a_seed_gives_one_interval() {
    let tasks = [flips(300, 9, 14), flips(200, 2, 7)];
    assert_eq!(bootstrap_interval(&tasks, 3), bootstrap_interval(&tasks, 3));
    assert_ne!(bootstrap_interval(&tasks, 3), bootstrap_interval(&tasks, 4));
    assert!(bootstrap_interval(&[], 3)[0].is_nan());
}
