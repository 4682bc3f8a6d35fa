//! One file: from the hub into the cache, resumed where it was left, checked before it gets its name.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::cache::{RepoCache, make_parent};
use crate::digest::{Digests, Sum};
use crate::http::{Client, Failure, Metadata, header};
use crate::progress::Reporter;
use crate::{Error, Result, Wanted};

/// A file at a commit of a repository.
pub(crate) struct Order<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a RepoCache,
    pub(crate) repo: &'a str,
    pub(crate) revision: &'a str,
    /// The path in the repository.
    pub(crate) file: String,
    pub(crate) wanted: &'a Wanted,
}

/// Fetches a file unless its content is there already; returns where it lies in the snapshot.
pub(crate) fn fetch(order: &Order, report: &mut Reporter) -> Result<PathBuf> {
    let Order { client, cache, repo, revision, file, .. } = order;
    let found = client.patiently(file, &mut |why| report.note(why), || client.metadata(repo, revision, file))?;
    let (bytes, sums) = expected(order, &found)?;

    let mut said = false;
    let _lock = cache.lock(&found.etag, || {
        let note = format!("another process fetches {file}; waiting for it");
        if std::mem::replace(&mut said, true) { report.here(0) } else { report.note(note) }
    })?;
    let blob = cache.blob(&found.etag);
    if std::fs::metadata(&blob).is_ok_and(|data| data.len() == bytes) {
        report.here(bytes as i64)?;
    } else {
        let partial = Partial::resume(cache.partial(&found.etag), bytes, &sums)?;
        let path = complete(order, partial, report)?;
        std::fs::rename(&path, &blob).map_err(Error::io("renamed", path))?;
    }
    cache.point(&found.commit, file, &found.etag)
}

/// The size and the checksums that the content must have. What the catalogue knows is not up to the server.
fn expected(order: &Order, found: &Metadata) -> Result<(u64, Vec<Sum>)> {
    let offered = Sum::from_etag(&found.etag);
    let known = order.wanted.sha256.clone().map(Sum::Sha256);
    if let (Some(offered @ Sum::Sha256(_)), Some(known)) = (&offered, &known)
        && offered != known
    {
        let why = format!("it offers content with {offered} where {known} was published");
        return Err(order.client.odd(&order.file, why));
    }
    let published = order.wanted.bytes.filter(|_| known.is_some());
    if let (Some(published), Some(offered)) = (published, found.bytes)
        && published != offered
    {
        let why = format!("it offers {offered} bytes where {published} were published");
        return Err(order.client.odd(&order.file, why));
    }
    let Some(bytes) = found.bytes.or(published) else {
        return Err(order.client.odd(&order.file, "it does not say how large the file is".to_string()));
    };
    Ok((bytes, offered.into_iter().chain(known).collect()))
}

/// What has arrived of a file, and its checksums so far.
struct Partial<'a> {
    path: PathBuf,
    length: u64,
    bytes: u64,
    sums: &'a [Sum],
    digests: Digests,
}

impl<'a> Partial<'a> {
    fn resume(path: PathBuf, bytes: u64, sums: &'a [Sum]) -> Result<Partial<'a>> {
        make_parent(&path)?;
        let mut partial = Partial { path, length: 0, bytes, sums, digests: Digests::new(sums, bytes) };
        match std::fs::metadata(&partial.path) {
            Ok(data) if data.len() <= bytes => {
                partial.length = partial.digests.update_file(&partial.path)?;
            }
            Ok(_) => partial.restart()?,
            Err(_) => {}
        }
        Ok(partial)
    }

    fn restart(&mut self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("removed", self.path.clone())(error));
            }
            _ => {}
        }
        self.length = 0;
        self.digests = Digests::new(self.sums, self.bytes);
        Ok(())
    }
}

/// Asks until everything is there and right; returns the path of the whole file.
fn complete(order: &Order, mut partial: Partial, report: &mut Reporter) -> Result<PathBuf> {
    let client = order.client;
    let (mut failures, mut farthest, mut spoilt) = (0, partial.length, false);
    report.here(partial.length as i64)?;
    loop {
        let outcome = attempt(order, &mut partial, report);
        if partial.length >= farthest + client.patience.progress {
            failures = 0;
        }
        farthest = farthest.max(partial.length);
        match outcome {
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(why, wait)) => {
                failures += 1;
                client.wait(&order.file, failures, why, wait, &mut |why| report.note(why))?;
            }
            Ok(Outcome::Whole) => {
                let digests = std::mem::replace(&mut partial.digests, Digests::new(&[], 0));
                let Some((got, wanted)) = digests.mismatch() else { return Ok(partial.path) };
                discard(order, &mut partial, &mut spoilt, got.to_string(), wanted.to_string(), report)?;
            }
            Ok(Outcome::TooLong) => {
                let (got, wanted) = ("more bytes".to_string(), format!("{} bytes", partial.bytes));
                discard(order, &mut partial, &mut spoilt, got, wanted, report)?;
            }
        }
    }
}

/// Wrong content is thrown away and fetched once more from the beginning.
fn discard(
    order: &Order,
    partial: &mut Partial,
    spoilt: &mut bool,
    got: String,
    expected: String,
    report: &mut Reporter,
) -> Result<()> {
    report.here(-(partial.length as i64))?;
    partial.restart()?;
    if std::mem::replace(spoilt, true) {
        return Err(Error::WrongBytes { file: order.file.clone(), got, expected });
    }
    let file = &order.file;
    report.note(format!("{file} arrived with {got} where {expected} was expected; discarded, fetching it once more"))
}

enum Outcome {
    Whole,
    TooLong,
}

/// One request and as much of its body as comes.
fn attempt(order: &Order, partial: &mut Partial, report: &mut Reporter) -> Result<Outcome, Failure> {
    if partial.length == partial.bytes && partial.bytes > 0 {
        return Ok(Outcome::Whole);
    }
    let mut reply = order.client.bytes(order.repo, order.revision, &order.file, partial.length)?;
    match reply.status().as_u16() {
        206 if starts_at(&header(reply.headers(), "content-range"), partial.length) => {}
        206 | 416 => {
            report.here(-(partial.length as i64))?;
            partial.restart()?;
            return Err(Failure::Passing("the server resumed at another place than asked".to_string(), None));
        }
        // No ranges here: the whole file comes again.
        _ if partial.length > 0 => {
            report.here(-(partial.length as i64))?;
            partial.restart()?;
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&partial.path)
        .map_err(Error::io("written", partial.path.clone()))?;
    let mut body = reply.body_mut().as_reader();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) => return Err(Failure::Passing(format!("the connection broke ({error})"), None)),
        };
        if partial.length + n as u64 > partial.bytes {
            return Ok(Outcome::TooLong);
        }
        write(&mut file, &buffer[..n], &partial.path)?;
        partial.digests.update(&buffer[..n]);
        partial.length += n as u64;
        report.arrived(n as u64)?;
    }
    if partial.length < partial.bytes {
        let (have, all) = (partial.length, partial.bytes);
        return Err(Failure::Passing(format!("the connection ended after {have} of {all} bytes"), None));
    }
    file.sync_all().map_err(Error::io("written", partial.path.clone()))?;
    Ok(Outcome::Whole)
}

fn write(file: &mut std::fs::File, bytes: &[u8], path: &Path) -> Result<()> {
    file.write_all(bytes).map_err(Error::io("written", path))
}

/// Whether `bytes 100-999/1000` begins at 100.
fn starts_at(range: &Option<String>, start: u64) -> bool {
    let first = range.as_deref().and_then(|range| range.trim().strip_prefix("bytes")).and_then(|range| {
        let digits = range.trim_start_matches([' ', '=']).split('-').next()?;
        digits.trim().parse().ok()
    });
    first == Some(start)
}
