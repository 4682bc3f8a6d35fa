//! What a network will need, worked out from its graph before anything runs.
//!
//! The runtime bounds neither memory nor time; a file of a kilobyte can ask for a terabyte (a large
//! padding, a resize by a million, an outer sum of two long vectors). So every value's shape is
//! computed here for the input it will get, and a graph that asks for more than any face network does
//! is refused. Shapes that only the run will know stay unknown and are let pass where an operator
//! cannot make its input larger.

use super::rules::{Known, constant, elements, infer, of_shape};
use super::wire::{Graph, Node, Refusal};
use std::collections::HashMap;

/// Elements of the largest value: a detector at 640x640 with 256 channels has 105 million.
const MAX_ELEMENTS: u128 = 160_000_000;
/// Elements of all values together.
const MAX_TOTAL: u128 = 4_000_000_000;
/// Multiplications of the whole network; ArcFace r100 has 12 G, SCRFD-10g at 640x640 10 G.
const MAX_PRODUCTS: u128 = 1_000_000_000_000;
const MAX_NODES: usize = 20_000;
const MAX_RANK: usize = 8;

/// Checks a graph for an input of `input` (NCHW) and returns how many multiplications it takes.
pub(crate) fn check(graph: &Graph, input: [usize; 4]) -> Refusal<u128> {
    if graph.nodes.len() > MAX_NODES {
        return Err(format!("has {} nodes; at most {MAX_NODES} are run", graph.nodes.len()));
    }
    if let Some(tensor) = graph.tensors.iter().find(|t| !sane(&t.shape)) {
        return Err(format!(
            "gives the tensor `{}` an impossible shape {:?}",
            super::clean(&tensor.name),
            tensor.shape
        ));
    }
    let mut known: HashMap<&str, Known> = graph.tensors.iter().map(|t| (t.name.as_str(), constant(t))).collect();
    if let Some(port) = graph.inputs.first() {
        known.insert(&port.name, of_shape(input.to_vec()));
    }
    let (mut total, mut products) = (0u128, 0u128);
    for node in &graph.nodes {
        let inputs: Vec<Known> =
            node.inputs.iter().map(|name| known.get(name.as_str()).cloned().unwrap_or_default()).collect();
        let named = |reason: String| {
            format!("cannot run at its node `{}` ({}): {reason}", super::clean(called(node)), super::clean(&node.op))
        };
        let outputs = infer(node, &inputs, graph.opset).map_err(named)?;
        let work = cost(node, &inputs, &outputs);
        for (name, value) in node.outputs.iter().zip(outputs) {
            if let Some(shape) = &value.shape {
                let size = elements(shape);
                total = total.saturating_add(size);
                if size > MAX_ELEMENTS || total > MAX_TOTAL || !sane(shape) {
                    return Err(named(format!("a value of shape {shape:?} is larger than any face network needs")));
                }
            }
            known.insert(name, value);
        }
        products = products.saturating_add(work);
        if products > MAX_PRODUCTS {
            return Err(format!(
                "needs more than {} G multiplications for a picture; face networks need a fiftieth of that",
                MAX_PRODUCTS / 1_000_000_000
            ));
        }
    }
    Ok(products)
}

/// Also of values without elements, whose other sides could still be anything.
fn sane(shape: &[usize]) -> bool {
    shape.len() <= MAX_RANK && shape.iter().all(|&d| d as u128 <= MAX_ELEMENTS)
}

/// A node's name, or its first output's where it has none.
fn called(node: &Node) -> &str {
    match (node.name.as_str(), node.outputs.first()) {
        ("", Some(output)) => output,
        (name, _) => name,
    }
}

fn cost(node: &Node, inputs: &[Known], outputs: &[Known]) -> u128 {
    let shape = |list: &[Known], i: usize| list.get(i).and_then(|k| k.shape.clone());
    let Some(out) = shape(outputs, 0) else { return 0 };
    let inner = match node.op.as_str() {
        "Conv" => shape(inputs, 1).map_or(1, |w| elements(w.get(1..).unwrap_or(&[]))),
        "ConvTranspose" => shape(inputs, 1).map_or(1, |w| elements(w.get(1..).unwrap_or(&[])) * w[0].max(1) as u128),
        "Gemm" | "MatMul" => shape(inputs, 0).map_or(1, |a| elements(&a).max(1)),
        "MaxPool" | "AveragePool" => {
            node.ints("kernel_shape").map_or(1, |k| k.iter().fold(1u128, |a, &v| a.saturating_mul(v.max(1) as u128)))
        }
        _ => 1,
    };
    // A matrix product reads each row of A once for each column of the output.
    match node.op.as_str() {
        "Gemm" | "MatMul" => inner.saturating_mul(*out.last().unwrap_or(&1) as u128),
        _ => elements(&out).saturating_mul(inner),
    }
}
