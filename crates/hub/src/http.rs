//! Asking the hub: requests, redirects, refusals and what is worth another try.

use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body, Proxy};

use crate::cache::{is_commit, is_etag};
use crate::{Error, HubConfig, Patience, Result};

/// A connection to one hub.
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    pub(crate) patience: Patience,
}

/// What the hub says of a file before it is fetched.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) commit: String,
    pub(crate) etag: String,
    pub(crate) bytes: Option<u64>,
}

/// Why a request brought nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Another try may help, at the earliest after this time.
    Passing(String, Option<Duration>),
    /// No other try will.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

const MOST_REDIRECTS: usize = 10;

impl Client {
    pub(crate) fn new(config: &HubConfig) -> Result<Client> {
        let patience = config.patience.clone();
        let agent = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            // A compressed body could neither be resumed nor checked.
            .accept_encoding("identity")
            .user_agent(concat!("sameface/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(patience.silence))
            .timeout_connect(Some(patience.silence))
            .timeout_recv_response(Some(patience.silence))
            .timeout_per_read(Some(patience.silence))
            .timeout_per_write(Some(patience.silence))
            .proxy(proxy(config)?)
            .build()
            .new_agent();
        Ok(Client { agent, endpoint: config.endpoint.clone(), token: config.token.clone(), patience })
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn host(&self) -> &str {
        origin(&self.endpoint).rsplit('/').next().unwrap_or(&self.endpoint)
    }

    pub(crate) fn file_url(&self, repo: &str, revision: &str, file: &str) -> String {
        format!("{}/{repo}/resolve/{revision}/{}", self.endpoint, encode(file))
    }

    /// What a branch of a repository is at, which files it has and under which licence.
    pub(crate) fn repo_info(&self, repo: &str, branch: &str) -> Result<serde_json::Value, Failure> {
        let url = format!("{}/api/models/{repo}/revision/{branch}?blobs=true", self.endpoint);
        let mut reply = self.follow("GET", &url, 0, false)?;
        self.accepted(&reply, repo, branch, None)?;
        let body = reply.body_mut().with_config().limit(64 << 20).read_to_vec().map_err(passing)?;
        serde_json::from_slice(&body)
            .map_err(|error| self.odd(repo, format!("the description of the repository is not JSON ({error})")).into())
    }

    /// What the hub says of a file.
    pub(crate) fn metadata(&self, repo: &str, revision: &str, file: &str) -> Result<Metadata, Failure> {
        let reply = self.follow("HEAD", &self.file_url(repo, revision, file), 0, true)?;
        self.accepted(&reply, repo, revision, Some(file))?;
        let headers = reply.headers();
        let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_string();
        let commit = header(headers, "x-repo-commit");
        // Mirrors may leave the commit out; a revision that is one needs no answer.
        let commit = commit.or_else(|| is_commit(revision).then(|| revision.to_string())).unwrap_or_default();
        if !is_etag(&etag) || !is_commit(&commit) {
            let why = format!("it names neither content nor commit (ETag `{etag}`, X-Repo-Commit `{commit}`)");
            return Err(self.odd(file, why).into());
        }
        if is_commit(revision) && commit != revision {
            return Err(self.odd(file, format!("commit {commit} instead of {revision}")).into());
        }
        let linked = header(headers, "x-linked-size");
        // The length of a redirect's own body says nothing about the file.
        let own = || header(headers, "content-length").filter(|_| reply.status().is_success());
        let bytes = linked.or_else(own).and_then(|text| text.parse().ok());
        Ok(Metadata { commit, etag, bytes })
    }

    /// The bytes of a file from `start` on; 206 when the server obeyed, 200 when it sends the whole, 416 when there is
    /// nothing left.
    pub(crate) fn bytes(&self, repo: &str, revision: &str, file: &str, start: u64) -> Result<Response<Body>, Failure> {
        let reply = self.follow("GET", &self.file_url(repo, revision, file), start, false)?;
        if reply.status() != StatusCode::RANGE_NOT_SATISFIABLE {
            self.accepted(&reply, repo, revision, Some(file))?;
        }
        Ok(reply)
    }

    /// Follows redirects by hand: the token goes to the hub's own address only, and with `until_described` the way
    /// ends where the hub has said all, before a store that knows nothing of commits.
    fn follow(&self, method: &str, url: &str, start: u64, until_described: bool) -> Result<Response<Body>, Failure> {
        let mut url = url.to_string();
        for _ in 0..MOST_REDIRECTS {
            let mut request = match method {
                "HEAD" => self.agent.head(&url),
                _ => self.agent.get(&url),
            };
            if start > 0 {
                request = request.header("Range", format!("bytes={start}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let reply = request.call().map_err(passing)?;
            if !reply.status().is_redirection() || reply.status() == StatusCode::NOT_MODIFIED {
                return Ok(reply);
            }
            let Some(place) = header(reply.headers(), "location") else {
                return Err(self.odd(&url, "a redirect to nowhere".to_string()).into());
            };
            let next = join(&url, &place);
            if until_described && reply.headers().contains_key("x-linked-etag") {
                return Ok(reply);
            }
            if url.starts_with("https://") && !next.starts_with("https://") {
                return Err(self.odd(&url, format!("a redirect to `{next}`, which is not encrypted")).into());
            }
            url = next;
        }
        Err(self.odd(&url, format!("more than {MOST_REDIRECTS} redirects")).into())
    }

    /// Turns refusals into sentences, and passing troubles into another try.
    fn accepted(&self, reply: &Response<Body>, repo: &str, revision: &str, file: Option<&str>) -> Result<(), Failure> {
        let status = reply.status();
        let code = header(reply.headers(), "x-error-code").unwrap_or_default();
        let endpoint = self.endpoint.clone();
        match status.as_u16() {
            200..=399 => Ok(()),
            401 | 403 => {
                let advice = self.advice(repo, &code);
                Err(Error::Refused { endpoint, repo: repo.to_string(), status: status.as_u16(), advice }.into())
            }
            404 | 410 => {
                let what = match (code.as_str(), file) {
                    ("RepoNotFound", _) | (_, None) => format!("repository {repo}"),
                    ("RevisionNotFound", _) => format!("revision {revision} of {repo}"),
                    (_, Some(file)) => format!("{file} in {repo} at {revision}"),
                };
                Err(Error::NotThere { endpoint, what }.into())
            }
            408 | 425 | 429 | 500 | 502 | 503 | 504 => {
                let wait = header(reply.headers(), "retry-after").and_then(|text| text.trim().parse().ok());
                let why = format!("the server says {status}");
                Err(Failure::Passing(why, wait.map(Duration::from_secs)))
            }
            _ => Err(self.odd(file.unwrap_or(repo), format!("status {status}")).into()),
        }
    }

    fn advice(&self, repo: &str, code: &str) -> String {
        let page = format!("{}/{repo}", self.endpoint);
        let make = format!("make a token at {}/settings/tokens and set HF_TOKEN to it", self.endpoint);
        match (code, self.token.is_some()) {
            ("GatedRepo", false) => format!("it is gated; accept its terms at {page}, then {make}"),
            ("GatedRepo", true) => format!("it is gated; accept its terms at {page} with the account of your token"),
            (_, false) => format!("it is private, gated or absent; if {page} shows it to you, {make}"),
            (_, true) => format!("your token does not reach it; see whether {page} shows it to that account"),
        }
    }

    pub(crate) fn odd(&self, what: &str, why: String) -> Error {
        Error::BadReply { host: self.host().to_string(), what: what.to_string(), why }
    }

    /// Tries again while failures pass, waiting longer each time. `note` hears why, and may say stop.
    pub(crate) fn patiently<T>(
        &self,
        what: &str,
        note: &mut dyn FnMut(String) -> Result<()>,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(why, wait)) => {
                    failures += 1;
                    self.wait(what, failures, why, wait, note)?;
                }
            }
        }
    }

    /// The wait after the `failures`-th failure in a row, or the error that ends it.
    pub(crate) fn wait(
        &self,
        what: &str,
        failures: u32,
        why: String,
        asked: Option<Duration>,
        note: &mut dyn FnMut(String) -> Result<()>,
    ) -> Result<()> {
        if failures >= self.patience.attempts {
            let host = self.host().to_string();
            return Err(Error::Network { what: what.to_string(), host, attempts: failures, why });
        }
        let doubled = self.patience.first_wait.saturating_mul(1 << (failures - 1).min(5));
        let wait = asked.map_or(doubled, |asked| asked.max(doubled)).min(self.patience.longest_wait) + jitter(doubled);
        note(format!("{what}: {why}; trying again in {:.0} s", wait.as_secs_f64().ceil()))?;
        let mut left = wait;
        while !left.is_zero() {
            let nap = left.min(Duration::from_millis(200));
            std::thread::sleep(nap);
            left -= nap;
        }
        Ok(())
    }
}

/// Up to a fifth more, so that many clients do not come back at once.
fn jitter(wait: Duration) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    wait * (now.subsec_nanos() % 100) / 500
}

fn proxy(config: &HubConfig) -> Result<Option<Proxy>> {
    let Some(address) = &config.proxy else { return Ok(None) };
    let bad =
        || Error::BadAddress { variable: "HTTPS_PROXY", value: address.clone(), example: "http://proxy.example:3128" };
    let given = Proxy::new(address).map_err(|_| bad())?;
    let Some(except) = &config.no_proxy else { return Ok(Some(given)) };
    let mut builder = Proxy::builder(given.protocol()).host(given.host()).port(given.port());
    if let (Some(user), Some(password)) = (given.username(), given.password()) {
        builder = builder.username(user).password(password);
    }
    for host in except.split(',').map(str::trim).filter(|host| !host.is_empty()) {
        builder = builder.no_proxy(host);
    }
    builder.build().map(Some).map_err(|_| bad())
}

/// Every failure of a connection may pass; what never does is a request that cannot be written.
pub(crate) fn passing(error: ureq::Error) -> Failure {
    match error {
        ureq::Error::BadUri(uri) => Failure::Final(Error::BadReply {
            host: uri.clone(),
            what: "a redirect".to_string(),
            why: format!("`{uri}` is no address"),
        }),
        ureq::Error::Timeout(kind) => Failure::Passing(format!("the server fell silent ({kind})"), None),
        ureq::Error::HostNotFound => Failure::Passing("the server's name is not known here".to_string(), None),
        other => Failure::Passing(other.to_string(), None),
    }
}

pub(crate) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string)
}

/// `https://host:port` of an address.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// Where a redirect leads.
fn join(base: &str, place: &str) -> String {
    if place.starts_with("http://") || place.starts_with("https://") {
        place.to_string()
    } else if let Some(rest) = place.strip_prefix("//") {
        format!("{}//{rest}", &base[..base.find("//").unwrap_or(0)])
    } else if place.starts_with('/') {
        format!("{}{place}", origin(base))
    } else {
        let path = base.split(['?', '#']).next().unwrap_or(base);
        let folder = path.rfind('/').filter(|at| *at > origin(base).len()).unwrap_or(origin(base).len());
        format!("{}/{place}", &path[..folder])
    }
}

/// A file's path as it stands in an address.
fn encode(path: &str) -> String {
    path.bytes()
        .map(|c| match c {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => (c as char).to_string(),
            _ => format!("%{c:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let base = "https://hub.example/a/b/resolve/main/f?x=1";
        for (place, url) in [
            ("https://cdn.example/z", "https://cdn.example/z"),
            ("/api/resolve-cache/f", "https://hub.example/api/resolve-cache/f"),
            ("//cdn.example/z", "https://cdn.example/z"),
            ("g", "https://hub.example/a/b/resolve/main/g"),
        ] {
            assert_eq!(join(base, place), url);
        }
        assert_eq!(join("http://h", "x"), "http://h/x");
        assert_eq!(origin("https://h:8/a/b"), "https://h:8");
        assert_eq!(encode("unet/a b+.json"), "unet/a%20b%2B.json");
    }
}
