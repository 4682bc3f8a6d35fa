//! The safetensors format: eight bytes of header length, a JSON header, then the tensors without gaps.
//!
//! Follows the rules of the format's own description: header of at most 100 MB, ranges sorted and gap-free, each range as
//! long as its shape and type say, nothing after the last one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::dtype::Dtype;
use crate::error::{Error, Quoted, Result};
use crate::source::{Source, Storage};
use crate::stored::{MOST_AXES, Stored, count};
use crate::table::{Entry, Weights};

const FORMAT: &str = "safetensors";
const LONGEST_HEADER: u64 = 100_000_000;

/// Reads a safetensors file; the tensors' bytes stay in it.
pub(crate) fn read(source: Arc<Source>) -> Result<Weights> {
    let path = source.path().to_owned();
    let bad = |reason: String| Error::malformed(&path, FORMAT, reason);

    if source.len() < 8 {
        return Err(source.truncated(8));
    }
    let mut length = [0; 8];
    source.read(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(bad(format!("its header claims {length} bytes and at most {LONGEST_HEADER} are allowed")));
    }
    let start = 8 + length;
    if start > source.len() {
        return Err(source.truncated(start));
    }
    let json = source.read_vec(8, length as usize)?;
    let header: Header = serde_json::from_slice(&json).map_err(|e| bad(format!("its header is wrong: {e}")))?;
    drop(json);

    let end = check_ranges(&header.tensors).map_err(bad)?;
    let need = start.checked_add(end).ok_or_else(|| bad(format!("it claims {end} bytes of tensors")))?;
    if need > source.len() {
        return Err(source.truncated(need));
    }
    if need < source.len() {
        return Err(bad(format!("{} bytes follow its last tensor", source.len() - need)));
    }

    let mut entries = BTreeMap::new();
    for (name, info) in header.tensors {
        let storage =
            Storage { source: source.clone(), start: start + info.from, len: info.to - info.from, checksum: None };
        let tensor = Stored::contiguous(storage, info.dtype, info.shape)
            .map_err(|reason| bad(format!("{}: {reason}", Quoted(&name))))?;
        entries.insert(name, Entry::new(tensor));
    }
    Ok(Weights::new(&path.display().to_string(), entries, header.metadata))
}

/// Checks that the ranges follow each other without gap or overlap and are as long as shapes and types say; returns
/// where the last one ends.
fn check_ranges(tensors: &BTreeMap<String, Info>) -> std::result::Result<u64, String> {
    let mut order: Vec<(&String, &Info)> = tensors.iter().collect();
    order.sort_by_key(|(_, info)| (info.from, info.to));
    let mut end = 0;
    for (name, info) in order {
        let name = Quoted(name);
        if info.from != end {
            let what = if info.from > end { "leaves a gap after" } else { "overlaps" };
            return Err(format!("{name} starts at {} and {what} the tensor that ends at {end}", info.from));
        }
        let size = count(&info.shape).and_then(|n| n.checked_mul(info.dtype.size()));
        if size.map(|n| n as u64) != info.to.checked_sub(info.from) {
            return Err(format!(
                "{name} is {} {:?} and its range {}..{} has another size",
                info.dtype, info.shape, info.from, info.to
            ));
        }
        end = info.to;
    }
    Ok(end)
}

#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Info>,
}

struct Info {
    dtype: Dtype,
    shape: Vec<usize>,
    from: u64,
    to: u64,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut header = Header::default();
                let mut has_metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    let twice = if name == "__metadata__" {
                        header.metadata = map.next_value()?;
                        std::mem::replace(&mut has_metadata, true)
                    } else {
                        let info = map.next_value()?;
                        header.tensors.insert(name.clone(), info).is_some()
                    };
                    if twice {
                        return Err(A::Error::custom(format_args!("{} appears twice", Quoted(&name))));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Info {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Info;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a tensor's dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Info, A::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                    match &*key {
                        "dtype" => {
                            let name: String = map.next_value()?;
                            let known = Dtype::from_name(&name);
                            let unknown = || A::Error::custom(format_args!("the type {} is not read", Quoted(&name)));
                            dtype = Some(known.ok_or_else(unknown)?);
                        }
                        "shape" => shape = Some(map.next_value::<Vec<usize>>()?),
                        "data_offsets" => offsets = Some(map.next_value::<(u64, u64)>()?),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                let (Some(dtype), Some(shape), Some((from, to))) = (dtype, shape, offsets) else {
                    return Err(A::Error::custom("a tensor lacks dtype, shape or data_offsets"));
                };
                if shape.len() > MOST_AXES {
                    return Err(A::Error::custom(format_args!(
                        "a tensor has {} axes; at most {MOST_AXES} are read",
                        shape.len()
                    )));
                }
                Ok(Info { dtype, shape, from, to })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}
