//! Runs survive: a killed one is taken up where it ended, two at once do not disturb each other, and what is kept can
//! be shown.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use microscale::eval::store::Store;
use serde_json::Value;

const TABLE: [&str; 8] =
    ["table", "--recipe", "w6a8", "--tasks", "piqa,winogrande", "--format", "json", "--batch-size=4"];

fn command(store: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microscale"));
    command.args(arguments).arg("--store").arg(store).env_remove("MICROSCALE_ISA");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Of two rows and some hundred scores.
fn short(store: &Path) -> Command {
    let mut command = command(store, &TABLE);
    command.args(["--limit", "60"]);
    command
}

/// Of four rows and so many documents of each task.
fn long(store: &Path, limit: &str) -> Command {
    let mut command = command(store, &TABLE);
    command.args(["--recipe", "w4a4", "--recipe", "int8", "--limit", limit]);
    command
}

fn table(mut command: Command) -> Value {
    serde_json::from_str(&text(&command.output().unwrap())).unwrap()
}

fn counts(table: &Value) -> [u64; 2] {
    ["scored", "reused"].map(|key| table["manifest"][key].as_u64().unwrap())
}

fn written(store: &Path) -> u64 {
    Store::open(store).unwrap().runs().unwrap().iter().map(|run| run.scores as u64).sum()
}

/// Killed at thirty moments of a run, which then goes on: the same table, nothing scored that was written before.
#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_and_ends_the_same() {
    let folder = tempfile::tempdir().unwrap();
    // Scores are written every 200 ms. A run has to last for several of them, so its length depends on the machine.
    let (limit, undisturbed, whole) = ["40", "80", "160", "320"]
        .into_iter()
        .find_map(|limit| {
            let begin = Instant::now();
            let table = table(long(&folder.path().join(format!("{limit}.sqlite")), limit));
            let whole = begin.elapsed();
            (whole > Duration::from_secs(1) || limit == "320").then_some((limit, table, whole))
        })
        .unwrap();
    let [all, none] = counts(&undisturbed);
    assert!(all > 400 && none == 0, "{all}");
    let (mut state, mut halfway) = (7u64, 0);
    for round in 0..30 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let share = (state >> 40) as f64 / f64::from(1 << 24);
        let store = folder.path().join(format!("killed-{round}.sqlite"));
        let mut child = long(&store, limit).spawn().unwrap();
        // Half of them at a moment, which may be before the first score or after the last; half of them once so many
        // scores are written, however fast the machine is just now.
        if round % 2 == 0 {
            std::thread::sleep(whole.mul_f64(share));
        } else {
            let awaited = 1 + (share * 0.7 * all as f64) as u64;
            while child.try_wait().unwrap().is_none() && !(store.exists() && written(&store) >= awaited) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        let written = written(&store);
        let resumed = table(long(&store, limit));
        assert_eq!(resumed["rows"], undisturbed["rows"], "round {round}: killed after {written} scores");
        assert_eq!(counts(&resumed), [all - written, written], "round {round}");
        halfway += usize::from(written > 0 && written < all);
    }
    assert!(halfway >= 5, "only {halfway} of 30 were killed between the first score and the last of {all}");
    // Killed again and again, it ends as well.
    let store = folder.path().join("again.sqlite");
    for part in 1..=6 {
        let mut child = long(&store, limit).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(f64::from(part) / 6.0));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(table(long(&store, limit))["rows"], undisturbed["rows"]);
    let again = table(long(&store, limit));
    assert_eq!((counts(&again), &again["rows"]), ([0, all], &undisturbed["rows"]));
}

#[test]
fn two_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("runs.sqlite");
    let both = [(); 2].map(|()| short(&store).spawn().unwrap());
    let both = both.map(|child| child.wait_with_output().unwrap());
    let [first, second] = both.map(|output| serde_json::from_str::<Value>(&text(&output)).unwrap());
    assert_eq!(first["rows"], second["rows"]);
    // Each scores what it did not find when it began.
    let all: u64 = counts(&first).iter().sum();
    assert_eq!(counts(&second).iter().sum::<u64>(), all);
    let after = table(short(&store));
    assert_eq!((counts(&after), &after["rows"]), ([0, all], &first["rows"]));
}

#[test]
fn the_baseline_is_kept_and_runs_can_be_shown() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("deep/runs.sqlite");
    let run = |arguments: &[&str]| text(&command(&store, arguments).output().unwrap());
    let base = ["--tasks", "piqa,winogrande", "--limit", "60", "--format", "json", "--columns", "delta"];
    let table = |recipe: &str| -> Value {
        serde_json::from_str(&run(&[&["table", "--recipe", recipe][..], &base].concat())).unwrap()
    };
    let [first, _] = counts(&table("bf16"));
    assert_eq!(counts(&table("w4a4")), [first, first]);
    assert_eq!(counts(&table("int8")), [first, first]);
    // Another value-blocks mode is another run; of a recipe without blocks of values it is asked for in vain.
    let listed = run(&["runs", "list"]);
    assert_eq!(listed.lines().count(), 4, "{listed}");
    let number = |recipe: &str| {
        let line = listed.lines().find(|line| line.contains(recipe)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    let shown = run(&["runs", "show", &number("w4a4")]);
    assert!(shown.contains("PIQA") && shown.contains("60 of 320") && shown.contains("average"), "{shown}");
    let compared = run(&["runs", "compare", &number("bf16"), &number("w4a4")]);
    assert!(compared.contains("WinoGrande") && compared.lines().last().unwrap().starts_with("average"), "{compared}");
    let exported: Value = serde_json::from_str(&run(&["runs", "export", &number("int8")])).unwrap();
    assert_eq!(exported["tasks"][0]["documents"].as_array().unwrap().len(), 60);
    run(&["runs", "delete", &number("int8")]);
    assert_eq!(run(&["runs", "list"]).lines().count(), 3);
    assert_eq!(counts(&table("int8")), [first, first]);
    let refused = command(&store, &["runs", "show", "99"]).output().unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && error.contains("runs list"), "{error}");
}

#[test]
fn a_file_that_is_no_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("runs.sqlite");
    std::fs::write(&file, "this is not a database, and long enough to be taken for one at first sight".repeat(20))
        .unwrap();
    let output = short(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("runs.sqlite"));
}
