//! A hub of a few files on the loopback interface.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// No test asks more often; one that does must not run forever.
const MOST_REQUESTS: usize = 200;

/// One revision of a repository.
pub(crate) struct Repository {
    /// `models/owner/name` or `datasets/owner/name`.
    path: String,
    revision: String,
    pub(crate) commit: String,
    files: BTreeMap<String, Vec<u8>>,
    /// The token without which files are refused.
    token: Option<String>,
    /// The path it had before; requests for that are redirected.
    pub(crate) moved_from: Option<String>,
    /// Whether files are handed out from another address.
    pub(crate) elsewhere: bool,
}

impl Repository {
    pub(crate) fn new(path: &str, revision: &str, commit: &str) -> Self {
        let (path, revision, commit) = (path.to_owned(), revision.to_owned(), commit.to_owned());
        Repository { path, revision, commit, files: BTreeMap::new(), token: None, moved_from: None, elsewhere: false }
    }

    pub(crate) fn file(mut self, name: &str, bytes: &[u8]) -> Self {
        self.files.insert(name.to_owned(), bytes.to_vec());
        self
    }

    pub(crate) fn gated(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }
}

/// What goes wrong with one download of a file.
pub(crate) enum Fault {
    /// The connection ends after so many bytes.
    BreakOff(usize),
    /// The same, and no length was announced.
    Silently(usize),
    /// The whole file is sent whatever range was asked for.
    IgnoreRange,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    token: Option<String>,
}

#[derive(Default)]
struct State {
    repositories: Vec<Repository>,
    requests: Vec<Request>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    answer_all: Option<(u16, String)>,
    stop: bool,
}

/// Serves until dropped.
pub(crate) struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(repositories: impl Into<Vec<Repository>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { repositories: repositories.into(), ..State::default() }));
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().take(MOST_REQUESTS) {
                if shared.lock().unwrap().stop {
                    return;
                }
                // A client that hangs up early is not the server's concern.
                let _ = stream.and_then(|stream| answer(stream, &shared));
            }
        });
        Server { address, state, thread: Some(thread) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Lets the next download of `file` go wrong; several queue up.
    pub(crate) fn fault(&self, file: &str, fault: Fault) {
        self.state.lock().unwrap().faults.entry(file.to_owned()).or_default().push_back(fault);
    }

    /// Answers everything with this status and `x-error-code`.
    pub(crate) fn answer_all(&self, status: u16, code: &str) {
        self.state.lock().unwrap().answer_all = Some((status, code.to_owned()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(mut state) = self.state.lock() {
            state.stop = true;
        }
        // Wakes the thread, which waits for a connection.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What names the content; the hub takes a hash too.
pub(crate) fn etag(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = read_request(&stream)?;
    let mut state = state.lock().unwrap();
    state.requests.push(request.clone());
    let reply = match &state.answer_all {
        Some((status, code)) => refusal(*status, code),
        None => reply(&mut state, &request, &stream.local_addr()?.to_string()),
    };
    drop(state);
    stream.write_all(&reply)
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().replace("%2F", "/").replace("?blobs=true", "");
    let mut request = Request { path, ..Request::default() };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.trim().to_owned()),
            "authorization" => request.token = value.trim().strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    Ok(request)
}

fn refusal(status: u16, code: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} No\r\nx-error-code: {code}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
        .into_bytes()
}

fn redirect(headers: &str, location: &str) -> Vec<u8> {
    format!("HTTP/1.1 307 Moved\r\nlocation: {location}\r\n{headers}content-length: 0\r\nconnection: close\r\n\r\n")
        .into_bytes()
}

fn reply(state: &mut State, request: &Request, address: &str) -> Vec<u8> {
    for repository in &state.repositories {
        if let Some(old) = &repository.moved_from {
            let [old, new] = [old, &repository.path].map(|path| path.trim_start_matches("models/"));
            if request.path.contains(old) {
                return redirect("", &request.path.replace(old, new));
            }
        }
    }
    if let Some((path, revision)) = request.path.strip_prefix("/api/").and_then(|path| path.split_once("/revision/")) {
        return info(state, path, revision);
    }
    let (elsewhere, path) = match request.path.strip_prefix("/elsewhere") {
        Some(path) => (true, path),
        None => (false, request.path.as_str()),
    };
    let Some((path, rest)) = path.trim_start_matches('/').split_once("/resolve/") else {
        return refusal(404, "");
    };
    let path = if path.starts_with("datasets/") { path.to_owned() } else { format!("models/{path}") };
    let found = state.repositories.iter().filter(|repository| repository.path == path).find_map(|repository| {
        let name = rest.strip_prefix(repository.commit.as_str())?.strip_prefix('/')?;
        Some((repository, name, repository.files.get(name)?))
    });
    let Some((repository, name, bytes)) = found else {
        return refusal(404, "EntryNotFound");
    };
    if repository.token.is_some() && repository.token != request.token {
        return refusal(if request.token.is_some() { 403 } else { 401 }, "GatedRepo");
    }
    if repository.elsewhere && !elsewhere {
        let headers = format!("x-repo-commit: {}\r\nx-linked-etag: \"{}\"\r\n", repository.commit, etag(bytes));
        return redirect(&headers, &format!("http://{address}/elsewhere{}", request.path));
    }
    // The question for the size is not the download.
    let probe = request.range.as_deref() == Some("bytes=0-0");
    let fault = if probe { None } else { state.faults.get_mut(name).and_then(VecDeque::pop_front) };
    file(bytes, &repository.commit, request, fault)
}

fn info(state: &State, path: &str, revision: &str) -> Vec<u8> {
    let mut of_path = state.repositories.iter().filter(|repository| repository.path == path).peekable();
    if of_path.peek().is_none() {
        return refusal(404, "RepoNotFound");
    }
    let Some(repository) = of_path.find(|repository| repository.revision == revision) else {
        return refusal(404, "RevisionNotFound");
    };
    let siblings: Vec<String> = repository.files.keys().map(|name| format!("{{\"rfilename\": {name:?}}}")).collect();
    let body = format!("{{\"sha\": {:?}, \"siblings\": [{}]}}", repository.commit, siblings.join(", "));
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
        .into_bytes()
}

fn file(bytes: &[u8], commit: &str, request: &Request, fault: Option<Fault>) -> Vec<u8> {
    let size = bytes.len();
    let (start, end) = range(request, size);
    if start >= size {
        return refusal(416, "");
    }
    let (start, end, status) = match fault {
        Some(Fault::IgnoreRange) => (0, size, "200 OK".to_owned()),
        _ => (start, end, format!("206 Partial Content\r\ncontent-range: bytes {start}-{}/{size}", end - 1)),
    };
    let length = match fault {
        Some(Fault::Silently(_)) => String::new(),
        _ => format!("content-length: {}\r\n", end - start),
    };
    let sent = match fault {
        Some(Fault::BreakOff(bytes) | Fault::Silently(bytes)) => bytes,
        _ => end - start,
    };
    let etag = etag(bytes);
    let head = format!(
        "HTTP/1.1 {status}\r\netag: \"{etag}\"\r\nx-repo-commit: {commit}\r\n{length}connection: close\r\n\r\n"
    );
    [head.as_bytes(), &bytes[start..start + sent]].concat()
}

/// The bytes asked for, `bytes=START-` or `bytes=START-LAST`.
fn range(request: &Request, size: usize) -> (usize, usize) {
    let range = request.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let Some((start, last)) = range else {
        return (0, size);
    };
    let end = last.parse::<usize>().map_or(size, |last| (last + 1).min(size));
    (start.parse().unwrap_or(0), end)
}
