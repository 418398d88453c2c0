//! Where task data is looked for, and what is said when it is missing, ambiguous or malformed.

use microscale_eval::{Catalog, Files};

const PIQA: &str = r#"{"goal":"g","sol1":"a","sol2":"b"}"#;
const PIQA_LABELLED: &str = r#"{"goal":"g","sol1":"a","sol2":"b","label":1}"#;
const ARC: &str = r#"{"id":"x","question":{"stem":"s","choices":[{"text":"t","label":"A"}]},"answerKey":"A"}"#;
const HELLASWAG: &str = r#"{"activity_label":"l","ctx_a":"a","ctx_b":"b","endings":["x","y"],"label":1}"#;
const CLEAN: &str = r#"{"query":"q","choices":["x","y"],"gold":1}"#;
const WINOGRANDE: &str = r#"{"qID":"1","sentence":"a _ b","option1":"c","option2":"d","answer":"1"}"#;

fn catalog(files: &[(&str, &str)]) -> Catalog {
    let files = files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec()));
    Catalog::discover(Files::from_memory("here", files)).unwrap()
}

fn failure(files: &[(&str, &str)], task: &str) -> String {
    catalog(files).load(task).unwrap_err().to_string()
}

#[test]
fn the_authors_files_are_found_by_name() {
    let catalog = catalog(&[
        ("z/dev.jsonl", WINOGRANDE),
        ("piqa/valid.jsonl", PIQA),
        ("piqa/valid-labels.lst", "1\n"),
        ("piqa/train.jsonl", PIQA),
        ("arc/ARC-Easy-Test.jsonl", ARC),
        ("arc/ARC-Easy-Dev.jsonl", ARC),
        ("arc/ARC-Challenge-Test.jsonl", ARC),
        ("hellaswag_val.jsonl", HELLASWAG),
        ("notes.txt", ""),
        ("more/mine.jsonl", CLEAN),
        ("more/about.jsonl", "{\"query\":1}"),
    ]);
    assert_eq!(catalog.names(), ["piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "mine"]);
    for name in catalog.names() {
        let task = catalog.load(&name).unwrap();
        assert_eq!((task.documents.len(), task.name == name), (1, true));
    }
    let piqa = catalog.load("piqa").unwrap();
    assert_eq!(piqa.sources, ["here/piqa/valid.jsonl", "here/piqa/valid-labels.lst"]);
    assert_eq!((piqa.documents[0].gold, piqa.sha256.len()), (1, 64));
}

#[test]
fn hugging_face_folders_are_found_by_task_and_split() {
    for (path, task, text) in [
        ("PIQA/plain_text/validation-00000-of-00001.jsonl", "piqa", PIQA_LABELLED),
        ("datasets--baber--piqa/snapshots/0a/data/validation.jsonl", "piqa", PIQA_LABELLED),
        ("ai2_arc/ARC-Easy/test-00000-of-00001.jsonl", "arc_easy", ARC),
        ("arc_challenge/test.jsonl", "arc_challenge", ARC),
        ("hellaswag/data/validation.jsonl", "hellaswag", HELLASWAG),
        ("hellaswag/validation.jsonl", "hellaswag", CLEAN),
        ("winogrande/winogrande_xl/validation.jsonl", "winogrande", WINOGRANDE),
        ("winogrande_xl/validation.jsonl", "winogrande", WINOGRANDE),
    ] {
        let other_splits = [
            (path, text),
            ("piqa/test.jsonl", "x"),
            ("arc_easy/validation.jsonl", "x"),
            ("winogrande/winogrande_s/validation.jsonl", "x"),
        ];
        let catalog = catalog(&other_splits);
        assert_eq!(catalog.names(), [task], "{path}");
        assert_eq!(catalog.load(task).unwrap().documents.len(), 1);
    }
}

#[test]
fn parts_of_one_split_belong_together() {
    let first = ("piqa/validation-00000-of-00002.jsonl", PIQA_LABELLED);
    let second = ("piqa/validation-00001-of-00002.jsonl", PIQA_LABELLED);
    assert_eq!(catalog(&[first, second]).load("piqa").unwrap().documents.len(), 2);
    assert_eq!(
        failure(&[second], "piqa"),
        "here/piqa/validation-00001-of-00002.jsonl: 1 of 2 parts are here; bring the others"
    );
}

#[test]
fn two_candidates_are_an_error_that_names_both() {
    let message = failure(&[("a/hellaswag_val.jsonl", HELLASWAG), ("b/hellaswag/validation.parquet", "")], "hellaswag");
    assert!(message.contains("here/a/hellaswag_val.jsonl and here/b/hellaswag/validation.parquet"), "{message}");
    assert!(failure(&[("a/m.jsonl", CLEAN), ("b/m.jsonl", CLEAN)], "m").contains("more than one data set"));
}

#[test]
fn missing_data_names_what_would_be_taken() {
    let message = failure(&[("a/readme.md", "")], "piqa");
    assert!(
        message.starts_with("no data for task `piqa` in here: expected valid.jsonl with valid-labels.lst"),
        "{message}"
    );
    assert!(message.contains("piqa/**/validation*.parquet"));
    assert!(failure(&[], "mine").contains("mine.jsonl with the fields `query`, `choices` and `gold`"));
    assert!(failure(&[("a/mine.jsonl", "{}")], "mine").contains("here/a/mine.jsonl lacks those fields"));
    assert!(failure(&[("dev.jsonl", CLEAN)], "winogrande").contains("here/dev.jsonl lacks those fields"));
    assert_eq!(catalog(&[("dev.jsonl", CLEAN)]).names(), ["dev"]);
}

#[test]
fn bad_content_is_named_with_its_line() {
    assert_eq!(failure(&[("dev.jsonl", "")], "winogrande"), "here/dev.jsonl:1: the file holds no record");
    assert!(
        failure(&[("dev.jsonl", "oops\n")], "winogrande").starts_with("here/dev.jsonl:1: expected one JSON object")
    );
    let second = format!("{CLEAN}\n\n{{\"query\":\"q\",\"choices\":[\"x\"],\"gold\":5}}\n");
    assert_eq!(
        failure(&[("mine.jsonl", &second)], "mine"),
        "here/mine.jsonl:3: field `gold` must be the index of the right choice, 0 to 0; found 5"
    );
    assert!(failure(&[("valid.jsonl", PIQA)], "piqa").contains("put valid-labels.lst beside it"));
    assert_eq!(
        failure(&[("valid.jsonl", PIQA), ("valid-labels.lst", "0\n1\n")], "piqa"),
        "here/valid-labels.lst: 2 labels for the 1 records of here/valid.jsonl"
    );
    assert_eq!(
        failure(&[("valid.jsonl", PIQA), ("valid-labels.lst", "2\n")], "piqa"),
        "here/valid-labels.lst:1: a label must be 0 or 1; found \"2\""
    );
    assert!(failure(&[("piqa/validation.parquet", "PAR1nonsense")], "piqa").contains("not a usable Parquet file"));
}

#[test]
fn a_custom_task_cannot_pose_as_a_built_in_one() {
    assert!(failure(&[("winogrande.jsonl", CLEAN)], "winogrande").contains("rename it"));
}
