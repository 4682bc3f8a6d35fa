//! From what the user named, or did not, to a path: the given path, `$SAMEFACE_HOME/models`, the hub's cache.

use std::path::{Path, PathBuf};

use crate::cache::{RepoCache, below, is_repo};
use crate::catalog::{self, Entry};
use crate::layouts::{lacks, named, nearly, settle};
use crate::plan::{Wanted, is_here};
use crate::{Error, HubConfig, Result};

/// A part of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The text-to-image model: a diffusers folder or a single file.
    Base,
    /// The ControlNet that takes the face.
    IdentityNet,
    /// The Resampler and the second branch of every cross-attention.
    IpAdapter,
    /// The folder with the face detector and the face encoder.
    FaceModels,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 4] = [Role::Base, Role::IdentityNet, Role::IpAdapter, Role::FaceModels];

    /// The option that names it.
    pub fn flag(self) -> &'static str {
        match self {
            Role::Base => "--model",
            Role::IdentityNet => "--identitynet",
            Role::IpAdapter => "--ip-adapter",
            Role::FaceModels => "--face-models",
        }
    }

    /// Its name in a sentence.
    pub fn what(self) -> &'static str {
        match self {
            Role::Base => "base model",
            Role::IdentityNet => "IdentityNet",
            Role::IpAdapter => "identity adapter",
            Role::FaceModels => "face model folder",
        }
    }

    fn valid(self) -> &'static str {
        match self {
            Role::Base => "a diffusers folder with model_index.json, a single .safetensors file, or a name",
            Role::IdentityNet => "a folder with config.json and diffusion_pytorch_model.safetensors, a file, or a name",
            Role::IpAdapter => "a file such as ip-adapter.bin, a folder that holds one, or a name",
            Role::FaceModels => "a folder with a detector and an encoder as .onnx files, or a name",
        }
    }
}

/// Where something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The user named the path.
    Given,
    /// `$SAMEFACE_HOME/models`.
    Home,
    /// The hub's cache.
    Cache,
}

/// A part of the stack on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What to load.
    pub path: PathBuf,
    /// Where it was found.
    pub place: Place,
}

/// Finds a part of the stack: `given` is the option's value, if it was used. Never asks the hub.
pub fn locate(config: &HubConfig, role: Role, given: Option<&str>) -> Result<Found> {
    let found = match given {
        Some(given) => locate_given(config, role, given)?,
        None => locate_default(config, role)?,
    };
    match lacks(role, &found.path) {
        None => Ok(found),
        // Nothing can be pulled into a folder that the user named.
        Some(lacks) if found.place == Place::Given => {
            let given = given.unwrap_or_default().to_string();
            Err(Error::Given { flag: role.flag(), given, why: format!("is incomplete: it lacks {lacks}") })
        }
        Some(lacks) => {
            let pull = catalog::default_for(role).name.to_string();
            Err(Error::Incomplete { what: role.what(), folder: found.path, lacks, pull })
        }
    }
}

fn locate_given(config: &HubConfig, role: Role, given: &str) -> Result<Found> {
    let flag = role.flag();
    let refuse = |why: String| Error::Given { flag, given: given.to_string(), why };
    let path = Path::new(given);
    if path.exists() {
        let settled = settle(role, path).map_err(|found| ambiguous(role, path, &found))?;
        let settled = settled.or_else(|| nearly(role, path).then(|| path.to_path_buf()));
        let why = || refuse(format!("is not {}", role.valid()));
        return settled.map(|path| Found { path, place: Place::Given }).ok_or_else(why);
    }
    if let Some(home) = &config.models
        && let Some(path) = named(role, home, given)
    {
        return Ok(Found { path, place: Place::Home });
    }
    if let Some(entry) = catalog::entry(given) {
        if !entry.roles.contains(&role) {
            return Err(refuse(format!("is {}, not a {}", entry.about, role.what())));
        }
        let missing = || refuse(format!("is not on this machine; `sameface models pull {}` brings it", entry.name));
        return in_cache(config, role, entry).ok_or_else(missing);
    }
    if is_repo(given) {
        let snapshots = RepoCache::new(&config.cache, given).snapshots(None);
        let mut paths = snapshots.iter().filter_map(|snapshot| settle(role, snapshot).ok().flatten());
        if let Some(path) = paths.next() {
            return Ok(Found { path, place: Place::Cache });
        }
        let pull = format!("`sameface models pull {given}` looks for a repository of that name");
        return Err(refuse(format!("is neither a path nor in the Hugging Face cache; {pull}")));
    }
    Err(refuse(format!("does not exist; it must be {} (known: {})", role.valid(), catalog::names(Some(role)))))
}

fn locate_default(config: &HubConfig, role: Role) -> Result<Found> {
    let entry = catalog::default_for(role);
    let mut looked = Vec::new();
    if let Some(home) = &config.models {
        let settled = settle(role, home).map_err(|found| ambiguous(role, home, &found))?;
        if let Some(path) = settled {
            return Ok(Found { path, place: Place::Home });
        }
        looked.push(home.display().to_string());
    }
    if let Some(found) = in_cache(config, role, entry) {
        return Ok(found);
    }
    looked.push(config.cache.display().to_string());
    let looked = looked.join(" and ");
    // Face models are of use alone; who lacks anything else will want all of it.
    let pull = if role == Role::FaceModels { "antelopev2" } else { "instantid" };
    Err(Error::NotInstalled { what: role.what(), flag: role.flag(), looked, pull: pull.to_string() })
}

/// The best snapshot of an entry's repositories that holds what the role needs.
fn in_cache(config: &HubConfig, role: Role, entry: &Entry) -> Option<Found> {
    let found = entry.sources.iter().flat_map(|source| {
        let snapshots = RepoCache::new(&config.cache, source.repo).snapshots(Some(source.revision));
        snapshots.into_iter().map(|snapshot| below(&snapshot, source.folder))
    });
    let settled: Vec<PathBuf> = found.filter_map(|folder| settle(role, &folder).ok().flatten()).collect();
    let whole = settled.iter().find(|path| lacks(role, path).is_none());
    whole.or(settled.first()).map(|path| Found { path: path.clone(), place: Place::Cache })
}

fn ambiguous(role: Role, folder: &Path, found: &[PathBuf]) -> Error {
    let names = found.iter().map(|path| {
        let name = path.strip_prefix(folder).unwrap_or(path);
        name.display().to_string()
    });
    let mut found: Vec<String> = names.take(6).collect();
    if found.len() == 6 {
        found[5] = "...".to_string();
    }
    Error::Ambiguous { what: role.what(), flag: role.flag(), folder: folder.to_path_buf(), found: found.join(", ") }
}

/// An entry of the catalogue and its state on this machine.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The entry.
    pub entry: &'static Entry,
    /// Where it lies, complete or not.
    pub path: Option<PathBuf>,
    /// Files of it that are not there; all of them when `path` is `None`.
    pub missing: usize,
}

/// Every named model and whether it is in the hub's cache.
pub fn list(config: &HubConfig) -> Vec<Listing> {
    catalog::ENTRIES.iter().map(|entry| listing(config, entry)).collect()
}

fn listing(config: &HubConfig, entry: &'static Entry) -> Listing {
    let folders = entry.sources.iter().flat_map(|source| {
        let snapshots = RepoCache::new(&config.cache, source.repo).snapshots(Some(source.revision));
        snapshots.into_iter().map(|snapshot| below(&snapshot, source.folder))
    });
    let counted = folders.map(|folder| {
        let there = |file: &&catalog::File| {
            let sha256 = file.sha256.map(str::to_string);
            !is_here(&folder, &Wanted { path: file.path.to_string(), bytes: Some(file.bytes), sha256 })
        };
        (entry.files.iter().filter(there).count(), folder.clone())
    });
    let best = counted.filter(|(missing, _)| *missing < entry.files.len()).min_by_key(|(missing, _)| *missing);
    match best {
        Some((missing, path)) => Listing { entry, path: Some(path), missing },
        None => Listing { entry, path: None, missing: entry.files.len() },
    }
}

/// The folder of a named model, or of a repository in the cache.
pub fn path_of(config: &HubConfig, name: &str) -> Result<PathBuf> {
    let not_here = || Error::Given {
        flag: "model",
        given: name.to_string(),
        why: format!("is not on this machine; `sameface models pull {name}` brings it"),
    };
    if let Some(entry) = catalog::entry(name) {
        let listing = listing(config, entry);
        let path = listing.path.ok_or_else(not_here)?;
        if listing.missing > 0 {
            let lacks = format!("{} of {} files", listing.missing, entry.files.len());
            return Err(Error::Incomplete { what: entry.name, folder: path, lacks, pull: entry.name.to_string() });
        }
        return Ok(path);
    }
    if !is_repo(name) {
        return Err(Error::UnknownModel { name: name.to_string(), known: catalog::names(None) });
    }
    RepoCache::new(&config.cache, name).snapshots(None).into_iter().next().ok_or_else(not_here)
}
