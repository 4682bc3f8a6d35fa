//! A server on this machine that speaks the hub's routes, and misbehaves when told to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use sha1::Digest as _;

/// How the server treats one request for a file's bytes.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Sends this many bytes of what is due, then hangs up.
    Cut(usize),
    /// Answers with this status, and these headers.
    Status(u16, &'static str),
    /// Sends other content of the same length.
    WrongBytes,
    /// Sends one byte more.
    Longer,
    /// Sends the whole file whatever was asked.
    NoRanges,
    /// `NoRanges`, and cut.
    NoRangesCut(usize),
    /// Says that it resumes, at another place.
    WrongPlace,
    /// Accepts the request and says nothing.
    Silence,
}

/// How large files are handed out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Storage {
    /// An absolute redirect to another host, as for large files.
    Elsewhere,
    /// A relative redirect first, then the file, as for small ones.
    Here,
}

pub(crate) struct State {
    pub(crate) files: BTreeMap<String, (Vec<u8>, Storage)>,
    /// Faults of GET requests for bytes, by file, used up one by one.
    pub(crate) faults: HashMap<String, VecDeque<Fault>>,
    /// The same for HEAD requests.
    pub(crate) head_faults: HashMap<String, VecDeque<Fault>>,
    pub(crate) needs_token: Option<String>,
    pub(crate) error_code: &'static str,
    /// Every request: method, path, range, and whether it bore a token.
    pub(crate) log: Vec<(String, String, Option<String>, bool)>,
}

pub(crate) struct Server {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const REPO: &str = "org/model";

impl Server {
    pub(crate) fn start(files: &[(&str, Vec<u8>, Storage)]) -> Server {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let store = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let store_address = format!("http://{}", store.local_addr().unwrap());
        let files = files.iter().map(|(name, bytes, storage)| (name.to_string(), (bytes.clone(), *storage)));
        let state = State {
            files: files.collect(),
            faults: HashMap::new(),
            head_faults: HashMap::new(),
            needs_token: None,
            error_code: "",
            log: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        for listener in [hub, store] {
            let (state, store) = (state.clone(), store_address.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, store) = (state.clone(), store.clone());
                    std::thread::spawn(move || serve(stream, &state, &store));
                }
            });
        }
        Server { endpoint, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn fault(&self, file: &str, faults: &[Fault]) {
        self.state().faults.insert(file.to_string(), faults.iter().cloned().collect());
    }

    /// The ranges of all requests for a file's bytes.
    pub(crate) fn ranges(&self) -> Vec<Option<String>> {
        let state = self.state();
        let bytes = state.log.iter().filter(|(method, path, ..)| method == "GET" && path.starts_with("/store"));
        bytes.map(|(_, _, range, _)| range.clone()).collect()
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn git_hash(bytes: &[u8]) -> String {
    let mut hash = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn serve(mut stream: TcpStream, state: &Mutex<State>, store: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap().to_string(), words.next().unwrap().to_string());
        let (mut range, mut token) = (None, None);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            let header = header.trim_end();
            if header.is_empty() {
                break;
            }
            let (name, value) = header.split_once(':').unwrap();
            match name.to_ascii_lowercase().as_str() {
                "range" => range = Some(value.trim().to_string()),
                "authorization" => token = Some(value.trim().to_string()),
                _ => {}
            }
        }
        let mut state = state.lock().unwrap();
        state.log.push((method.clone(), path.clone(), range.clone(), token.is_some()));
        let keep = answer(&mut stream, &mut state, store, &method, &path, range, token);
        if !keep {
            return;
        }
    }
}

/// Answers one request; false hangs up.
fn answer(
    stream: &mut TcpStream,
    state: &mut State,
    store: &str,
    method: &str,
    path: &str,
    range: Option<String>,
    token: Option<String>,
) -> bool {
    let plain = |stream: &mut TcpStream, status: u16, headers: &str, body: &[u8]| {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        if method != "HEAD" {
            stream.write_all(body).unwrap();
        }
        true
    };
    let from_store = path.strip_prefix("/store/").or(path.strip_prefix(&format!("/api/resolve-cache/{COMMIT}/")));
    if from_store.is_none()
        && let Some(needed) = &state.needs_token
        && token.as_deref() != Some(&format!("Bearer {needed}"))
    {
        let code = state.error_code;
        return plain(stream, 401, &format!("X-Error-Code: {code}\r\n"), b"");
    }
    if path.starts_with(&format!("/api/models/{REPO}/revision/main")) {
        let siblings = state.files.iter().map(|(name, (bytes, storage))| {
            let lfs = match storage {
                Storage::Elsewhere => format!(r#","lfs":{{"sha256":"{}"}}"#, sha256(bytes)),
                Storage::Here => String::new(),
            };
            format!(r#"{{"rfilename":"{name}","size":{}{lfs}}}"#, bytes.len())
        });
        let siblings = siblings.collect::<Vec<_>>().join(",");
        let body = format!(r#"{{"sha":"{COMMIT}","siblings":[{siblings}],"cardData":{{"license":"mit"}}}}"#);
        return plain(stream, 200, "", body.as_bytes());
    }
    let resolve = [format!("/{REPO}/resolve/{COMMIT}/"), format!("/{REPO}/resolve/main/")];
    let asked = resolve.iter().find_map(|prefix| path.strip_prefix(prefix));
    let Some(name) = asked.or(from_store).map(str::to_string) else {
        return plain(stream, 404, "X-Error-Code: RepoNotFound\r\n", b"");
    };
    let Some((bytes, storage)) = state.files.get(&name).cloned() else {
        return plain(stream, 404, "X-Error-Code: EntryNotFound\r\n", b"");
    };
    if method == "HEAD"
        && let Some(fault) = state.head_faults.get_mut(&name).and_then(VecDeque::pop_front)
    {
        return match fault {
            Fault::Status(status, headers) => plain(stream, status, headers, b""),
            _ => false,
        };
    }
    if asked.is_some() {
        let headers = match storage {
            Storage::Elsewhere => format!(
                "X-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\nETag: \"other\"\r\nLocation: {store}/store/{name}\r\n",
                sha256(&bytes),
                bytes.len(),
            ),
            Storage::Here => format!("X-Repo-Commit: {COMMIT}\r\nLocation: /api/resolve-cache/{COMMIT}/{name}\r\n"),
        };
        return plain(stream, if storage == Storage::Here { 307 } else { 302 }, &headers, b"moved");
    }
    if method == "HEAD" {
        let headers = format!("X-Repo-Commit: {COMMIT}\r\nETag: W/\"{}\"\r\n", git_hash(&bytes));
        return plain(stream, 200, &headers, &bytes);
    }
    let fault = state.faults.get_mut(&name).and_then(VecDeque::pop_front);
    send(stream, &bytes, range, fault)
}

fn send(stream: &mut TcpStream, bytes: &[u8], range: Option<String>, fault: Option<Fault>) -> bool {
    let mut bytes = bytes.to_vec();
    let ranges = !matches!(fault, Some(Fault::NoRanges | Fault::NoRangesCut(_)));
    let start = range
        .filter(|_| ranges)
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match &fault {
        Some(Fault::Status(status, headers)) => {
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{headers}\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            return true;
        }
        Some(Fault::WrongBytes) => bytes.iter_mut().for_each(|byte| *byte ^= 1),
        Some(Fault::Longer) => bytes.push(0),
        Some(Fault::Silence) => {
            // Keeps the connection open behind the caller's back.
            std::mem::forget(stream.try_clone());
            return false;
        }
        _ => {}
    }
    let total = bytes.len();
    let (head, body) = match start {
        Some(start) if start >= total => {
            (format!("HTTP/1.1 416 X\r\nContent-Range: bytes */{total}\r\nContent-Length: 0\r\n\r\n"), &bytes[..0])
        }
        Some(start) => {
            let said = if matches!(fault, Some(Fault::WrongPlace)) { start + 1 } else { start };
            let length = total - start;
            let range = format!("bytes {said}-{}/{total}", total - 1);
            (format!("HTTP/1.1 206 X\r\nContent-Range: {range}\r\nContent-Length: {length}\r\n\r\n"), &bytes[start..])
        }
        None => (format!("HTTP/1.1 200 X\r\nContent-Length: {total}\r\n\r\n"), &bytes[..]),
    };
    stream.write_all(head.as_bytes()).unwrap();
    match fault {
        Some(Fault::Cut(n) | Fault::NoRangesCut(n)) if n < body.len() => {
            let _ = stream.write_all(&body[..n]);
            false
        }
        _ => stream.write_all(body).is_ok(),
    }
}
