//! Face networks from ONNX files: told apart by their graphs, checked before they run, run by rten.

mod rules;
mod shapes;
mod wire;

use crate::{Error, Result};
use rten::{Model, ModelOptions, NodeId, Value};
use rten_tensor::{AsView, Layout};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The largest network file; glintr100 has 261 MB.
const MAX_BYTES: u64 = 1 << 30;

/// What a network is for, told from its graph as insightface's model zoo does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// SCRFD: 6, 9, 10 or 15 outputs.
    Detector,
    /// ArcFace: one square input of at least 112 whose side is a multiple of 16, one output.
    Recogniser,
    /// Landmarks, age and gender, swapping: not needed here.
    Other,
}

/// A read and checked file that has not been handed to the runtime yet.
pub(crate) struct Network {
    pub name: String,
    pub role: Role,
    /// Width and height, where the graph fixes them.
    pub input: Option<(usize, usize)>,
    /// How many outputs the graph has.
    pub outputs: usize,
    /// The graph itself subtracts a mean and multiplies (insightface's rule for its MXNet exports).
    pub normalises: bool,
    graph: wire::Graph,
    bytes: Vec<u8>,
}

/// A network that can run.
pub(crate) struct Runner {
    name: String,
    model: Model,
    input: NodeId,
    outputs: Vec<NodeId>,
    graph: wire::Graph,
}

/// One output: its shape and values.
pub(crate) struct Output {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl Network {
    pub(crate) fn open(path: &Path) -> Result<Network> {
        let io = |reason: String| Error::Io { what: "the face model", path: path.to_owned(), action: "read", reason };
        let file = crate::files::open_regular(path).map_err(io)?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| io(e.to_string()))?;
        let name = path.display().to_string();
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::Model { name, reason: "is larger than 1 GiB, the most a face network may have".into() });
        }
        Network::parse(&name, bytes)
    }

    pub(crate) fn parse(name: &str, bytes: Vec<u8>) -> Result<Network> {
        let refuse = |reason: String| Error::Model { name: name.to_owned(), reason };
        let graph = wire::parse(&bytes).map_err(refuse)?;
        let spatial = graph.inputs.first().and_then(|p| p.shape.clone()).unwrap_or_default();
        let side = |i: usize| spatial.get(i).copied().flatten();
        let input = side(2).zip(side(3)).map(|(h, w)| (w, h));
        let role = match (graph.outputs.len(), input) {
            (5.., _) => Role::Detector,
            (_, Some((192, 192) | (96, 96))) => Role::Other,
            (1, Some((w, h))) if w == h && w >= 112 && w % 16 == 0 && graph.inputs.len() == 1 => Role::Recogniser,
            _ => Role::Other,
        };
        let early =
            |prefixes: [&str; 2]| graph.nodes.iter().take(8).any(|n| prefixes.iter().any(|p| n.name.starts_with(p)));
        Ok(Network {
            name: name.to_owned(),
            role,
            input,
            outputs: graph.outputs.len(),
            normalises: early(["Sub", "_minus"]) && early(["Mul", "_mul"]),
            graph,
            bytes,
        })
    }

    /// SHA-256 of the file, in hexadecimal.
    pub(crate) fn sha256(&self) -> String {
        use sha2::{Digest, Sha256};
        Sha256::digest(&self.bytes).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Hands the network to the runtime, for inputs of at most `width` x `height`.
    pub(crate) fn load(self, width: usize, height: usize) -> Result<Runner> {
        let name = self.name.clone();
        let refuse = |reason: String| Error::Model { name: name.clone(), reason };
        if self.graph.inputs.len() != 1 {
            return Err(refuse(format!("has {} inputs; a face network has one", self.graph.inputs.len())));
        }
        check(&self.graph, [1, 3, height, width]).map_err(refuse)?;
        let bytes = self.bytes;
        let model = catch_unwind(AssertUnwindSafe(|| ModelOptions::with_all_ops().load(bytes)))
            .map_err(|_| refuse("is damaged: its graph cannot be built".into()))?
            .map_err(|e| refuse(format!("cannot be used: {}", clean(&e.to_string()))))?;
        let (Some(&input), outputs) = (model.input_ids().first(), model.output_ids().to_vec()) else {
            return Err(refuse("has no input".into()));
        };
        Ok(Runner { name, model, input, outputs, graph: self.graph })
    }
}

impl Runner {
    /// Runs one picture, `[1, 3, height, width]` in `data`, and returns all outputs.
    pub(crate) fn run(&self, data: Vec<f32>, width: usize, height: usize) -> Result<Vec<Output>> {
        let refuse = |reason: String| Error::Model { name: self.name.clone(), reason };
        check(&self.graph, [1, 3, height, width]).map_err(refuse)?;
        let input = Value::from_shape([1, 3, height, width], data).map_err(|e| refuse(format!("cannot run: {e}")))?;
        let run = || self.model.run(vec![(self.input, input.into())], &self.outputs, None);
        let values = catch_unwind(AssertUnwindSafe(run))
            .map_err(|_| refuse("is damaged: it fails while it runs".into()))?
            .map_err(|e| refuse(format!("cannot run: {}", clean(&e.to_string()))))?;
        values
            .into_iter()
            .map(|value| {
                let Value::FloatTensor(tensor) = value else {
                    return Err(refuse("has an output that is not floating point".into()));
                };
                Ok(Output { shape: tensor.shape().to_vec(), data: tensor.to_vec() })
            })
            .collect()
    }

    /// Multiplications for an input of this size; 0 where they cannot be told.
    pub(crate) fn products(&self, width: usize, height: usize) -> u64 {
        check(&self.graph, [1, 3, height, width]).map_or(0, |products| products as u64)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// The check reads hostile numbers; should it ever stumble, that is a refusal too.
fn check(graph: &wire::Graph, input: [usize; 4]) -> wire::Refusal<u128> {
    catch_unwind(AssertUnwindSafe(|| shapes::check(graph, input)))
        .unwrap_or_else(|_| Err("is damaged: its shapes contradict one another".into()))
}

/// Names from files go into messages without control characters and not at any length.
pub(crate) fn clean(text: &str) -> String {
    let visible: String = text.chars().take(120).map(|c| if c.is_control() { ' ' } else { c }).collect();
    visible.trim().to_owned()
}
