//! A zip writer as small as torch.save's: stored records with correct check sums, so that a hostile pickle gets past them.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub fn stored(records: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in records {
        let at = file.len() as u32;
        let mut fields = vec![0; 8];
        fields.extend(crc32fast::hash(data).to_le_bytes());
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend([0, 0]);
        file.extend(b"PK\x03\x04\0\0");
        file.extend(&fields);
        file.extend(name.as_bytes());
        file.extend(*data);
        directory.extend(b"PK\x01\x02\0\0\0\0");
        directory.extend(&fields);
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let at = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend((records.len() as u16).to_le_bytes());
    file.extend((records.len() as u16).to_le_bytes());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(at.to_le_bytes());
    file.extend([0, 0]);
    file
}

/// A torch file around a pickle, with one storage of eight floats.
pub fn torch(pickle: &[u8]) -> Vec<u8> {
    stored(&[("a/data.pkl", pickle), ("a/byteorder", b"little"), ("a/data/0", &[0; 32])])
}

/// The pickle of a fixture that torch.save wrote.
pub fn pickle_of(file: &[u8]) -> &[u8] {
    let start = file.windows(3).position(|w| matches!(w, [0x80, 2..=5, b'}' | b'c' | 0x95])).expect("a pickle");
    let end = file[start..].windows(6).position(|w| w[0] == b'.' && &w[1..5] == b"PK\x07\x08").expect("its end");
    &file[start..start + end + 1]
}
