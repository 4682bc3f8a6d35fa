//! Reading an ONNX file's structure from untrusted bytes.
//!
//! Only what the checks need is kept: nodes, attributes, shapes, and small tensors' values. Nothing
//! recurses into what the file nests, and nothing is allocated by a length that the file only claims.

/// Why a file was refused: the rest of a sentence that begins "the face model `x`".
pub(crate) type Refusal<T> = Result<T, String>;

/// Values of tensors up to this many elements are kept: shapes, scales, axes.
const MAX_SMALL: usize = 64;

#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    pub nodes: Vec<Node>,
    pub tensors: Vec<Constant>,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    pub opset: i64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    pub op: String,
    pub name: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub attributes: Vec<Attribute>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Attribute {
    pub name: String,
    pub int: Option<i64>,
    pub float: Option<f32>,
    pub text: String,
    pub ints: Vec<i64>,
    pub floats: Vec<f32>,
    pub tensor: Option<Constant>,
}

/// A graph input or output. `None` stands for a dimension that is free.
#[derive(Clone, Debug, Default)]
pub(crate) struct Port {
    pub name: String,
    pub shape: Option<Vec<Option<usize>>>,
}

/// A tensor stored in the file: its shape, and its values when there are few.
#[derive(Clone, Debug, Default)]
pub(crate) struct Constant {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Option<Vec<f64>>,
}

impl Node {
    pub(crate) fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|a| a.name == name)
    }

    pub(crate) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).and_then(|a| a.int).unwrap_or(default)
    }

    pub(crate) fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(|a| a.ints.as_slice())
    }
}

/// A cursor over one message's fields.
struct Fields<'a> {
    bytes: &'a [u8],
}

enum Value<'a> {
    Number(u64),
    Four([u8; 4]),
    Eight([u8; 8]),
    Bytes(&'a [u8]),
}

const DAMAGED: &str = "is damaged: it is not a valid ONNX file";

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Refusal<u64> {
        let mut value = 0u64;
        for (i, &byte) in self.bytes.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * i).min(63);
            if byte & 0x80 == 0 {
                self.bytes = &self.bytes[i + 1..];
                return Ok(value);
            }
        }
        Err(DAMAGED.into())
    }

    fn take(&mut self, length: u64) -> Refusal<&'a [u8]> {
        let length = usize::try_from(length).map_err(|_| DAMAGED)?;
        let Some((head, rest)) = self.bytes.split_at_checked(length) else {
            return Err("is truncated: a part says it is longer than the file".into());
        };
        self.bytes = rest;
        Ok(head)
    }

    fn next(&mut self) -> Refusal<Option<(u64, Value<'a>)>> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Eight(self.take(8)?.try_into().map_err(|_| DAMAGED)?),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Four(self.take(4)?.try_into().map_err(|_| DAMAGED)?),
            _ => return Err(DAMAGED.into()),
        };
        if tag >> 3 == 0 {
            return Err(DAMAGED.into());
        }
        Ok(Some((tag >> 3, value)))
    }
}

fn fields(bytes: &[u8]) -> Fields<'_> {
    Fields { bytes }
}

impl<'a> Value<'a> {
    fn bytes(self) -> Refusal<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(DAMAGED.into()),
        }
    }

    fn text(self) -> Refusal<String> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| DAMAGED.into())
    }

    fn number(self) -> Refusal<i64> {
        match self {
            Value::Number(v) => Ok(v as i64),
            _ => Err(DAMAGED.into()),
        }
    }

    /// Repeated integers, packed or single.
    fn integers(self, into: &mut Vec<i64>) -> Refusal<()> {
        match self {
            Value::Number(v) => into.push(v as i64),
            Value::Bytes(bytes) => {
                let mut packed = fields(bytes);
                while !packed.bytes.is_empty() {
                    into.push(packed.varint()? as i64);
                }
            }
            _ => return Err(DAMAGED.into()),
        }
        Ok(())
    }

    fn floats(self, into: &mut Vec<f32>) -> Refusal<()> {
        match self {
            Value::Four(v) => into.push(f32::from_le_bytes(v)),
            Value::Bytes(bytes) => into.extend(bytes.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v))),
            _ => return Err(DAMAGED.into()),
        }
        Ok(())
    }

    fn doubles(self, into: &mut Vec<f64>) -> Refusal<()> {
        match self {
            Value::Eight(v) => into.push(f64::from_le_bytes(v)),
            Value::Bytes(bytes) => into.extend(bytes.as_chunks::<8>().0.iter().map(|v| f64::from_le_bytes(*v))),
            _ => return Err(DAMAGED.into()),
        }
        Ok(())
    }
}

/// Reads a whole `ModelProto`.
pub(crate) fn parse(bytes: &[u8]) -> Refusal<Graph> {
    let mut graph = None;
    let mut opset = None;
    let mut model = fields(bytes);
    while let Some((field, value)) = model.next()? {
        match field {
            7 if graph.is_some() => return Err("holds two graphs; one is expected".into()),
            7 => graph = Some(read_graph(value.bytes()?)?),
            8 => {
                let (domain, version) = read_opset(value.bytes()?)?;
                if domain.is_empty() || domain == "ai.onnx" {
                    opset = Some(version);
                }
            }
            25 => return Err("defines functions of its own; only plain operators are run".into()),
            _ => {}
        }
    }
    let mut graph: Graph = graph.ok_or("holds no graph; it is not an ONNX network")?;
    graph.opset = opset.unwrap_or(1);
    Ok(graph)
}

fn read_opset(bytes: &[u8]) -> Refusal<(String, i64)> {
    let (mut domain, mut version) = (String::new(), 0);
    let mut message = fields(bytes);
    while let Some((field, value)) = message.next()? {
        match field {
            1 => domain = value.text()?,
            2 => version = value.number()?,
            _ => {}
        }
    }
    Ok((domain, version))
}

fn read_graph(bytes: &[u8]) -> Refusal<Graph> {
    let mut graph = Graph::default();
    let mut message = fields(bytes);
    while let Some((field, value)) = message.next()? {
        match field {
            1 => graph.nodes.push(read_node(value.bytes()?)?),
            5 => graph.tensors.push(read_tensor(value.bytes()?)?),
            11 => graph.inputs.push(read_port(value.bytes()?)?),
            12 => graph.outputs.push(read_port(value.bytes()?)?),
            13 => {
                read_port(value.bytes()?)?;
            }
            15 => return Err("holds sparse tensors, which are not read".into()),
            _ => {}
        }
    }
    let constants: std::collections::HashSet<&str> = graph.tensors.iter().map(|t| t.name.as_str()).collect();
    // Old files list their weights among the inputs too.
    graph.inputs.retain(|port| !constants.contains(port.name.as_str()));
    Ok(graph)
}

fn read_node(bytes: &[u8]) -> Refusal<Node> {
    let mut node = Node::default();
    let mut domain = String::new();
    let mut message = fields(bytes);
    while let Some((field, value)) = message.next()? {
        match field {
            1 => node.inputs.push(value.text()?),
            2 => node.outputs.push(value.text()?),
            3 => node.name = value.text()?,
            4 => node.op = value.text()?,
            5 => node.attributes.push(read_attribute(value.bytes()?)?),
            7 => domain = value.text()?,
            _ => {}
        }
    }
    if !domain.is_empty() && domain != "ai.onnx" {
        return Err(format!(
            "uses the custom operator `{}` of `{}`; only ONNX's own operators are run",
            crate::onnx::clean(&node.op),
            crate::onnx::clean(&domain)
        ));
    }
    Ok(node)
}

fn read_attribute(bytes: &[u8]) -> Refusal<Attribute> {
    let mut attribute = Attribute::default();
    let mut message = fields(bytes);
    while let Some((field, value)) = message.next()? {
        match field {
            1 => attribute.name = value.text()?,
            2 => match value {
                Value::Four(v) => attribute.float = Some(f32::from_le_bytes(v)),
                _ => return Err(DAMAGED.into()),
            },
            3 => attribute.int = Some(value.number()?),
            4 => attribute.text = String::from_utf8_lossy(value.bytes()?).into_owned(),
            5 => attribute.tensor = Some(read_tensor(value.bytes()?)?),
            6 | 11 => return Err("nests a graph in a graph; face networks have no branches or loops".into()),
            7 => value.floats(&mut attribute.floats)?,
            8 => value.integers(&mut attribute.ints)?,
            _ => {}
        }
    }
    Ok(attribute)
}

/// Only tensor types: nested sequences and maps could be as deep as the file is long.
fn read_port(bytes: &[u8]) -> Refusal<Port> {
    let mut port = Port::default();
    let mut message = fields(bytes);
    while let Some((field, value)) = message.next()? {
        match field {
            1 => port.name = value.text()?,
            2 => {
                let mut kind = fields(value.bytes()?);
                while let Some((field, value)) = kind.next()? {
                    match field {
                        1 => port.shape = read_tensor_type(value.bytes()?)?,
                        4 | 5 | 8 | 9 => return Err("has values that are not tensors".into()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(port)
}

fn read_tensor_type(bytes: &[u8]) -> Refusal<Option<Vec<Option<usize>>>> {
    let mut shape = None;
    let mut message = fields(bytes);
    while let Some((field, value)) = message.next()? {
        if field != 2 {
            continue;
        }
        let mut dims = Vec::new();
        let mut list = fields(value.bytes()?);
        while let Some((field, value)) = list.next()? {
            if field != 1 {
                continue;
            }
            let mut size = None;
            let mut dim = fields(value.bytes()?);
            while let Some((field, value)) = dim.next()? {
                if field == 1 {
                    // Some exporters write 0 or -1 for a free dimension.
                    size = usize::try_from(value.number()?).ok().filter(|&v| v > 0);
                }
            }
            dims.push(size);
        }
        shape = Some(dims);
    }
    Ok(shape)
}

fn read_tensor(bytes: &[u8]) -> Refusal<Constant> {
    let mut dims = Vec::new();
    let mut kind = 0;
    let mut raw: Option<&[u8]> = None;
    let (mut floats, mut ints, mut doubles) = (Vec::new(), Vec::new(), Vec::new());
    let mut name = String::new();
    let mut message = fields(bytes);
    while let Some((field, value)) = message.next()? {
        match field {
            1 => value.integers(&mut dims)?,
            2 => kind = value.number()?,
            4 => value.floats(&mut floats)?,
            5 | 7 => value.integers(&mut ints)?,
            8 => name = value.text()?,
            9 => raw = Some(value.bytes()?),
            10 => value.doubles(&mut doubles)?,
            13 => {
                return Err(format!(
                    "keeps the tensor `{}` in another file; networks with all weights in one file are read",
                    crate::onnx::clean(&name)
                ));
            }
            14 if value.number()? != 0 => {
                return Err("keeps tensors in another file; networks with all weights in one file are read".into());
            }
            _ => {}
        }
    }
    let shape: Option<Vec<usize>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let count = shape.as_ref().and_then(|s| s.iter().try_fold(1usize, |a, &d| a.checked_mul(d)));
    let (Some(shape), Some(count)) = (shape, count) else {
        return Err(format!("gives the tensor `{}` an impossible shape {dims:?}", crate::onnx::clean(&name)));
    };
    let width = match kind {
        1 | 6 => 4,
        7 | 11 => 8,
        10 => 2,
        2 | 3 | 9 => 1,
        _ => {
            return Err(format!(
                "stores the tensor `{}` in a number type (ONNX type {kind}) that is not read",
                crate::onnx::clean(&name)
            ));
        }
    };
    let stored = match raw {
        Some(raw) => raw.len() / width,
        None => floats.len().max(ints.len()).max(doubles.len()),
    };
    if stored != count || raw.is_some_and(|r| r.len() != count * width) {
        return Err(format!(
            "is truncated: the tensor `{}` of shape {shape:?} needs {count} values and has {stored}",
            crate::onnx::clean(&name)
        ));
    }
    let values = (count <= MAX_SMALL).then(|| match (raw, kind) {
        (Some(raw), 1) => raw.as_chunks::<4>().0.iter().map(|v| f64::from(f32::from_le_bytes(*v))).collect(),
        (Some(raw), 6) => raw.as_chunks::<4>().0.iter().map(|v| f64::from(i32::from_le_bytes(*v))).collect(),
        (Some(raw), 7) => raw.as_chunks::<8>().0.iter().map(|v| i64::from_le_bytes(*v) as f64).collect(),
        (Some(raw), 11) => raw.as_chunks::<8>().0.iter().map(|v| f64::from_le_bytes(*v)).collect(),
        (Some(_), _) => Vec::new(),
        (None, 1) => floats.iter().map(|&v| f64::from(v)).collect(),
        (None, 11) => doubles.clone(),
        (None, _) => ints.iter().map(|&v| v as f64).collect(),
    });
    let values = values.filter(|v| v.len() == count);
    Ok(Constant { name, shape, values })
}
