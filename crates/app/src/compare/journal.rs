//! What a comparison has made so far, kept in its folder, so that a long one survives being stopped: the same command
//! goes on where it was, and what several machines made is joined.
//!
//! `comparison.json` says what is compared, `settings.json` with which models and settings pictures were made, and
//! `results.jsonl` has a line for each finished picture, written after the picture itself.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use ::compare::Measures;
use serde_json::{Value, json};

use crate::fault::Fault;

const ASKED: &str = "comparison.json";
const SETTINGS: &str = "settings.json";
const RESULTS: &str = "results.jsonl";

/// A finished picture.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) measures: Measures,
    line: Value,
}

/// The record of a folder, which no other process writes to meanwhile.
pub(crate) struct Journal {
    folder: PathBuf,
    asked: Value,
    settings: Option<Value>,
    results: File,
    entries: BTreeMap<String, Entry>,
}

impl Journal {
    /// Refuses a place that holds anything else, before the work begins.
    pub(crate) fn check(folder: &Path) -> Result<(), Fault> {
        let sentence = |why: &str| Fault::Given(format!("-o {}: {why}", folder.display()));
        if folder.exists() && !folder.is_dir() {
            return Err(sentence("is a file; name a new or empty folder"));
        }
        let holds_something = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
        if holds_something && !folder.join(ASKED).is_file() {
            return Err(sentence("holds something already that is no comparison; name a new or empty folder"));
        }
        Ok(engine::Target::check_file(&folder.join("table.json"))?)
    }

    /// Begins the record of what is `asked` in a folder, or takes up the one that is there.
    pub(crate) fn open(folder: &Path, asked: Value) -> Result<Journal, Fault> {
        let pictures = folder.join("pictures");
        std::fs::create_dir_all(&pictures).map_err(unwritten(&pictures))?;
        let path = folder.join(RESULTS);
        let results = OpenOptions::new().create(true).append(true).read(true).open(&path).map_err(unwritten(&path))?;
        match results.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(Fault::Given(format!(
                    "-o {}: another sameface is at work there; give this one another folder, and join them with --from",
                    folder.display()
                )));
            }
            // A file system without locks is no reason to refuse.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        match read(&folder.join(ASKED))? {
            Some(there) => same(&there, &asked, &format!("-o {}", folder.display()))?,
            None => write(&folder.join(ASKED), &asked)?,
        }
        let settings = read(&folder.join(SETTINGS))?;
        let mut journal = Journal { folder: folder.to_path_buf(), asked, settings, results, entries: BTreeMap::new() };
        journal.take_up(&path)?;
        Ok(journal)
    }

    /// Reads the lines that are there. One that was cut off while it was written is taken away.
    fn take_up(&mut self, path: &Path) -> Result<(), Fault> {
        let mut text = Vec::new();
        self.results.read_to_end(&mut text).map_err(|e| Fault::Here(format!("{}: {e}", path.display())))?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            self.results.set_len(whole as u64).map_err(unwritten(path))?;
        }
        self.entries = entries(&text[..whole], &self.folder);
        Ok(())
    }

    /// Refuses a folder that holds nothing of what is `asked`, before anything is begun.
    pub(crate) fn check_source(from: &Path, asked: &Value) -> Result<(), Fault> {
        let name = format!("--from {}", from.display());
        match read(&from.join(ASKED))? {
            Some(theirs) => same(&theirs, asked, &name),
            None => Err(Fault::Given(format!("{name}: is no folder of a comparison; it has no {ASKED}"))),
        }
    }

    /// Takes over what the same comparison made in another folder; says how many pictures came.
    pub(crate) fn join(&mut self, from: &Path) -> Result<usize, Fault> {
        Journal::check_source(from, &self.asked)?;
        let name = format!("--from {}", from.display());
        if let Some(settings) = read(&from.join(SETTINGS))? {
            self.settle(&settings, &name)?;
        }
        let text = std::fs::read(from.join(RESULTS)).unwrap_or_default();
        let mut count = 0;
        for (path, entry) in entries(&text, from) {
            if !self.entries.contains_key(&path) {
                let picture =
                    std::fs::read(from.join(&path)).map_err(|e| Fault::Given(format!("{name}: {path}: {e}")))?;
                self.add(&path, &picture, entry)?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// Notes with what the first picture was made; refuses others made with anything else.
    pub(crate) fn settle(&mut self, settings: &Value, name: &str) -> Result<(), Fault> {
        match &self.settings {
            Some(there) => same(there, settings, name),
            None => {
                write(&self.folder.join(SETTINGS), settings)?;
                self.settings = Some(settings.clone());
                Ok(())
            }
        }
    }

    /// With what the pictures were made.
    pub(crate) fn settings(&self) -> Value {
        self.settings.clone().unwrap_or(Value::Null)
    }

    /// A picture that is finished.
    pub(crate) fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// Keeps a picture, and then the line that says so.
    pub(crate) fn add(&mut self, path: &str, picture: &[u8], entry: Entry) -> Result<(), Fault> {
        engine::write_atomically(&self.folder.join(path), picture)?;
        let line = format!("{}\n", entry.line);
        let results = self.folder.join(RESULTS);
        self.results.write_all(line.as_bytes()).and_then(|()| self.results.sync_data()).map_err(unwritten(&results))?;
        self.entries.insert(path.to_string(), entry);
        Ok(())
    }
}

impl Entry {
    /// What is told of a picture: its measures, and which it is.
    pub(crate) fn new(seed: u64, measures: Measures, mut about: Value, path: &str) -> Entry {
        if let (Some(about), Value::Object(measures)) = (about.as_object_mut(), json!(measures)) {
            about.extend(measures);
            about.insert("seed".into(), json!(seed));
            about.insert("path".into(), json!(path));
        }
        Entry { measures, line: about }
    }

    /// The same as an object.
    pub(crate) fn line(&self) -> &Value {
        &self.line
    }
}

/// The finished pictures by their paths; a line that cannot be read, or whose picture is gone, counts as not made.
fn entries(text: &[u8], folder: &Path) -> BTreeMap<String, Entry> {
    let read = |line: &[u8]| {
        let line: Value = serde_json::from_slice(line).ok()?;
        let path = line["path"].as_str().filter(|path| is_ours(path) && folder.join(path).is_file())?.to_string();
        let measures = serde_json::from_value(line.clone()).ok()?;
        Some((path, Entry { measures, line }))
    };
    text.split(|byte| *byte == b'\n').filter_map(read).collect()
}

/// A name that `compare` gives; a record from elsewhere must not lead out of its folder.
fn is_ours(path: &str) -> bool {
    path.strip_prefix("pictures/").is_some_and(|name| !name.contains(['/', '\\', ':']) && name.ends_with(".png"))
}

/// Refuses to mix two comparisons, naming what differs.
fn same(there: &Value, here: &Value, name: &str) -> Result<(), Fault> {
    let Some((what, there, here)) = difference(there, here, "") else { return Ok(()) };
    let short = |value: &Value| {
        let text = value.to_string();
        if text.chars().count() > 60 { format!("{}...", text.chars().take(57).collect::<String>()) } else { text }
    };
    Err(Fault::Given(format!(
        "{name}: holds another comparison: `{what}` is {} there and {} here; name another folder",
        short(&there),
        short(&here)
    )))
}

/// The first place in which two records differ.
fn difference(there: &Value, here: &Value, at: &str) -> Option<(String, Value, Value)> {
    let inner = |key: String| if at.is_empty() { key } else { format!("{at}.{key}") };
    match (there, here) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            keys.into_iter().find_map(|key| difference(&there[key], &here[key], &inner(key.clone())))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| difference(a, b, &inner(i.to_string())))
        }
        _ if there == here => None,
        _ => Some((at.to_string(), there.clone(), here.clone())),
    }
}

fn read(path: &Path) -> Result<Option<Value>, Fault> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Fault::Given(format!("{} could not be read: {error}", path.display()))),
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| Fault::Given(format!("{} cannot be used: {error}", path.display()))),
    }
}

fn write(path: &Path, value: &Value) -> Result<(), Fault> {
    Ok(engine::write_atomically(path, serde_json::to_string_pretty(value).unwrap_or_default().as_bytes())?)
}

fn unwritten(path: &Path) -> impl FnOnce(std::io::Error) -> Fault {
    let name = path.display().to_string();
    move |error| Fault::Here(format!("{name} could not be written: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Entry {
        let measures = json!({"found": true, "sim_ref": 0.1 + 0.2, "sim_gt": null, "copy_paste": null, "top1": true,
            "sim_stranger": null, "text": 0.7, "keypoint_error": null, "seconds": 1.5});
        Entry::new(7, serde_json::from_value(measures).unwrap(), json!({"face": "ada"}), path)
    }

    #[test]
    fn what_was_written_is_there_again_and_a_torn_line_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |i: usize| format!("pictures/{i:03}-00-text.png");
        let mut journal = Journal::open(folder.path(), json!({"steps": 2})).unwrap();
        (0..3).for_each(|i| journal.add(&path(i), b"png", entry(&path(i))).unwrap());
        drop(journal);
        let results = folder.path().join(RESULTS);
        let mut text = std::fs::read(&results).unwrap();
        text.truncate(text.len() - 20);
        std::fs::write(&results, &text).unwrap();
        std::fs::remove_file(folder.path().join(path(1))).unwrap();
        let mut journal = Journal::open(folder.path(), json!({"steps": 2})).unwrap();
        assert_eq!([0, 1, 2].map(|i| journal.get(&path(i)).is_some()), [true, false, false]);
        assert_eq!(journal.get(&path(0)).unwrap().measures, entry(&path(0)).measures, "to the last digit");
        journal.add(&path(2), b"png", entry(&path(2))).unwrap();
        drop(journal);
        assert!(Journal::open(folder.path(), json!({"steps": 2})).unwrap().get(&path(2)).is_some());
    }

    #[test]
    fn two_comparisons_are_not_mixed_and_two_processes_do_not_write_one() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), json!({"faces": [{"name": "ada"}], "steps": 2})).unwrap();
        let again = |asked| Journal::open(folder.path(), asked).map(|_| ()).unwrap_err().to_string();
        assert!(again(json!({})).contains("another sameface is at work"));
        drop(journal);
        let said = again(json!({"faces": [{"name": "eve"}], "steps": 2}));
        assert!(said.contains("`faces.0.name` is \"ada\" there and \"eve\" here"), "{said}");
        assert!(again(json!({"faces": [{"name": "ada"}]})).contains("`steps` is 2 there and null here"));
    }

    #[test]
    fn folders_of_one_comparison_are_joined() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let asked = json!({"steps": 2});
        let mut first = Journal::open(one.path(), asked.clone()).unwrap();
        first.add("pictures/a.png", b"first", entry("pictures/a.png")).unwrap();
        let mut second = Journal::open(two.path(), asked).unwrap();
        second.settle(&json!({"device": "cpu"}), "x").unwrap();
        second.add("pictures/a.png", b"second", entry("pictures/a.png")).unwrap();
        second.add("pictures/b.png", b"second", entry("pictures/b.png")).unwrap();
        assert_eq!(first.join(two.path()).unwrap(), 1);
        assert_eq!(std::fs::read(one.path().join("pictures/a.png")).unwrap(), b"first");
        assert!(first.get("pictures/b.png").is_some() && one.path().join("pictures/b.png").is_file());
        let other = first.settle(&json!({"device": "cuda:0"}), "--from x").unwrap_err().to_string();
        assert!(other.contains("`device` is \"cpu\" there and \"cuda:0\" here"), "{other}");
        assert!(first.join(&two.path().join("none")).is_err());
    }

    /// A folder from elsewhere can hold anything: what is taken up are pictures of ours, and the rest is a sentence.
    #[test]
    fn damaged_records_are_taken_up_or_refused() {
        let (whole, damaged, target) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let asked = json!({"faces": [{"name": "ada"}], "steps": 2});
        let mut journal = Journal::open(whole.path(), asked.clone()).unwrap();
        journal.settle(&json!({"device": "cpu"}), "x").unwrap();
        for i in 0..3 {
            let path = format!("pictures/{i:03}-00-text.png");
            journal.add(&path, b"png", entry(&path)).unwrap();
        }
        drop(journal);
        std::fs::create_dir(damaged.path().join("pictures")).unwrap();
        for i in 0..3 {
            std::fs::write(damaged.path().join(format!("pictures/{i:03}-00-text.png")), "png").unwrap();
        }
        let (mut state, mut taken) = (0x9e37_79b9_7f4a_7c15_u64, 0);
        let mut below = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as usize % n.max(1)
        };
        for _ in 0..300 {
            for name in [ASKED, SETTINGS, RESULTS] {
                let mut text = std::fs::read(whole.path().join(name)).unwrap();
                for _ in 0..below(3) {
                    let at = below(text.len());
                    match below(4) {
                        0 => text.truncate(at),
                        1 => text.insert(at, b"\"{}[]:,0../\\\n\xff"[below(14)]),
                        _ => text[at] = b"\"{}[]:,0../\\\n\xff"[below(14)],
                    }
                    if text.is_empty() {
                        break;
                    }
                }
                std::fs::write(damaged.path().join(name), text).unwrap();
            }
            let mut journal = Journal::open(target.path(), asked.clone()).unwrap();
            match journal.join(damaged.path()) {
                Ok(count) => taken += count,
                Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
            }
            assert!(journal.entries.keys().all(|path| is_ours(path)));
            drop(journal);
            for name in [SETTINGS, RESULTS, "pictures"] {
                let path = target.path().join(name);
                let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
            }
            assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 1, "nothing else was written");
        }
        assert!(taken > 30, "{taken}");
    }

    #[test]
    fn a_record_leads_nowhere_else() {
        for (path, ours) in
            [("pictures/000-00-text.png", true), ("pictures/../../x.png", false), ("/x.png", false), ("x.png", false)]
        {
            assert_eq!(is_ours(path), ours, "{path}");
        }
    }
}
