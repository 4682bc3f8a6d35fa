//! Named tensors, the walk through their names, and the marks of what has been used.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::source::{Source, Storage};
use crate::stored::Stored;
use crate::view::{Data, View};

/// Named tensors from one or several files, or random ones. Cloning shares tensors and marks.
#[derive(Clone)]
pub struct Weights {
    table: Arc<Table>,
}

struct Table {
    /// Where the tensors came from, for messages.
    file: Arc<str>,
    /// What the names of a sub-tree lack, so that messages can give them as the file has them.
    below: String,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    /// Answers every question with random values.
    random: Option<u64>,
}

/// A tensor with its mark. Several names may share one mark: those that a sub-tree or a key map gave to the same tensor.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) tensor: Arc<Stored>,
    used: Arc<AtomicBool>,
}

impl Entry {
    pub(crate) fn new(tensor: Stored) -> Entry {
        Entry { tensor: Arc::new(tensor), used: Arc::default() }
    }

    /// Another window on the same tensor, under the same mark.
    pub(crate) fn window(&self, tensor: Stored) -> Entry {
        Entry { tensor: Arc::new(tensor), used: self.used.clone() }
    }

    pub(crate) fn mark(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

impl Weights {
    /// Opens a weights file, whatever its name, since the bytes tell the format; or the folder of a component.
    ///
    /// # Errors
    /// Anything wrong with the file or folder, in a sentence that names it.
    pub fn open(path: &Path) -> Result<Weights> {
        if path.is_dir() { crate::folder::open(path) } else { crate::file::open(path) }
    }

    /// Reads a weights file that lies in memory, such as one built into the program.
    ///
    /// # Errors
    /// As for [`Weights::open`]; `name` stands for the path.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Weights> {
        crate::file::read(Arc::new(Source::memory(name, bytes.into())))
    }

    /// Weights that answer any [`Scope::get`] with small pseudo-random values, for benchmarks.
    pub fn random(seed: u64) -> Weights {
        Weights::build(Arc::from("random weights"), BTreeMap::new(), BTreeMap::new(), Some(seed))
    }

    /// Weights from memory: (name, shape, values). For tests and for tensors that were computed.
    ///
    /// # Errors
    /// [`Error::Misshapen`] when the number of values is not the shape's.
    pub fn from_f32(file: &str, tensors: impl IntoIterator<Item = (String, Vec<usize>, Vec<f32>)>) -> Result<Weights> {
        let mut entries = BTreeMap::new();
        for (name, shape, values) in tensors {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let misshapen = Error::Misshapen {
                name: name.clone(),
                file: file.to_owned(),
                found: vec![values.len()],
                expected: shape.clone(),
            };
            let source = Arc::new(Source::memory(file, bytes.into()));
            let storage = Storage { start: 0, len: source.len(), source, checksum: None };
            match Stored::contiguous(storage, Dtype::F32, shape) {
                Ok(tensor) if tensor.len() == values.len() => entries.insert(name, Entry::new(tensor)),
                _ => return Err(misshapen),
            };
        }
        Ok(Weights::build(Arc::from(file), entries, BTreeMap::new(), None))
    }

    pub(crate) fn new(file: &str, entries: BTreeMap<String, Entry>, metadata: BTreeMap<String, String>) -> Weights {
        Weights::build(Arc::from(file), entries, metadata, None)
    }

    fn build(
        file: Arc<str>,
        entries: BTreeMap<String, Entry>,
        metadata: BTreeMap<String, String>,
        random: Option<u64>,
    ) -> Weights {
        Weights { table: Arc::new(Table { file, below: String::new(), entries, metadata, random }) }
    }

    /// The same origin and metadata with other names, as a key map gives them.
    pub(crate) fn with_entries(&self, entries: BTreeMap<String, Entry>) -> Weights {
        Weights::build(self.table.file.clone(), entries, self.table.metadata.clone(), self.table.random)
    }

    pub(crate) fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.table.entries
    }

    /// Where the tensors came from, as messages name it.
    pub fn file(&self) -> &str {
        &self.table.file
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.table.entries.keys().map(String::as_str).collect()
    }

    /// The scope without a prefix.
    pub fn root(&self) -> Scope {
        Scope { table: self.table.clone(), prefix: String::new() }
    }

    /// The names of the tensors that nobody has taken or ignored.
    pub fn unused(&self) -> Vec<String> {
        let unused = self.table.entries.iter().filter(|(_, entry)| !entry.used.load(Ordering::Relaxed));
        unused.map(|(name, _)| name.clone()).collect()
    }

    /// What a safetensors header says under `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.table.metadata
    }

    /// The tensors below `prefix.`, without it. Marks are shared.
    pub fn select(&self, prefix: &str) -> Weights {
        let start = if prefix.is_empty() || prefix.ends_with('.') { prefix.to_owned() } else { format!("{prefix}.") };
        let below = self.table.entries.range(start.clone()..).take_while(|(name, _)| name.starts_with(&start));
        let entries = below.map(|(name, entry)| (name[start.len()..].to_owned(), entry.clone())).collect();
        let Table { file, below, metadata, random, .. } = &*self.table;
        let (file, metadata, below) = (file.clone(), metadata.clone(), format!("{below}{start}"));
        Weights { table: Arc::new(Table { file, below, entries, metadata, random: *random }) }
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({}, {} tensors)", self.table.file, self.table.entries.len())
    }
}

/// A place in the tree of names: weights and a prefix.
#[derive(Clone)]
pub struct Scope {
    table: Arc<Table>,
    prefix: String,
}

impl Scope {
    /// The scope one or more components further down.
    pub fn push(&self, part: impl Display) -> Scope {
        Scope { table: self.table.clone(), prefix: self.name(&part.to_string()) }
    }

    /// The full name of `leaf` here.
    pub fn name(&self, leaf: &str) -> String {
        match (self.prefix.as_str(), leaf) {
            ("", leaf) => leaf.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, leaf) => format!("{prefix}.{leaf}"),
        }
    }

    /// Where the tensors came from, as messages name it.
    pub fn file(&self) -> &str {
        &self.table.file
    }

    /// Whether the values are random, so that sizes can only come from a configuration.
    pub fn is_random(&self) -> bool {
        self.table.random.is_some()
    }

    /// Whether the tensor is there; always true for random weights.
    pub fn has(&self, leaf: &str) -> bool {
        self.table.random.is_some() || self.entry(leaf).is_some()
    }

    /// The tensor's shape; none for random weights.
    pub fn shape(&self, leaf: &str) -> Option<Vec<usize>> {
        self.entry(leaf).map(|entry| entry.tensor.shape.clone())
    }

    /// The type in which the tensor is stored; none for random weights.
    pub fn dtype(&self, leaf: &str) -> Option<Dtype> {
        self.entry(leaf).map(|entry| entry.tensor.dtype)
    }

    /// The next components of the names below, each once, numbers in order of value and before words.
    pub fn children(&self) -> Vec<String> {
        let start = if self.prefix.is_empty() { String::new() } else { format!("{}.", self.prefix) };
        let below = self.table.entries.range(start.clone()..).take_while(|(name, _)| name.starts_with(&start));
        let mut parts: Vec<&str> = below.map(|(name, _)| name[start.len()..].split('.').next().unwrap_or("")).collect();
        parts.sort_by_key(|part| (part.parse::<u64>().unwrap_or(u64::MAX), *part));
        parts.dedup();
        parts.into_iter().map(str::to_owned).collect()
    }

    /// The tensor of floating-point numbers with this shape, marked as used.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Misshapen`] or [`Error::NotFloat`], naming the tensor and what was asked for.
    pub fn get(&self, leaf: &str, shape: &[usize]) -> Result<View> {
        if let Some(seed) = self.table.random {
            return Ok(self.view(leaf, Data::Random { seed, shape: shape.to_vec() }));
        }
        let Some(entry) = self.entry(leaf) else {
            return Err(self.missing(leaf, Some(shape.to_vec())));
        };
        if entry.tensor.shape != shape {
            return Err(Error::Misshapen {
                name: self.shown(leaf),
                file: self.table.file.to_string(),
                found: entry.tensor.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        if !entry.tensor.dtype.is_float() {
            let (file, found) = (self.table.file.to_string(), entry.tensor.dtype);
            return Err(Error::NotFloat { name: self.shown(leaf), file, found });
        }
        entry.mark();
        Ok(self.view(leaf, Data::Stored(entry.tensor.clone())))
    }

    /// The tensor whatever its shape, marked as used.
    ///
    /// # Errors
    /// [`Error::Missing`]; always for random weights, which have no shape of their own.
    pub fn get_any(&self, leaf: &str) -> Result<View> {
        let entry = self.entry(leaf).ok_or_else(|| self.missing(leaf, None))?;
        entry.mark();
        Ok(self.view(leaf, Data::Stored(entry.tensor.clone())))
    }

    /// Marks a tensor that is known and not needed.
    pub fn ignore(&self, leaf: &str) {
        if let Some(entry) = self.entry(leaf) {
            entry.mark();
        }
    }

    /// The name as the file has it, for messages.
    fn shown(&self, leaf: &str) -> String {
        format!("{}{}", self.table.below, self.name(leaf))
    }

    fn entry(&self, leaf: &str) -> Option<&Entry> {
        self.table.entries.get(&self.name(leaf))
    }

    fn view(&self, leaf: &str, data: Data) -> View {
        View { name: self.shown(leaf), file: self.table.file.clone(), data }
    }

    fn missing(&self, leaf: &str, expected: Option<Vec<usize>>) -> Error {
        Error::Missing { name: self.shown(leaf), file: self.table.file.to_string(), expected }
    }
}
