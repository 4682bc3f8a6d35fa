//! Vocabularies and merge rules: the embedded one of CLIP, and those in a model's tokenizer folder.
//!
//! `clip_merges.txt` holds the 48,894 merge rules of OpenAI's CLIP (MIT licence), best first; all ids follow from them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use serde_json::Value;

use super::tokenizer::{Added, Ids, Parts, byte_characters, byte_order};
use crate::{Error, Result};

/// Largest vocabulary file read: CLIP's own tokenizer.json has 3.6 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Ids beyond this cannot belong to a text encoder.
const MAX_ID: u64 = 1 << 24;

/// Token texts, ids and merge rules.
#[derive(Debug)]
pub(super) struct Vocabulary {
    ids: Ids,
    /// Ids of the single bytes: within a word, and ending it.
    bytes: [[Option<u32>; 256]; 2],
    /// Pairs of neighbours to their rank and what they become.
    merges: HashMap<(u32, u32), (u32, u32)>,
    largest: u32,
}

impl Vocabulary {
    fn new(ids: Ids, merges: HashMap<(u32, u32), (u32, u32)>) -> Vocabulary {
        let mut bytes = [[None; 256]; 2];
        for (byte, c) in byte_characters().into_iter().enumerate() {
            bytes[0][byte] = ids.get(c.encode_utf8(&mut [0; 4]) as &str).copied();
            bytes[1][byte] = ids.get(&format!("{c}</w>")).copied();
        }
        let largest = ids.values().copied().max().unwrap_or(0);
        Vocabulary { ids, bytes, merges, largest }
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    pub(super) fn byte(&self, byte: u8, ends_word: bool) -> Option<u32> {
        self.bytes[usize::from(ends_word)][usize::from(byte)]
    }

    pub(super) fn merge(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        self.merges.get(&(left, right)).copied()
    }

    pub(super) fn largest_id(&self) -> u32 {
        self.largest
    }
}

static CLIP: LazyLock<Arc<Vocabulary>> = LazyLock::new(|| {
    let characters = byte_characters();
    let bytes: Vec<String> = byte_order().into_iter().map(|b| characters[usize::from(b)].to_string()).collect();
    let mut ids = Ids::with_capacity(49_408);
    let mut add = |token: String| {
        let id = ids.len() as u32;
        ids.insert(token, id);
    };
    bytes.iter().for_each(|b| add(b.clone()));
    bytes.iter().for_each(|b| add(format!("{b}</w>")));
    let rules: Vec<(&str, &str)> =
        include_str!("clip_merges.txt").lines().filter_map(|line| line.split_once(' ')).collect();
    rules.iter().for_each(|(left, right)| add(format!("{left}{right}")));
    add("<|startoftext|>".into());
    add("<|endoftext|>".into());
    let merges = rules
        .iter()
        .enumerate()
        .map(|(rank, (left, right))| ((ids[*left], ids[*right]), (rank as u32, 512 + rank as u32)))
        .collect();
    Arc::new(Vocabulary::new(ids, merges))
});

/// CLIP's vocabulary with a padding token.
pub(super) fn embedded(pad: &str) -> Parts {
    let vocabulary = CLIP.clone();
    let id = |token: &str| vocabulary.id(token).unwrap_or(0);
    let plain =
        |content: &str| Added { id: id(content), content: content.into(), single_word: false, normalized: false };
    let mut added = vec![plain("<|startoftext|>"), plain("<|endoftext|>")];
    if pad != "<|endoftext|>" {
        added.push(plain(pad));
    }
    Parts {
        bos: id("<|startoftext|>"),
        eos: id("<|endoftext|>"),
        pad: id(pad),
        unknown: Some(id("<|endoftext|>")),
        max_length: 77,
        added,
        vocabulary,
    }
}

/// Reads a model's tokenizer folder.
pub(super) fn open(folder: &Path) -> Result<Parts> {
    let json = read_json(&folder.join("tokenizer.json"))?;
    let config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or(Value::Null);
    let map = read_json(&folder.join("special_tokens_map.json"))?.unwrap_or(Value::Null);

    let (mut ids, rules) = match &json {
        Some(json) => from_tokenizer_json(&folder.join("tokenizer.json"), json)?,
        None => from_vocab_and_merges(folder)?,
    };
    let mut added = added_tokens(&config, json.as_ref())?;

    // The four special tokens, in the order in which transformers adds those that the vocabulary lacks.
    let listed = added.len();
    let mut special = [None; 4];
    let defaults = [Some("<|startoftext|>"), Some("<|endoftext|>"), Some("<|endoftext|>"), Some("<|endoftext|>")];
    for (i, key) in ["bos_token", "eos_token", "unk_token", "pad_token"].into_iter().enumerate() {
        let entry = [&config[key], &map[key]].into_iter().find(|v| !v.is_null()).unwrap_or(&Value::Null);
        let content = entry.as_str().or_else(|| entry["content"].as_str()).or(defaults[i]);
        let Some(content) = content.filter(|c| !c.is_empty()) else { continue };
        let known = added.iter().find(|a| a.content == content).map(|a| a.id).or_else(|| ids.get(content).copied());
        let id = known.unwrap_or_else(|| {
            let largest = ids.values().copied().chain(added.iter().map(|a| a.id)).max();
            largest.map_or(0, |id| id + 1)
        });
        ids.entry(content.to_string()).or_insert(id);
        special[i] = Some(id);
        // What is said last counts, unless the list of added tokens has spoken.
        if !added[..listed].iter().any(|a| a.content == content) {
            added.retain(|a| a.content != content);
            added.push(Added {
                id,
                content: content.to_string(),
                single_word: entry["single_word"].as_bool().unwrap_or(false),
                normalized: entry["normalized"].as_bool().unwrap_or(false),
            });
        }
    }
    let [Some(bos), Some(eos), unknown, Some(pad)] = special else {
        return Error::refused(format!("{}: the start, end or padding token is empty", folder.display()));
    };

    // Absent, or 1e30 where nothing was said.
    let max_length =
        config["model_max_length"].as_f64().filter(|n| (3.0..=4096.0).contains(n)).unwrap_or(77.0) as usize;
    let merges = merge_table(folder, &ids, rules)?;
    Ok(Parts { vocabulary: Arc::new(Vocabulary::new(ids, merges)), added, bos, eos, pad, unknown, max_length })
}

type Rules = Vec<(String, String)>;

fn from_tokenizer_json(path: &Path, json: &Value) -> Result<(Ids, Rules)> {
    let broken = |what: &str| Error::Refused(format!("{}: {what}", path.display()));
    let model = &json["model"];
    if let Some(kind) = model["type"].as_str().filter(|kind| *kind != "BPE") {
        return Err(broken(&format!("the tokenizer is of the kind `{kind}`; CLIP's is `BPE`")));
    }
    if let Some(suffix) = model["end_of_word_suffix"].as_str().filter(|s| *s != "</w>") {
        return Err(broken(&format!("`end_of_word_suffix` is `{suffix}`; CLIP's is `</w>`")));
    }
    let ids = ids_of(path, &model["vocab"])?;
    let rules = model["merges"].as_array().ok_or_else(|| broken("`model.merges` is no list"))?;
    let rules = rules
        .iter()
        .map(|rule| match rule {
            Value::String(pair) => pair.split_once(' ').map(|(l, r)| (l.to_string(), r.to_string())),
            pair => Some((pair[0].as_str()?.to_string(), pair[1].as_str()?.to_string())),
        })
        .collect::<Option<Rules>>()
        .ok_or_else(|| broken("an entry of `model.merges` is no pair of tokens"))?;
    Ok((ids, rules))
}

fn from_vocab_and_merges(folder: &Path) -> Result<(Ids, Rules)> {
    let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    let Some(json) = read_json(&vocab)? else {
        return Error::refused(format!(
            "{}: neither tokenizer.json nor vocab.json with merges.txt is there",
            folder.display()
        ));
    };
    let text = read(&merges)?
        .ok_or_else(|| Error::Refused(format!("{}: the file is missing beside vocab.json", merges.display())))?;
    let rules = text
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.trim().is_empty())
        .map(|line| line.split_once(' ').map(|(l, r)| (l.to_string(), r.trim_end().to_string())))
        .collect::<Option<Rules>>()
        .ok_or_else(|| Error::Refused(format!("{}: a line is no pair of tokens", merges.display())))?;
    Ok((ids_of(&vocab, &json)?, rules))
}

fn ids_of(path: &Path, vocab: &Value) -> Result<Ids> {
    let broken = || Error::Refused(format!("{}: the vocabulary is no table of tokens and ids", path.display()));
    let table = vocab.as_object().filter(|t| !t.is_empty()).ok_or_else(broken)?;
    table
        .iter()
        .map(|(token, id)| Some((token.clone(), id.as_u64().filter(|id| *id < MAX_ID)? as u32)))
        .collect::<Option<Ids>>()
        .ok_or_else(broken)
}

fn merge_table(folder: &Path, ids: &Ids, rules: Rules) -> Result<HashMap<(u32, u32), (u32, u32)>> {
    let mut table = HashMap::with_capacity(rules.len());
    for (rank, (left, right)) in rules.into_iter().enumerate() {
        let id = |token: &str| {
            ids.get(token).copied().ok_or_else(|| {
                Error::Refused(format!(
                    "{}: merge rule {} makes `{token}`, which the vocabulary lacks",
                    folder.display(),
                    rank + 1
                ))
            })
        };
        let joined = id(&format!("{left}{right}"))?;
        table.insert((id(&left)?, id(&right)?), (rank as u32, joined));
    }
    Ok(table)
}

/// Tokens that are looked for in the text as wholes: what the configuration lists, else what tokenizer.json lists.
fn added_tokens(config: &Value, json: Option<&Value>) -> Result<Vec<Added>> {
    let one = |id: Option<u64>, entry: &Value| -> Option<Added> {
        Some(Added {
            id: id.filter(|id| *id < MAX_ID)? as u32,
            content: entry["content"].as_str()?.to_string(),
            single_word: entry["single_word"].as_bool().unwrap_or(false),
            normalized: entry["normalized"].as_bool().unwrap_or(false),
        })
    };
    let listed: Option<Vec<Added>> = match (&config["added_tokens_decoder"], json.map(|j| &j["added_tokens"])) {
        (Value::Object(table), _) => table.iter().map(|(id, entry)| one(id.parse().ok(), entry)).collect(),
        (_, Some(Value::Array(list))) => list.iter().map(|entry| one(entry["id"].as_u64(), entry)).collect(),
        _ => Some(Vec::new()),
    };
    listed.ok_or_else(|| Error::Refused("an added token of the tokenizer has no id or no content".into()))
}

fn read(path: &Path) -> Result<Option<String>> {
    let size = match std::fs::metadata(path) {
        Ok(data) => data.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::unread(path)(e)),
    };
    if size > MAX_FILE_BYTES {
        return Error::refused(format!(
            "{}: the file has {size} bytes; a tokenizer's has at most {MAX_FILE_BYTES}",
            path.display()
        ));
    }
    std::fs::read_to_string(path).map(Some).map_err(Error::unread(path))
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(text) = read(path)? else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Error::Refused(format!("{} is not valid JSON: {e}", path.display())))
}
