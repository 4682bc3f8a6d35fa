//! The zip container, as strictly as PyTorch writes it: stored records only, each in one place, none over another.
//!
//! Strict because two readers that disagree on a zip file are a way past a scanner. Structure: PKWARE's APPNOTE.TXT,
//! sections 4.3 (headers) and 4.5.3 (zip64).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Quoted, Result};
use crate::source::{Checksum, Source, Storage};

const FORMAT: &str = "zip";
const LONGEST_DIRECTORY: u64 = 16 << 20;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
const ENCRYPTED: u16 = 1;
const SIZES_FOLLOW: u16 = 8;

/// The records of a zip file by name.
pub(super) struct Archive {
    source: Arc<Source>,
    records: BTreeMap<String, Record>,
}

/// Where a stored record lies.
pub(super) struct Record {
    start: u64,
    pub(super) len: u64,
    compressed: bool,
    checksum: Arc<Checksum>,
}

/// What the central directory says of a record.
struct Listed {
    header: u64,
    /// Bytes in the file.
    packed: u64,
    len: u64,
    crc: u32,
    method: u16,
}

impl Archive {
    pub(super) fn read(source: Arc<Source>) -> Result<Archive> {
        let path = source.path().to_owned();
        let (at, size, count) = find_directory(&source)?;
        let directory = source.read_vec(at, size as usize)?;
        let listed = list(&directory, count).map_err(|reason| Error::malformed(&path, FORMAT, reason))?;
        drop(directory);
        let records = locate(&source, listed, at)?;
        Ok(Archive { source, records })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.records.keys().map(String::as_str)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.records.contains_key(name)
    }

    /// The record of this name. TorchScript files compress their code, so compression is refused here only.
    pub(super) fn record(&self, name: &str) -> Result<&Record> {
        let bad = |what: &str| Error::malformed(self.path(), FORMAT, format!("the record {} {what}", Quoted(name)));
        match self.records.get(name) {
            None => Err(bad("is missing")),
            Some(Record { compressed: true, .. }) => {
                Err(bad("is compressed, which torch.save never does; store it uncompressed"))
            }
            Some(record) => Ok(record),
        }
    }

    /// The first `len` bytes of a record, to be read later. The check sum is that of the whole record.
    pub(super) fn storage(&self, record: &Record, len: u64) -> Storage {
        Storage { source: self.source.clone(), start: record.start, len, checksum: Some(record.checksum.clone()) }
    }

    /// All bytes of a record that the caller has bounded, with its check sum compared.
    pub(super) fn read_record(&self, record: &Record) -> Result<Vec<u8>> {
        record.checksum.verify(&self.source)?;
        self.source.read_vec(record.start, record.len as usize)
    }

    fn path(&self) -> &Path {
        self.source.path()
    }
}

/// Offset, size and number of entries of the central directory.
fn find_directory(source: &Source) -> Result<(u64, u64, u64)> {
    let path: PathBuf = source.path().to_owned();
    let bad = |reason: &str| Error::malformed(&path, FORMAT, reason);
    let cut = "its directory is missing; the file is truncated or no zip file: fetch it again";

    // The end record is 22 bytes and a comment of at most 65535, which must reach the end of the file.
    let tail_len = source.len().min(22 + 0xffff);
    let tail_at = source.len() - tail_len;
    let tail = source.read_vec(tail_at, tail_len as usize)?;
    let end = (0..(tail.len() + 1).saturating_sub(22)).rev().find(|&at| {
        let mut fields = Fields(&tail[at..]);
        fields.u32() == Some(END)
            && fields.skip(16).is_some()
            && fields.u16().is_some_and(|comment| at + 22 + comment as usize == tail.len())
    });
    let end = end.ok_or_else(|| bad(cut))?;
    let mut fields = Fields(&tail[end + 4..]);
    let disks = (fields.u16(), fields.u16());
    let (_, Some(count), Some(size), Some(at)) = (fields.u16(), fields.u16(), fields.u32(), fields.u32()) else {
        return Err(bad(cut));
    };
    if disks != (Some(0), Some(0)) {
        return Err(bad("it is one part of several"));
    }
    let (mut at, mut size, mut count) = (at as u64, size as u64, count as u64);
    let mut directory_end = tail_at + end as u64;

    let locator_at = directory_end.checked_sub(20);
    let locator = locator_at.map(|at| source.read_vec(at, 20)).transpose()?.unwrap_or_default();
    let mut fields = Fields(&locator);
    if fields.u32() == Some(LOCATOR_64) {
        let (Some(_), Some(end_at)) = (fields.u32(), fields.u64()) else {
            return Err(bad(cut));
        };
        if end_at.checked_add(56).is_none_or(|end| end > directory_end) {
            return Err(bad("its zip64 directory lies outside the file"));
        }
        let end = source.read_vec(end_at, 56)?;
        let mut fields = Fields(&end);
        if fields.u32() != Some(END_64) || fields.skip(28).is_none() {
            return Err(bad("its zip64 directory is damaged"));
        }
        let (Some(count_64), Some(size_64), Some(at_64)) = (fields.u64(), fields.u64(), fields.u64()) else {
            return Err(bad(cut));
        };
        let agrees = |short: u64, long: u64, escape: u64| short == long || short == escape;
        if !agrees(count, count_64, 0xffff) || !agrees(size, size_64, 0xffff_ffff) || !agrees(at, at_64, 0xffff_ffff) {
            return Err(bad("its two directories disagree"));
        }
        (at, size, count, directory_end) = (at_64, size_64, count_64, end_at);
    }
    if at.checked_add(size) != Some(directory_end) {
        return Err(bad("its directory does not end where the end record begins"));
    }
    if size > LONGEST_DIRECTORY {
        return Err(bad("its directory is longer than 16 MiB"));
    }
    Ok((at, size, count))
}

/// Reads the central directory.
fn list(directory: &[u8], count: u64) -> std::result::Result<BTreeMap<String, Listed>, String> {
    let mut listed = BTreeMap::new();
    let mut fields = Fields(directory);
    for _ in 0..count {
        let (name, entry) = central(&mut fields).ok_or("its directory ends early")??;
        if name.ends_with('/') && entry.len == 0 {
            continue;
        }
        match listed.entry(name) {
            Slot::Vacant(slot) => slot.insert(entry),
            Slot::Occupied(slot) => {
                return Err(format!("the record {} appears twice", Quoted(slot.key())));
            }
        };
    }
    if !fields.0.is_empty() {
        return Err("its directory holds more records than it says".to_owned());
    }
    Ok(listed)
}

/// One entry of the central directory; None where the bytes end.
fn central(fields: &mut Fields) -> Option<std::result::Result<(String, Listed), String>> {
    let signature = fields.u32()?;
    fields.skip(4)?;
    let (flags, method) = (fields.u16()?, fields.u16()?);
    fields.skip(4)?;
    let (crc, packed, len) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (name_len, extra_len, comment_len) = (fields.u16()?, fields.u16()?, fields.u16()?);
    let disk = fields.u16()?;
    fields.skip(6)?;
    let header = fields.u32()?;
    let name = fields.take(name_len as usize)?;
    let mut extra = Fields(fields.take(extra_len as usize)?);
    fields.skip(comment_len as usize)?;

    let Ok(name) = std::str::from_utf8(name) else {
        return Some(Err("a record's name is not UTF-8".to_owned()));
    };
    let refuse = |what: &str| Some(Err(format!("the record {} {what}", Quoted(name))));
    if signature != CENTRAL {
        return refuse("has no directory entry");
    }
    if flags & ENCRYPTED != 0 {
        return refuse("is encrypted");
    }

    // A field that does not fit its 32 bits stands in the zip64 extra, in this order.
    let (mut packed, mut len, mut header) = (packed as u64, len as u64, header as u64);
    while let (Some(tag), Some(size)) = (extra.u16(), extra.u16()) {
        let Some(body) = extra.take(size as usize) else { return refuse("has a damaged extra field") };
        if tag != 1 {
            continue;
        }
        let mut body = Fields(body);
        for field in [&mut len, &mut packed, &mut header] {
            if *field == 0xffff_ffff {
                let Some(long) = body.u64() else { return refuse("has a damaged zip64 field") };
                *field = long;
            }
        }
    }
    if method == 0 && packed != len {
        return refuse("is stored with two different sizes");
    }
    if disk != 0 && disk != 0xffff {
        return refuse("lies in another part");
    }
    Some(Ok((name.to_owned(), Listed { header, packed, len, crc, method })))
}

/// Compares each record with its own header and finds where its bytes start.
fn locate(
    source: &Arc<Source>,
    listed: BTreeMap<String, Listed>,
    directory_at: u64,
) -> Result<BTreeMap<String, Record>> {
    let mut order: Vec<(String, Listed)> = listed.into_iter().collect();
    order.sort_by_key(|(_, entry)| entry.header);
    let mut records = BTreeMap::new();
    let mut free_from = 0;
    for (name, entry) in order {
        let bad = |what: &str| {
            let reason = format!("the record {} {what}", Quoted(&name));
            Error::malformed(source.path(), FORMAT, reason)
        };
        if entry.header < free_from {
            return Err(bad("overlaps another"));
        }
        let header_len = 30 + name.len();
        let inside = |end: Option<u64>| end.filter(|&end| end <= directory_at);
        inside(entry.header.checked_add(header_len as u64)).ok_or_else(|| bad("starts beyond the end of the file"))?;
        let header = source.read_vec(entry.header, header_len)?;
        let extra_len = local(&header, &name, &entry)
            .ok_or_else(|| bad("has a header of its own that disagrees with the directory's entry"))?;
        let start = entry.header + header_len as u64 + extra_len;
        let end = inside(start.checked_add(entry.packed)).ok_or_else(|| bad("reaches beyond the end of the file"))?;
        free_from = end;
        let checksum = Arc::new(Checksum::new(start, entry.len, entry.crc));
        records.insert(name, Record { start, len: entry.len, compressed: entry.method != 0, checksum });
    }
    Ok(records)
}

/// The length of a local header's extra field, if the header agrees with the directory.
fn local(header: &[u8], name: &str, entry: &Listed) -> Option<u64> {
    let mut fields = Fields(header);
    let signature = fields.u32()?;
    fields.skip(2)?;
    let (flags, method) = (fields.u16()?, fields.u16()?);
    fields.skip(4)?;
    let (crc, packed, len) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (name_len, extra_len) = (fields.u16()?, fields.u16()?);
    let follow = flags & SIZES_FOLLOW != 0;
    let agrees = |field: u32, value: u64| field as u64 == value || field == 0xffff_ffff || (follow && field == 0);
    let same = signature == LOCAL
        && method == entry.method
        && flags & ENCRYPTED == 0
        && name_len as usize == name.len()
        && &header[30..] == name.as_bytes()
        && agrees(packed, entry.packed)
        && agrees(len, entry.len)
        && (crc == entry.crc || (follow && crc == 0));
    same.then_some(extra_len as u64)
}

/// Little-endian fields from the front of a slice; None where it ends.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn skip(&mut self, n: usize) -> Option<()> {
        self.take(n).map(|_| ())
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}
