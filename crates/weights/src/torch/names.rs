//! From nested dictionaries to dotted names.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use crate::error::Quoted;

use super::machine::Machine;
use super::values::{Cut, Outcome, Refusal, Value};

const DEEPEST: usize = 32;
const LONGEST_NAME: usize = 1024;
const MOST_TENSORS: usize = 100_000;

/// All tensors of the pickle's root, by dotted name. A `state_dict` at the top stands for the whole, as in training
/// checkpoints, whose other contents nobody loads.
///
/// Shared dictionaries could be walked exponentially often: visits and the bytes of names are bounded by the pickle's
/// length.
pub(super) fn flatten(machine: &Machine) -> Outcome<BTreeMap<String, Cut>> {
    let mut root = machine.root();
    for _ in 0..DEEPEST {
        let Value::Dict(dict) = root else { break };
        let inner = machine.dict(dict).iter().find_map(|&(key, value)| match (key, value) {
            (Value::Text(key), Value::Dict(_)) if machine.text(key) == "state_dict" => Some(value),
            _ => None,
        });
        match inner {
            Some(inner) => root = inner,
            None => break,
        }
    }
    if !matches!(root, Value::Dict(_)) {
        return Err(Refusal::Damaged("its pickle holds no dictionary of tensors".into()));
    }
    let mut walk = Walk {
        machine,
        tensors: BTreeMap::new(),
        visits: 4096 + 2 * machine.pickle_len(),
        name_bytes: (64 << 10) + 16 * machine.pickle_len(),
    };
    walk.visit(&mut String::new(), root, 0)?;
    if walk.tensors.is_empty() {
        return Err(Refusal::Damaged("it holds no tensors".into()));
    }
    Ok(walk.tensors)
}

struct Walk<'a, 'p> {
    machine: &'a Machine<'p>,
    tensors: BTreeMap<String, Cut>,
    visits: usize,
    name_bytes: usize,
}

impl Walk<'_, '_> {
    fn visit(&mut self, name: &mut String, value: Value, depth: usize) -> Outcome<()> {
        let exceeded = |what: &str| Err(Refusal::Damaged(format!("its pickle {what}")));
        let len = match value {
            Value::Dict(index) => self.machine.dict(index).len(),
            Value::Sequence(index) => self.machine.sequence(index).len(),
            _ => 0,
        };
        match self.visits.checked_sub(1 + len) {
            Some(left) => self.visits = left,
            None => return exceeded("shares its dictionaries too often"),
        }
        if depth > DEEPEST {
            return exceeded("nests its dictionaries too deeply");
        }
        if name.len() > LONGEST_NAME {
            return exceeded("has a name longer than 1024 bytes");
        }
        match value {
            Value::Tensor { args, with_type } => {
                if self.tensors.len() == MOST_TENSORS {
                    return exceeded("names more than 100000 tensors");
                }
                match self.name_bytes.checked_sub(name.len()) {
                    Some(left) => self.name_bytes = left,
                    None => return exceeded("shares its names too often"),
                }
                match self.tensors.entry(name.clone()) {
                    Slot::Vacant(slot) => slot.insert(self.machine.tensor(args, with_type)?),
                    Slot::Occupied(_) => {
                        let reason = format!("its tensor {} appears twice", Quoted(name));
                        return Err(Refusal::Damaged(reason));
                    }
                };
            }
            Value::Dict(index) => {
                for &(key, value) in self.machine.dict(index) {
                    match key {
                        Value::Text(key) => self.child(name, self.machine.text(key), value, depth)?,
                        Value::Int(key) => self.child(name, &key.to_string(), value, depth)?,
                        _ => {}
                    }
                }
            }
            Value::Sequence(index) => {
                for (i, &value) in self.machine.sequence(index).iter().enumerate() {
                    self.child(name, &i.to_string(), value, depth)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn child(&mut self, name: &mut String, key: &str, value: Value, depth: usize) -> Outcome<()> {
        if !matches!(value, Value::Tensor { .. } | Value::Dict(_) | Value::Sequence(_)) {
            return Ok(());
        }
        let len = name.len();
        if len > 0 {
            name.push('.');
        }
        name.push_str(key);
        self.visit(name, value, depth + 1)?;
        name.truncate(len);
        Ok(())
    }
}
