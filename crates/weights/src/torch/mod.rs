//! What `torch.save` writes since PyTorch 1.6: a zip of stored records, one of them a pickle that says how tensors are
//! cut from the others.
//!
//! The pickle is read by an interpreter that knows the few instructions and names that tensors need and refuses all
//! others by name; nothing in it is ever called. The layout follows PyTorch's `torch/serialization.py` and
//! `caffe2/serialize/inline_container.cc`.

mod archive;
mod machine;
mod names;
mod opcodes;
mod values;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Quoted, Result};
use crate::source::Source;
use crate::stored::Stored;
use crate::table::{Entry, Weights};

use archive::Archive;
use machine::Machine;

const FORMAT: &str = "PyTorch";
/// A pickle holds names and shapes only; SDXL's takes half a megabyte.
const LONGEST_PICKLE: u64 = 32 << 20;

/// Reads a zip file that `torch.save` wrote.
pub(crate) fn read(source: Arc<Source>) -> Result<Weights> {
    let path = source.path().to_owned();
    let archive = Archive::read(source)?;
    let prefix = find_pickle(&path, &archive)?;
    check_byte_order(&path, &archive, &prefix)?;

    let record = archive.record(&format!("{prefix}data.pkl"))?;
    if record.len > LONGEST_PICKLE {
        let reason = format!("its data.pkl has {} bytes and at most {LONGEST_PICKLE} are read", record.len);
        return Err(Error::malformed(&path, FORMAT, reason));
    }
    let pickle = archive.read_record(record)?;
    let machine = Machine::run(&pickle).map_err(|refusal| refusal.into_error(&path))?;
    let tensors = names::flatten(&machine).map_err(|refusal| refusal.into_error(&path))?;

    let mut entries = BTreeMap::new();
    for (name, cut) in tensors {
        let record = archive.record(&format!("{prefix}data/{}", machine.text(cut.storage.key)))?;
        let bad = |reason: String| Error::malformed(&path, FORMAT, format!("{}: {reason}", Quoted(&name)));
        // Tensors are held against what their storage claims to hold, and that against what the record holds.
        let claimed = cut
            .storage
            .bytes()
            .filter(|&bytes| bytes <= record.len)
            .ok_or_else(|| bad(format!("its storage claims more than the {} bytes of its record", record.len)))?;
        let tensor = Stored::strided(
            archive.storage(record, claimed),
            cut.dtype,
            cut.shape.to_vec(),
            cut.strides.to_vec(),
            cut.offset,
        )
        .map_err(bad)?;
        entries.insert(name, Entry::new(tensor));
    }
    Ok(Weights::new(&path.display().to_string(), entries, BTreeMap::new()))
}

/// The folder inside the archive that holds `data.pkl`, with its slash.
fn find_pickle(path: &Path, archive: &Archive) -> Result<String> {
    let mut found = archive.names().filter_map(|name| {
        let prefix = name.strip_suffix("data.pkl")?;
        (prefix.is_empty() || prefix.ends_with('/') && prefix.matches('/').count() == 1).then_some(prefix)
    });
    let Some(prefix) = found.next() else {
        return Err(Error::unsupported(path, "it is a zip file without data.pkl, so not one that torch.save wrote"));
    };
    if found.next().is_some() {
        return Err(Error::malformed(path, FORMAT, "it holds several data.pkl"));
    }
    if archive.has(&format!("{prefix}constants.pkl")) {
        let reason = "it is a TorchScript program and not a set of weights; \
                      save its state_dict() as safetensors and load that";
        return Err(Error::unsupported(path, reason));
    }
    Ok(prefix.to_owned())
}

fn check_byte_order(path: &Path, archive: &Archive, prefix: &str) -> Result<()> {
    let name = format!("{prefix}byteorder");
    if !archive.has(&name) {
        return Ok(());
    }
    let record = archive.record(&name)?;
    if record.len <= 16 && archive.read_record(record)? == b"little" {
        return Ok(());
    }
    Err(Error::unsupported(path, "its byte order is not little-endian; save it again on a little-endian machine"))
}
