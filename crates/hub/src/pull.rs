//! Bringing what a plan lacks.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::cache::RepoCache;
use crate::download::{Order, fetch};
use crate::http::Client;
use crate::plan::{At, Part, Plan, is_here};
use crate::progress::{Event, Meter, Reporter};
use crate::{Error, HubConfig, Result};

/// A model that is here now.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// Bytes that were fetched for it.
    pub fetched: u64,
}

/// Room that must be left on the disk.
const MARGIN: u64 = 64 << 20;

/// Fetches what is lacking. `tell` hears of every step and may break off; what has arrived is kept for the next time.
pub fn pull(config: &HubConfig, plan: &Plan, tell: &mut dyn FnMut(Event) -> ControlFlow<()>) -> Result<Vec<Pulled>> {
    if let Some(part) = plan.parts.iter().find(|part| part.here.is_none()) {
        if config.offline {
            return Err(Error::Offline { name: part.name.clone() });
        }
        room_for(&config.cache, plan.missing())?;
    }
    let client = Client::new(config)?;
    let mut report = Reporter::new(Meter::new(0, plan.lacking()), tell);
    let mut pulled = Vec::new();
    for part in &plan.parts {
        let path = match &part.here {
            Some(path) => path.clone(),
            None => pull_part(config, &client, part, &mut report)?,
        };
        pulled.push(Pulled { name: part.name.clone(), path, fetched: part.missing });
    }
    Ok(pulled)
}

/// Tries the part's repositories in turn; a later one stands in where an earlier one is closed or gone.
fn pull_part(config: &HubConfig, client: &Client, part: &Part, report: &mut Reporter) -> Result<PathBuf> {
    let mut sources = part.sources.iter();
    let Some(mut at) = sources.next() else {
        return Err(client.odd(&part.name, "no repository is known for it".to_string()));
    };
    loop {
        match pull_from(config, client, part, at, report) {
            Err(error @ (Error::Refused { .. } | Error::NotThere { .. })) => match sources.next() {
                Some(next) => {
                    report.note(format!("{error}; trying {}", next.repo))?;
                    at = next;
                }
                None => return Err(error),
            },
            outcome => return outcome,
        }
    }
}

fn pull_from(config: &HubConfig, client: &Client, part: &Part, at: &At, report: &mut Reporter) -> Result<PathBuf> {
    let cache = RepoCache::new(&config.cache, &at.repo);
    let folder = cache.folder_at(&at.revision, &at.folder);
    for (index, wanted) in part.files.iter().enumerate() {
        let bytes = wanted.bytes.unwrap_or(0);
        if is_here(&folder, wanted) {
            report.here(bytes as i64)?;
            continue;
        }
        let file = format!("{}{}", at.folder, wanted.path);
        let (number, of) = (index + 1, part.files.len());
        report.say(Event::File { repo: at.repo.clone(), file: file.clone(), number, of, bytes })?;
        let (repo, revision) = (&at.repo, &at.revision);
        fetch(&Order { client, cache: &cache, repo, revision, file, wanted }, report)?;
    }
    remember_branch(client, &cache, at);
    Ok(folder)
}

/// Other programs ask the cache for `main`. It is written only when the hub says that `main` is at this commit, and
/// nothing depends on it.
fn remember_branch(client: &Client, cache: &RepoCache, at: &At) {
    if let Ok(info) = client.repo_info(&at.repo, "main")
        && info["sha"].as_str() == Some(&at.revision)
    {
        let _ = cache.write_ref("main", &at.revision);
    }
}

fn room_for(cache: &Path, need: u64) -> Result<()> {
    let existing = cache.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    // A disk that does not tell is tried.
    let Ok(free) = fs4::available_space(existing) else { return Ok(()) };
    let need = need.saturating_add(MARGIN);
    if free < need {
        return Err(Error::NoSpace { folder: cache.to_path_buf(), need, free });
    }
    Ok(())
}
