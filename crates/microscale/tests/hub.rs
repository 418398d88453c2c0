//! Downloads, against a small hub on the loopback interface.
#![cfg(feature = "download")]

#[path = "hub/server.rs"]
mod server;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use microscale::hub::{self, HubError, Progress, Settings};
use server::{Fault, Repository, Server};
use tempfile::TempDir;

const MODEL: &str = "owner/tiny-llama";

/// Notes what it is told.
#[derive(Default)]
struct Told {
    files: RefCell<Vec<(String, u64, u64)>>,
    notes: RefCell<Vec<String>>,
}

impl Progress for Told {
    fn file(&self, name: &str, done: u64, total: u64) {
        self.files.borrow_mut().push((name.to_owned(), done, total));
    }

    fn note(&self, line: &str) {
        self.notes.borrow_mut().push(line.to_owned());
    }
}

fn settings(server: &Server, cache: &TempDir) -> Settings {
    let cache = cache.path().join("hub");
    Settings { endpoint: Some(server.endpoint()), cache, token: None, offline: false, retries: 0 }
}

fn offline(settings: &Settings) -> Settings {
    Settings { offline: true, ..settings.clone() }
}

fn tiny_model() -> Repository {
    Repository::new("models/owner/tiny-llama", "main", "c0ffee")
        .file("config.json", b"{}")
        .file("tokenizer.json", b"{\"model\":{}}")
        .file("model.safetensors", &weights())
        .file("pytorch_model.bin", b"not wanted")
        .file("README.md", b"not wanted")
}

/// Long enough for several reads.
fn weights() -> Vec<u8> {
    (0..100_000u32).map(|i| (i % 251) as u8).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn fails(result: Result<PathBuf, HubError>) -> (HubError, String) {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    (error, text)
}

/// Names in the cache under which nothing but whole files may lie.
fn final_files(settings: &Settings, repository: &str) -> Vec<String> {
    let blobs = settings.cache.join(repository).join("blobs");
    let unfinished = |name: &String| name.ends_with(".part") || name.ends_with(".lock");
    names(&blobs).into_iter().filter(|name| !unfinished(name)).collect()
}

#[test]
fn a_model_in_one_file() {
    let (server, cache, told) = (Server::start([tiny_model()]), TempDir::new().unwrap(), Told::default());
    let settings = settings(&server, &cache);
    let folder = hub::model(MODEL, &settings, &told).unwrap();
    assert_eq!(folder, settings.cache.join("models--owner--tiny-llama/snapshots/c0ffee"));
    assert_eq!(names(&folder), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    let refs = settings.cache.join("models--owner--tiny-llama/refs");
    assert_eq!(
        (names(&refs), fs::read_to_string(refs.join("main")).unwrap()),
        (vec!["main".to_owned()], "c0ffee".to_owned())
    );
    let files = told.files.borrow();
    assert_eq!(files.last().unwrap(), &("model.safetensors".to_owned(), 100_000, 100_000));
    assert!(files.iter().all(|(_, done, total)| done <= total));

    // Again: one question for the commit, and no file.
    let before = server.requests().len();
    assert_eq!(hub::model(MODEL, &settings, &()).unwrap(), folder);
    assert_eq!(server.requests()[before..].len(), 1, "{:?}", server.requests());
}

#[test]
fn a_model_in_shards() {
    let index =
        br#"{"weight_map": {"a": "model-1.safetensors", "b": "sub/model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let repository = Repository::new("models/owner/tiny-llama", "main", "5ead")
        .file("config.json", b"{}")
        .file("model.safetensors.index.json", index)
        .file("model-1.safetensors", b"first")
        .file("sub/model-2.safetensors", b"second")
        .file("model-3.safetensors", b"not in the index");
    let (server, cache) = (Server::start([repository]), TempDir::new().unwrap());
    let settings = settings(&server, &cache);
    let folder = hub::model(MODEL, &settings, &()).unwrap();
    assert_eq!(names(&folder), ["config.json", "model-1.safetensors", "model.safetensors.index.json", "sub"]);
    assert_eq!(fs::read(folder.join("sub/model-2.safetensors")).unwrap(), b"second");
    assert_eq!(hub::model(MODEL, &offline(&settings), &()).unwrap(), folder);

    fs::remove_file(folder.join("sub/model-2.safetensors")).unwrap();
    let (_, text) = fails(hub::model(MODEL, &offline(&settings), &()));
    assert!(text.contains("sub/model-2.safetensors"), "{text}");
}

#[test]
fn a_shard_that_leads_out_of_the_repository_is_refused() {
    let index = br#"{"weight_map": {"a": "../../../../evil.safetensors"}}"#;
    let repository = Repository::new("models/owner/tiny-llama", "main", "bad")
        .file("config.json", b"{}")
        .file("model.safetensors.index.json", index)
        .file("../../../../evil.safetensors", b"evil");
    let (server, cache) = (Server::start([repository]), TempDir::new().unwrap());
    let (error, text) = fails(hub::model(MODEL, &settings(&server, &cache), &()));
    assert!(matches!(error, HubError::Unusable { .. }), "{text}");
    assert!(!server.requests().iter().any(|request| request.path.contains("evil")));
}

#[test]
fn what_a_repository_lacks_is_said() {
    let no_config = Repository::new("models/a/no-config", "main", "c1").file("model.safetensors", b"w");
    let no_weights =
        Repository::new("models/a/no-weights", "main", "c2").file("config.json", b"{}").file("pytorch_model.bin", b"w");
    let (server, cache) = (Server::start([no_config, no_weights]), TempDir::new().unwrap());
    for (id, word) in [("a/no-config", "config.json"), ("a/no-weights", "save_pretrained")] {
        let (error, text) = fails(hub::model(id, &settings(&server, &cache), &()));
        assert!(matches!(error, HubError::Unusable { .. }) && text.contains(word), "{text}");
    }
}

#[test]
fn a_revision_can_be_named() {
    let other = Repository::new("models/owner/tiny-llama", "refs/pr/7", "0b50")
        .file("config.json", b"{}")
        .file("model.safetensors", b"other");
    let (server, cache) = (Server::start([tiny_model(), other]), TempDir::new().unwrap());
    let settings = settings(&server, &cache);
    let folder = hub::model("owner/tiny-llama@refs/pr/7", &settings, &()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), b"other");
    for offline_id in ["owner/tiny-llama@refs/pr/7", "owner/tiny-llama@0b50"] {
        assert_eq!(hub::model(offline_id, &offline(&settings), &()).unwrap(), folder);
    }
    let (error, text) = fails(hub::model("owner/tiny-llama@v9", &settings, &()));
    assert!(matches!(error, HubError::NoRevision { .. }) && text.contains("v9"), "{text}");
}

/// A new commit brings only what changed.
#[cfg(unix)]
#[test]
fn files_that_a_commit_left_alone_are_not_fetched_again() {
    let cache = TempDir::new().unwrap();
    let old = Server::start([tiny_model()]);
    let folder = hub::model(MODEL, &settings(&old, &cache), &()).unwrap();
    let mut moved = tiny_model().file("config.json", b"{\"new\": 1}");
    moved.commit = "d0d0".to_owned();
    let (new, told) = (Server::start([moved]), Told::default());
    let newer = hub::model(MODEL, &settings(&new, &cache), &told).unwrap();
    assert_ne!(folder, newer);
    assert_eq!(fs::read(newer.join("model.safetensors")).unwrap(), weights());
    assert!(told.files.borrow().iter().all(|(name, ..)| name == "config.json"), "{:?}", told.files);
}

#[test]
fn data_sets_by_configuration() {
    let arc = Repository::new("datasets/allenai/ai2_arc", "main", "a2c")
        .file("ARC-Challenge/test-00000-of-00001.parquet", b"challenge")
        .file("ARC-Easy/test-00000-of-00001.parquet", b"easy")
        .file("ARC-Easy/train-00000-of-00001.parquet", b"train");
    let (server, cache) = (Server::start([arc]), TempDir::new().unwrap());
    let settings = settings(&server, &cache);
    for (task, folder, content) in [("arc_easy", "ARC-Easy", "easy"), ("arc_challenge", "ARC-Challenge", "challenge")] {
        let files = hub::dataset(task, &settings, &()).unwrap();
        let [(relative, place)] = &files[..] else { panic!("{files:?}") };
        assert_eq!(relative, &format!("{task}/{folder}/test-00000-of-00001.parquet"));
        assert_eq!(fs::read_to_string(place).unwrap(), content);
        assert_eq!(hub::dataset(task, &offline(&settings), &()).unwrap(), files);
    }
    assert!(!server.requests().iter().any(|request| request.path.contains("train")));
}

#[test]
fn a_data_set_that_is_a_script_comes_from_its_converted_copy() {
    let script = Repository::new("datasets/baber/piqa", "main", "5c").file("piqa.py", b"import os");
    let converted = Repository::new("datasets/baber/piqa", "refs/convert/parquet", "9a")
        .file("default/train/0000.parquet", b"train")
        .file("default/validation/0000.parquet", b"first")
        .file("default/validation/0001.parquet", b"second");
    let (server, cache) = (Server::start([script, converted]), TempDir::new().unwrap());
    let settings = settings(&server, &cache);
    let files = hub::dataset("piqa", &settings, &()).unwrap();
    let relative: Vec<&str> = files.iter().map(|(relative, _)| relative.as_str()).collect();
    let folder = "piqa/default/validation";
    assert_eq!(relative, [0, 1].map(|i| format!("{folder}/validation-0000{i}-of-00002.parquet")));
    assert_eq!(fs::read(&files[1].1).unwrap(), b"second");
    assert_eq!(hub::dataset("piqa", &offline(&settings), &()).unwrap(), files);
}

#[test]
fn a_data_set_without_the_split_is_refused() {
    let piqa = Repository::new("datasets/baber/piqa", "main", "5c").file("piqa.py", b"import os");
    let (server, cache) = (Server::start([piqa]), TempDir::new().unwrap());
    let error = hub::dataset("piqa", &settings(&server, &cache), &()).unwrap_err();
    assert!(matches!(error, HubError::Unusable { .. }) && error.to_string().contains("validation"), "{error}");
    let error = hub::dataset("boolq", &settings(&server, &cache), &()).unwrap_err();
    assert!(matches!(error, HubError::UnknownTask { .. }), "{error}");
    assert_eq!(hub::tasks().count(), 5);
}

#[test]
fn what_does_not_exist_is_not_found() {
    let (server, cache) = (Server::start([]), TempDir::new().unwrap());
    let (error, text) = fails(hub::model("owner/misspelt", &settings(&server, &cache), &()));
    assert!(matches!(error, HubError::NotFound { kind: "model", .. }), "{text}");
    assert!(text.contains("owner/misspelt") && text.contains("spelling"), "{text}");
    let error = hub::dataset("hellaswag", &settings(&server, &cache), &()).unwrap_err();
    assert!(matches!(error, HubError::NotFound { kind: "data set", .. }), "{error}");
    // The hub's answer to strangers.
    server.answer_all(401, "RepoNotFound");
    let (error, text) = fails(hub::model("owner/misspelt", &settings(&server, &cache), &()));
    assert!(matches!(error, HubError::NotFound { .. }), "{text}");
    let (error, _) = fails(hub::model("no id", &settings(&server, &cache), &()));
    assert!(matches!(error, HubError::BadId { .. }));
}

#[test]
fn a_gated_model_needs_a_token() {
    let (server, cache) = (Server::start([tiny_model().gated("secret")]), TempDir::new().unwrap());
    let stranger = settings(&server, &cache);
    let (error, text) = fails(hub::model(MODEL, &stranger, &()));
    assert!(matches!(error, HubError::Denied { status: 401, .. }), "{text}");
    let page = format!("{}/owner/tiny-llama", server.endpoint());
    assert!(text.contains("licence") && text.contains("HF_TOKEN") && text.contains(&page), "{text}");
    let guest = Settings { token: Some("wrong".to_owned()), ..stranger.clone() };
    let (error, text) = fails(hub::model(MODEL, &guest, &()));
    assert!(matches!(error, HubError::Denied { status: 403, .. }), "{text}");
    assert!(!text.contains("wrong") && !format!("{guest:?}").contains("wrong"), "{text}");
    let friend = Settings { token: Some("secret".to_owned()), ..stranger };
    hub::model(MODEL, &friend, &()).unwrap();
}

#[test]
fn offline_never_asks() {
    let (server, cache) = (Server::start([tiny_model()]), TempDir::new().unwrap());
    let settings = settings(&server, &cache);
    let (error, text) = fails(hub::model(MODEL, &offline(&settings), &()));
    assert!(matches!(error, HubError::Offline { .. }) && text.contains("HF_HUB_OFFLINE"), "{text}");
    let error = hub::dataset("winogrande", &offline(&settings), &()).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    assert_eq!(server.requests().len(), 0);
    let folder = hub::model(MODEL, &settings, &()).unwrap();
    let before = server.requests().len();
    assert_eq!(hub::model(MODEL, &offline(&settings), &()).unwrap(), folder);
    assert_eq!(server.requests().len(), before);
}

#[test]
fn without_a_connection_a_whole_copy_does() {
    let cache = TempDir::new().unwrap();
    // A port that was free a moment ago and on which nobody listens.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start([tiny_model()]);
    let online = settings(&server, &cache);
    let cut_off = Settings { endpoint: Some(format!("http://127.0.0.1:{port}")), ..online.clone() };
    let (error, text) = fails(hub::model(MODEL, &cut_off, &()));
    assert!(matches!(error, HubError::Unreachable { .. }), "{text}");
    assert!(text.contains(&port.to_string()) && text.contains("network"), "{text}");
    let folder = hub::model(MODEL, &online, &()).unwrap();
    let told = Told::default();
    assert_eq!(hub::model(MODEL, &cut_off, &told).unwrap(), folder);
    assert!(told.notes.borrow()[0].contains("cache"), "{:?}", told.notes);
}

#[test]
fn a_body_that_breaks_off_is_taken_up_again() {
    let (server, cache, told) = (Server::start([tiny_model()]), TempDir::new().unwrap(), Told::default());
    let settings = settings(&server, &cache);
    server.fault("model.safetensors", Fault::BreakOff(40_000));
    let (error, text) = fails(hub::model(MODEL, &settings, &()));
    assert!(matches!(error, HubError::Interrupted { .. }) && text.contains("run again"), "{text}");
    assert_eq!(final_files(&settings, "models--owner--tiny-llama").len(), 2, "config and tokenizer");
    let (error, _) = fails(hub::model(MODEL, &offline(&settings), &()));
    assert!(matches!(error, HubError::Offline { .. }));

    let folder = hub::model(MODEL, &settings, &told).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert!(server.requests().iter().any(|request| request.range.as_deref() == Some("bytes=40000-")));
    assert_eq!(told.files.borrow()[0], ("model.safetensors".to_owned(), 40_000, 100_000));
}

#[test]
fn a_broken_connection_is_retried() {
    let (server, cache) = (Server::start([tiny_model()]), TempDir::new().unwrap());
    let settings = Settings { retries: 2, ..settings(&server, &cache) };
    server.fault("model.safetensors", Fault::BreakOff(40_000));
    let folder = hub::model(MODEL, &settings, &()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn a_short_body_without_a_length_is_noticed() {
    let (server, cache) = (Server::start([tiny_model()]), TempDir::new().unwrap());
    let settings = settings(&server, &cache);
    server.fault("model.safetensors", Fault::Silently(40_000));
    let (error, text) = fails(hub::model(MODEL, &settings, &()));
    assert!(matches!(error, HubError::Interrupted { .. }) && text.contains("40000 bytes of 100000"), "{text}");
    assert_eq!(final_files(&settings, "models--owner--tiny-llama").len(), 2, "config and tokenizer");
    let folder = hub::model(MODEL, &settings, &()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn a_server_that_ignores_ranges_cannot_spoil_a_resumed_file() {
    let (server, cache) = (Server::start([tiny_model()]), TempDir::new().unwrap());
    let settings = Settings { retries: 1, ..settings(&server, &cache) };
    server.fault("model.safetensors", Fault::BreakOff(40_000));
    server.fault("model.safetensors", Fault::IgnoreRange);
    let (error, text) = fails(hub::model(MODEL, &settings, &()));
    assert!(matches!(error, HubError::Interrupted { .. }) && text.contains("140000 bytes"), "{text}");
    let folder = hub::model(MODEL, &settings, &()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn the_rest_of_a_finished_download_is_no_obstacle() {
    let (server, cache) = (Server::start([tiny_model()]), TempDir::new().unwrap());
    let settings = settings(&server, &cache);
    let blobs = settings.cache.join("models--owner--tiny-llama/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(server::etag(&weights())).with_extension("part"), vec![7; 100_000]).unwrap();
    let folder = hub::model(MODEL, &settings, &()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn servers_that_fail_or_are_no_hub_are_told_apart() {
    let (server, cache) = (Server::start([tiny_model()]), TempDir::new().unwrap());
    let settings = settings(&server, &cache);
    server.answer_all(503, "");
    let (error, text) = fails(hub::model(MODEL, &settings, &()));
    assert!(matches!(error, HubError::Server { status: 503, .. }) && text.contains("later"), "{text}");
    server.answer_all(200, "");
    let (error, text) = fails(hub::model(MODEL, &settings, &()));
    assert!(matches!(error, HubError::BadAnswer { .. }) && text.contains("HF_ENDPOINT"), "{text}");
}

/// Large files lie elsewhere, and a renamed repository answers under its old name.
#[test]
fn redirections_are_followed() {
    let mut moved = tiny_model();
    moved.moved_from = Some("models/old/name".to_owned());
    moved.elsewhere = true;
    let (server, cache) = (Server::start([moved]), TempDir::new().unwrap());
    for id in [MODEL, "old/name"] {
        let folder = hub::model(id, &settings(&server, &cache), &()).unwrap();
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    }
    assert!(server.requests().iter().any(|request| request.path.starts_with("/elsewhere/")));
    assert!(server.requests().iter().any(|request| request.path.starts_with("/old/name/")));
}

/// A device that is always full in place of the unfinished file.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told() {
    let (server, cache) = (Server::start([tiny_model()]), TempDir::new().unwrap());
    let settings = settings(&server, &cache);
    let blobs = settings.cache.join("models--owner--tiny-llama/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(server::etag(&weights())).with_extension("part");
    std::os::unix::fs::symlink("/dev/full", part).unwrap();
    let (error, text) = fails(hub::model(MODEL, &settings, &()));
    assert!(matches!(error, HubError::DiskFull { .. }) && text.contains("space"), "{text}");
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (server, cache) = (Server::start([tiny_model()]), TempDir::new().unwrap());
    let settings = settings(&server, &cache);
    fs::write(&settings.cache, "a file where the folder should be").unwrap();
    let (error, text) = fails(hub::model(MODEL, &settings, &()));
    assert!(matches!(error, HubError::Cache { .. }) && text.contains("HF_HOME"), "{text}");
}

#[test]
fn the_environment_is_read_as_python_does() {
    let home = TempDir::new().unwrap();
    let read = |variables: &[(&str, &str)]| {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
        Settings::from_variables(find, Some(home.path().to_owned())).unwrap()
    };
    let plain = read(&[("HF_TOKEN", ""), ("HF_HOME", "")]);
    assert_eq!(plain.cache, home.path().join(".cache/huggingface/hub"));
    assert!(plain.endpoint.is_none() && plain.token.is_none() && !plain.offline);

    let hf_home = home.path().join("hf");
    fs::create_dir(&hf_home).unwrap();
    fs::write(hf_home.join("token"), "from-file\n").unwrap();
    let in_home = read(&[("HF_HOME", "~/hf"), ("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "TRUE")]);
    assert_eq!((in_home.cache, in_home.token.as_deref()), (hf_home.join("hub"), Some("from-file")));
    assert_eq!((in_home.endpoint.as_deref(), in_home.offline), (Some("http://mirror"), true));
    let explicit = read(&[("HF_HOME", "~/hf"), ("HF_HUB_CACHE", "/c"), ("HF_TOKEN", " t "), ("HF_HUB_OFFLINE", "0")]);
    assert_eq!((explicit.cache, explicit.token.as_deref()), (PathBuf::from("/c"), Some("t")));
    assert!(!explicit.offline);
    assert!(matches!(Settings::from_variables(|_| None, None), Err(HubError::NoCache)));
}
