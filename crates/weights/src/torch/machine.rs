//! A pickle interpreter that can build dictionaries of tensors and nothing else.
//!
//! Memory is bounded by the length of the pickle and by [`MOST`]: every instruction takes at least one byte and makes at
//! most one value, strings stay in the input, and values are small indices into arenas, so that copying, sharing through
//! the memo and dropping deep nests cost nothing. Nothing is ever called: the few allowed names are cases of an enum.

use std::collections::HashMap;

use crate::error::Quoted;
use crate::stored::MOST_AXES;

use super::opcodes::*;
use super::values::{Cut, Global, Outcome, Refusal, StorageId, Text, Value, damaged};

/// Most values on the stack, containers and remembered values, each; SDXL's checkpoint makes some 20,000.
const MOST: usize = 1 << 20;
/// Storages are named by numbers.
const LONGEST_KEY: usize = 64;

/// The interpreter and, after its run, what it built.
pub(super) struct Machine<'a> {
    pickle: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    sequences: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<StorageId>,
    root: Value,
}

impl<'a> Machine<'a> {
    /// Runs a whole pickle of fewer than 4 GiB.
    pub(super) fn run(pickle: &'a [u8]) -> Outcome<Machine<'a>> {
        let mut machine = Machine {
            pickle,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            sequences: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            root: Value::Inert,
        };
        if machine.byte()? != PROTO {
            return damaged("does not begin with its protocol");
        }
        let protocol = machine.byte()?;
        if !(2..=5).contains(&protocol) {
            return damaged(format!("has protocol {protocol}; 2 to 5 are read"));
        }
        while machine.step()? {
            let containers = machine.sequences.len() + machine.dicts.len();
            if machine.stack.len().max(machine.memo.len()).max(containers) > MOST {
                return damaged(format!("makes more than {MOST} values"));
            }
        }
        Ok(machine)
    }

    pub(super) fn root(&self) -> Value {
        self.root
    }

    pub(super) fn pickle_len(&self) -> usize {
        self.pickle.len()
    }

    pub(super) fn text(&self, text: Text) -> &'a str {
        let bytes = &self.pickle[text.start as usize..text.end as usize];
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    pub(super) fn dict(&self, index: u32) -> &[(Value, Value)] {
        &self.dicts[index as usize]
    }

    pub(super) fn sequence(&self, index: u32) -> &[Value] {
        &self.sequences[index as usize]
    }

    /// The tensor that a value of [`Value::Tensor`] stands for: `(storage, offset, shape, strides, requires_grad,
    /// hooks[, dtype])`.
    pub(super) fn tensor(&self, args: u32, with_type: bool) -> Outcome<Cut> {
        let args = self.sequence(args);
        let [Value::Storage(storage), Value::Int(offset), Value::Sequence(shape), Value::Sequence(strides), ..] = *args
        else {
            return damaged("rebuilds a tensor from unknown arguments");
        };
        let storage = self.storages[storage as usize];
        let named = match args.get(6) {
            Some(Value::Global(Global::Type(dtype))) if with_type => Some(*dtype),
            _ => None,
        };
        let Some(dtype) = named.or(storage.dtype) else {
            return damaged("rebuilds a tensor without a type");
        };
        let (Some(shape), Some(strides), Ok(offset)) =
            (self.sizes(shape), self.sizes(strides), usize::try_from(offset))
        else {
            return damaged(format!("rebuilds a tensor whose shape or strides are not at most {MOST_AXES} counts"));
        };
        Ok(Cut { storage, dtype, shape, strides, offset })
    }

    fn sizes(&self, index: u32) -> Option<Box<[usize]>> {
        let items = self.sequence(index);
        if items.len() > MOST_AXES {
            return None;
        }
        let size = |item: &Value| match *item {
            Value::Int(n) => usize::try_from(n).ok(),
            _ => None,
        };
        items.iter().map(size).collect()
    }

    /// Executes one instruction; false after the last.
    fn step(&mut self) -> Outcome<bool> {
        let at = self.at;
        let opcode = self.byte()?;
        match opcode {
            STOP => {
                self.root = self.pop()?;
                if self.at != self.pickle.len() {
                    return damaged(format!("goes on after its end at byte {at}"));
                }
                return Ok(false);
            }
            FRAME => drop(self.take(8)?),
            MARK => self.marks.push(self.stack.len()),
            POP => drop(self.pop()?),
            POP_MARK => drop(self.pop_mark()?),

            NONE | NEWTRUE | NEWFALSE => self.stack.push(Value::Inert),
            BINFLOAT => self.inert(8)?,
            BININT => {
                let value = i32::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(value as i64));
            }
            BININT1 => {
                let value = self.byte()?;
                self.stack.push(Value::Int(value as i64));
            }
            BININT2 => {
                let value = u16::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(value as i64));
            }
            LONG1 => {
                let len = self.byte()? as usize;
                self.long(len)?;
            }
            LONG4 => {
                let len = self.length4()?;
                self.long(len)?;
            }

            SHORT_BINUNICODE => {
                let len = self.byte()? as usize;
                self.push_text(len)?;
            }
            BINUNICODE => {
                let len = self.length4()?;
                self.push_text(len)?;
            }
            BINUNICODE8 => {
                let len = self.length8()?;
                self.push_text(len)?;
            }
            SHORT_BINSTRING | SHORT_BINBYTES => {
                let len = self.byte()? as usize;
                self.inert(len)?;
            }
            BINSTRING | BINBYTES => {
                let len = self.length4()?;
                self.inert(len)?;
            }
            BINBYTES8 | BYTEARRAY8 => {
                let len = self.length8()?;
                self.inert(len)?;
            }

            EMPTY_TUPLE | EMPTY_LIST | EMPTY_SET => self.push_sequence(Vec::new()),
            TUPLE1 => self.tuple(1)?,
            TUPLE2 => self.tuple(2)?,
            TUPLE3 => self.tuple(3)?,
            TUPLE | FROZENSET => {
                let items = self.pop_mark()?;
                self.push_sequence(items);
            }
            APPEND => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            APPENDS | ADDITEMS => {
                let items = self.pop_mark()?;
                self.extend(items)?;
            }
            EMPTY_DICT => self.push_dict(),
            SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            SETITEMS => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }

            BINPUT => {
                let index = self.byte()? as u32;
                self.put(index)?;
            }
            LONG_BINPUT => {
                let index = u32::from_le_bytes(self.array()?);
                self.put(index)?;
            }
            MEMOIZE => {
                let index = self.memo.len() as u32;
                self.put(index)?;
            }
            BINGET => {
                let index = self.byte()? as u32;
                self.fetch(index)?;
            }
            LONG_BINGET => {
                let index = u32::from_le_bytes(self.array()?);
                self.fetch(index)?;
            }

            GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (module, name) else {
                    return damaged("names a global by something other than strings");
                };
                self.global(module, name)?;
            }
            BINPERSID => self.persistent_id()?,
            REDUCE => self.reduce()?,
            BUILD => {
                // `state_dict()` hangs its `_metadata` on the dictionary; there is nothing in it for us.
                let _state = self.pop()?;
                if !matches!(self.stack.last(), Some(Value::Dict(_))) {
                    return Err(Refusal::Forbidden("sets the state of an object (BUILD)".into()));
                }
            }
            other => {
                let name = refused_name(other).map_or_else(|| format!("0x{other:02x}"), |name| name.to_owned());
                let what = format!("uses the instruction {name} at byte {at}");
                return Err(Refusal::Forbidden(what));
            }
        }
        Ok(true)
    }

    fn take(&mut self, len: usize) -> Outcome<&'a [u8]> {
        let Some(bytes) = self.pickle[self.at..].get(..len) else {
            return damaged(format!("ends at byte {} within an instruction", self.pickle.len()));
        };
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Outcome<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn length4(&mut self) -> Outcome<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn length8(&mut self) -> Outcome<usize> {
        let len = u64::from_le_bytes(self.array()?);
        usize::try_from(len).or_else(|_| damaged("has a string longer than memory"))
    }

    fn pop(&mut self) -> Outcome<Value> {
        // What lies under the last mark is not to be reached past it.
        if self.marks.last().is_some_and(|&mark| self.stack.len() <= mark) {
            return damaged(format!("takes a value past a mark at byte {}", self.at));
        }
        self.stack.pop().map_or_else(|| damaged(format!("takes a value from an empty stack at byte {}", self.at)), Ok)
    }

    fn pop_mark(&mut self) -> Outcome<Vec<Value>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => damaged(format!("has no mark at byte {}", self.at)),
        }
    }

    fn inert(&mut self, len: usize) -> Outcome<()> {
        self.take(len)?;
        self.stack.push(Value::Inert);
        Ok(())
    }

    /// A signed little-endian number of any length; those beyond 64 bits carry no meaning for weights.
    fn long(&mut self, len: usize) -> Outcome<()> {
        let bytes = self.take(len)?;
        if len > 8 {
            self.stack.push(Value::Inert);
            return Ok(());
        }
        let fill = if bytes.last().is_some_and(|&top| top >= 0x80) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..len].copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn span(&self, bytes: &[u8], end: usize) -> Outcome<Text> {
        if std::str::from_utf8(bytes).is_err() {
            return damaged("has a string that is not UTF-8");
        }
        Ok(Text { start: (end - bytes.len()) as u32, end: end as u32 })
    }

    fn push_text(&mut self, len: usize) -> Outcome<()> {
        let bytes = self.take(len)?;
        let text = self.span(bytes, self.at)?;
        self.stack.push(Value::Text(text));
        Ok(())
    }

    fn line(&mut self) -> Outcome<Text> {
        let rest = &self.pickle[self.at..];
        let Some(len) = rest.iter().position(|&byte| byte == b'\n') else {
            return damaged("ends within a name");
        };
        let bytes = self.take(len)?;
        let text = self.span(bytes, self.at)?;
        self.at += 1;
        Ok(text)
    }

    fn push_sequence(&mut self, items: Vec<Value>) {
        self.stack.push(Value::Sequence(self.sequences.len() as u32));
        self.sequences.push(items);
    }

    fn push_dict(&mut self) {
        self.stack.push(Value::Dict(self.dicts.len() as u32));
        self.dicts.push(Vec::new());
    }

    fn tuple(&mut self, len: usize) -> Outcome<()> {
        let mut items = vec![Value::Inert; len];
        for item in items.iter_mut().rev() {
            *item = self.pop()?;
        }
        self.push_sequence(items);
        Ok(())
    }

    fn extend(&mut self, items: Vec<Value>) -> Outcome<()> {
        let Some(Value::Sequence(list)) = self.stack.last() else {
            return damaged(format!("appends to something other than a list at byte {}", self.at));
        };
        self.sequences[*list as usize].extend(items);
        Ok(())
    }

    fn set_items(&mut self, items: &[Value]) -> Outcome<()> {
        let Some(Value::Dict(dict)) = self.stack.last() else {
            let at = self.at;
            return damaged(format!("sets an item of something other than a dictionary at byte {at}"));
        };
        let (pairs, []) = items.as_chunks::<2>() else {
            return damaged(format!("sets an item without a value at byte {}", self.at));
        };
        self.dicts[*dict as usize].extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn put(&mut self, index: u32) -> Outcome<()> {
        let Some(&value) = self.stack.last() else {
            return damaged(format!("remembers a value of an empty stack at byte {}", self.at));
        };
        self.memo.insert(index, value);
        Ok(())
    }

    fn fetch(&mut self, index: u32) -> Outcome<()> {
        let Some(&value) = self.memo.get(&index) else {
            return damaged(format!("asks for {index}, which it never remembered"));
        };
        self.stack.push(value);
        Ok(())
    }

    fn global(&mut self, module: Text, name: Text) -> Outcome<()> {
        let (module, name) = (self.text(module), self.text(name));
        let global = Global::named(module, name)
            .ok_or_else(|| Refusal::Forbidden(format!("asks for {}", Quoted(&format!("{module}.{name}")))))?;
        self.stack.push(Value::Global(global));
        Ok(())
    }

    /// `('storage', type, key, location, count)`.
    fn persistent_id(&mut self) -> Outcome<()> {
        let id = self.pop()?;
        let Value::Sequence(index) = id else { return damaged("names a storage by no tuple") };
        let items = self.sequence(index);
        let [Value::Text(tag), Value::Global(kind), Value::Text(key), _, Value::Int(count)] = *items else {
            return damaged("names a storage in an unknown form");
        };
        let dtype = match kind {
            Global::Storage(dtype) => Some(dtype),
            Global::UntypedStorage => None,
            _ => return damaged("names a storage of an unknown type"),
        };
        let key_len = key.end - key.start;
        let (Ok(count), "storage", ..=LONGEST_KEY) = (u64::try_from(count), self.text(tag), key_len as usize) else {
            return damaged("names a storage in an unknown form");
        };
        self.stack.push(Value::Storage(self.storages.len() as u32));
        self.storages.push(StorageId { key, dtype, count });
        Ok(())
    }

    /// The only "calls": each is a case here.
    fn reduce(&mut self) -> Outcome<()> {
        let (args, callee) = (self.pop()?, self.pop()?);
        let (Value::Global(callee), Value::Sequence(index)) = (callee, args) else {
            return Err(Refusal::Forbidden("calls something that is not a known name".into()));
        };
        let args = self.sequence(index);
        match callee {
            Global::OrderedDict if args.is_empty() => self.push_dict(),
            Global::RebuildTensor => self.stack.push(Value::Tensor { args: index, with_type: false }),
            Global::RebuildTensorWithType => self.stack.push(Value::Tensor { args: index, with_type: true }),
            Global::RebuildParameter => {
                let Some(&tensor @ Value::Tensor { .. }) = args.first() else {
                    return damaged("makes a parameter of something other than a tensor");
                };
                self.stack.push(tensor);
            }
            Global::Size | Global::Device => self.stack.push(Value::Inert),
            _ => return damaged("calls a name in a way that torch.save does not"),
        }
        Ok(())
    }
}
