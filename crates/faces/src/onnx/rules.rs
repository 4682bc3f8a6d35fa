//! What each operator makes of the shapes of its inputs, and of the few constants that sizes come from.

use super::wire::{Constant, Node, Refusal};

/// A value's shape, as far as it is known, and its contents if they are few and constant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub shape: Option<Vec<usize>>,
    pub values: Option<Vec<f64>>,
}

pub(crate) fn of_shape(shape: Vec<usize>) -> Known {
    Known { shape: Some(shape), values: None }
}

pub(crate) fn constant(tensor: &Constant) -> Known {
    Known { shape: Some(tensor.shape.clone()), values: tensor.values.clone() }
}

/// How many elements a shape has; saturates.
pub(crate) fn elements(shape: &[usize]) -> u128 {
    shape.iter().fold(1u128, |a, &d| a.saturating_mul(d as u128))
}

/// The outputs' shapes. Errors are the end of a sentence.
pub(crate) fn infer(node: &Node, inputs: &[Known], opset: i64) -> Refusal<Vec<Known>> {
    let first = || inputs.first().cloned().unwrap_or_default();
    let shape = |i: usize| inputs.get(i).and_then(|k| k.shape.clone());
    let values = |i: usize| inputs.get(i).and_then(|k| k.values.clone());
    let unknown = || vec![Known::default(); node.outputs.len().max(1)];
    let one = |shape: Option<Vec<usize>>| vec![Known { shape, values: None }];
    Ok(match node.op.as_str() {
        "Relu"
        | "PRelu"
        | "LeakyRelu"
        | "Elu"
        | "Sigmoid"
        | "HardSigmoid"
        | "HardSwish"
        | "Tanh"
        | "Softplus"
        | "Softsign"
        | "Erf"
        | "Gelu"
        | "Swish"
        | "Exp"
        | "Log"
        | "Sqrt"
        | "Abs"
        | "Neg"
        | "Reciprocal"
        | "Floor"
        | "Ceil"
        | "Round"
        | "Sign"
        | "Clip"
        | "Softmax"
        | "LogSoftmax"
        | "InstanceNormalization"
        | "LayerNormalization"
        | "LpNormalization" => one(first().shape),
        "BatchNormalization" | "Dropout" => {
            let mut outputs = unknown();
            outputs[0].shape = first().shape;
            outputs
        }
        "Identity" => vec![first()],
        "Cast" => vec![first()],
        "Constant" => vec![constant_value(node)],
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" | "Sum" | "Mean" | "Equal" | "Less" | "LessOrEqual"
        | "Greater" | "GreaterOrEqual" | "And" | "Or" | "Where" | "Mod" => {
            let mut result = first().shape;
            for other in inputs.iter().skip(1) {
                result = match (result, &other.shape) {
                    (Some(a), Some(b)) => Some(broadcast(&a, b)?),
                    _ => None,
                };
            }
            let values = arithmetic(&node.op, inputs)
                .filter(|v| result.as_ref().is_some_and(|s| elements(s) == v.len() as u128));
            vec![Known { shape: result, values }]
        }
        "Conv" => one(convolution(node, shape(0), shape(1))?),
        "MaxPool" | "AveragePool" | "LpPool" => {
            let mut outputs = unknown();
            outputs[0].shape = pool(node, shape(0))?;
            outputs
        }
        "GlobalAveragePool" | "GlobalMaxPool" => {
            one(shape(0).map(|s| s.iter().enumerate().map(|(i, &d)| if i < 2 { d } else { 1 }).collect()))
        }
        "Gemm" => match (shape(0), shape(1)) {
            (Some(a), Some(b)) if a.len() == 2 && b.len() == 2 => {
                let rows = if node.int("transA", 0) != 0 { a[1] } else { a[0] };
                let columns = if node.int("transB", 0) != 0 { b[0] } else { b[1] };
                one(Some(vec![rows, columns]))
            }
            (Some(_), Some(_)) => return Err("its inputs must be matrices".into()),
            _ => unknown(),
        },
        "MatMul" => one(matmul(shape(0), shape(1))?),
        "Flatten" => one(shape(0).map(|s| {
            let axis = axis_of(node.int("axis", 1), s.len()).unwrap_or(0);
            vec![elements(&s[..axis]) as usize, elements(&s[axis..]) as usize]
        })),
        "Reshape" => {
            let target = values(1).or_else(|| node.ints("shape").map(|s| s.iter().map(|&v| v as f64).collect()));
            vec![Known { shape: reshape(shape(0), target)?, values: first().values }]
        }
        "Transpose" => one(shape(0).map(|s| match node.ints("perm") {
            Some(perm) if perm.len() == s.len() => {
                perm.iter().map(|&p| s.get(p as usize).copied().unwrap_or(1)).collect()
            }
            _ => s.iter().rev().copied().collect(),
        })),
        "Shape" => vec![shape(0).map_or_else(Known::default, |s| {
            let start = clamp_index(node.int("start", 0), s.len());
            let end = clamp_index(node.int("end", s.len() as i64), s.len());
            let part: Vec<f64> = s.get(start..end.max(start)).unwrap_or(&[]).iter().map(|&d| d as f64).collect();
            Known { shape: Some(vec![part.len()]), values: Some(part) }
        })],
        "Size" => one(Some(vec![])),
        "Gather" => vec![gather(node, inputs)],
        "Concat" => vec![concat(node, inputs)?],
        "Unsqueeze" | "Squeeze" => {
            let axes =
                if opset >= 13 { values(1) } else { node.ints("axes").map(|a| a.iter().map(|&v| v as f64).collect()) };
            vec![Known { shape: stretch_rank(&node.op, shape(0), axes), values: first().values }]
        }
        "Slice" => vec![slice(node, inputs, opset)],
        // Never larger than the input.
        "Split" | "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceL2" | "ReduceProd" | "ReduceL1"
        | "ReduceSumSquare" | "ArgMax" | "DepthToSpace" | "SpaceToDepth" | "Not" => unknown(),
        "Resize" | "Upsample" => one(Some(resize(node, inputs)?)),
        "Pad" => one(Some(pad(node, inputs)?)),
        "Expand" => {
            let (Some(a), Some(b)) = (shape(0), values(1)) else {
                return Err("the size that it expands to cannot be told beforehand".into());
            };
            one(Some(broadcast(&a, &sizes(&b)?)?))
        }
        "ConstantOfShape" => {
            let target = sizes(&values(0).ok_or("its size cannot be told beforehand")?)?;
            let fill = node
                .attribute("value")
                .and_then(|a| a.tensor.as_ref()?.values.as_ref()?.first().copied())
                .unwrap_or(0.0);
            let count = elements(&target);
            vec![Known { values: (count <= 64).then(|| vec![fill; count as usize]), shape: Some(target) }]
        }
        "ConvTranspose" => {
            let (Some(x), Some(w)) = (shape(0), shape(1)) else {
                return Err("its size cannot be told beforehand".into());
            };
            if x.len() != 4 || w.len() != 4 {
                return Err("its input and weight must have four dimensions".into());
            }
            let stride = |i: usize| node.ints("strides").and_then(|s| s.get(i)).map_or(1, |&v| v.max(1) as usize);
            let extra = |i: usize| node.ints("output_padding").and_then(|s| s.get(i)).map_or(0, |&v| v.max(0) as usize);
            let dilation = |i: usize| node.ints("dilations").and_then(|s| s.get(i)).map_or(1, |&v| v.max(1) as usize);
            let side = |i: usize| {
                x[2 + i]
                    .saturating_mul(stride(i))
                    .saturating_add(w[2 + i].saturating_mul(dilation(i)))
                    .saturating_add(extra(i))
            };
            let group = node.int("group", 1).max(1) as usize;
            one(Some(vec![x[0], w[1].saturating_mul(group), side(0), side(1)]))
        }
        op => return Err(format!("the operator `{}` is none that face networks use", super::clean(op))),
    })
}

fn constant_value(node: &Node) -> Known {
    let Some(attribute) = node.attributes.first() else { return Known::default() };
    let list = |v: Vec<f64>| Known { shape: Some(vec![v.len()]), values: (v.len() <= 64).then_some(v) };
    match attribute.name.as_str() {
        "value" => attribute.tensor.as_ref().map(constant).unwrap_or_default(),
        "value_int" => Known { shape: Some(vec![]), values: attribute.int.map(|v| vec![v as f64]) },
        "value_float" => Known { shape: Some(vec![]), values: attribute.float.map(|v| vec![v.into()]) },
        "value_ints" => list(attribute.ints.iter().map(|&v| v as f64).collect()),
        "value_floats" => list(attribute.floats.iter().map(|&v| v.into()).collect()),
        _ => Known::default(),
    }
}

fn sizes(values: &[f64]) -> Refusal<Vec<usize>> {
    values
        .iter()
        .map(|&v| (0.0..=1e12).contains(&v).then_some(v as usize).ok_or_else(|| format!("{v} is no size")))
        .collect()
}

fn broadcast(a: &[usize], b: &[usize]) -> Refusal<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(format!("the shapes {a:?} and {b:?} do not fit each other")),
        })
        .collect()
}

/// Arithmetic on small constants: sizes are added, halved and doubled on their way to a resize.
fn arithmetic(op: &str, inputs: &[Known]) -> Option<Vec<f64>> {
    let [a, b] = inputs else { return None };
    let (a, b) = (a.values.as_ref()?, b.values.as_ref()?);
    let n = a.len().max(b.len());
    if n == 0 || (a.len() != n && a.len() != 1) || (b.len() != n && b.len() != 1) {
        return None;
    }
    let pair = |i: usize| (a[i.min(a.len() - 1)], b[i.min(b.len() - 1)]);
    (0..n)
        .map(|i| {
            let (x, y) = pair(i);
            let whole = x.fract() == 0.0 && y.fract() == 0.0;
            match op {
                "Add" => Some(x + y),
                "Sub" => Some(x - y),
                "Mul" => Some(x * y),
                // Whole numbers may be integers, whose division drops the rest.
                "Div" if y != 0.0 => Some(if whole { (x / y).trunc() } else { x / y }),
                _ => None,
            }
        })
        .collect()
}

fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(axis).ok().filter(|&a| a <= rank)
}

fn clamp_index(index: i64, length: usize) -> usize {
    let index = if index < 0 { index.saturating_add(length as i64) } else { index };
    index.clamp(0, length as i64) as usize
}

/// Output sides of a sliding window; padding adds to the input, ceil mode at most one.
fn windows(node: &Node, spatial: &[usize], kernel: &[usize]) -> Refusal<Vec<usize>> {
    let at = |name: &str, i: usize, default: i64| node.ints(name).and_then(|v| v.get(i)).copied().unwrap_or(default);
    let same = node.attribute("auto_pad").is_some_and(|a| a.text.starts_with("SAME"));
    let n = spatial.len();
    (0..n)
        .map(|i| {
            let stride = at("strides", i, 1).max(1) as i128;
            let dilation = at("dilations", i, 1).max(1) as i128;
            let pads = at("pads", i, 0) as i128 + at("pads", n + i, 0) as i128;
            let window = (kernel[i] as i128 - 1) * dilation + 1;
            let side = spatial[i] as i128;
            let out = if same { (side + stride - 1) / stride } else { (side + pads - window) / stride + 1 };
            let out = out + i128::from(node.int("ceil_mode", 0) != 0);
            usize::try_from(out)
                .ok()
                .filter(|&v| v <= 1 << 32)
                .ok_or_else(|| format!("a window of {window} does not fit a side of {side} with padding {pads}"))
        })
        .collect()
}

fn convolution(node: &Node, x: Option<Vec<usize>>, w: Option<Vec<usize>>) -> Refusal<Option<Vec<usize>>> {
    let (Some(x), Some(w)) = (x, w) else {
        return match node.ints("pads") {
            Some(pads) if pads.iter().any(|&p| p > 64) => Err("its padding is larger than any face network's".into()),
            _ => Ok(None),
        };
    };
    if x.len() != w.len() || x.len() < 3 {
        return Err(format!("an input of shape {x:?} does not fit a weight of shape {w:?}"));
    }
    let mut out = vec![x[0], w[0]];
    out.extend(windows(node, &x[2..], &w[2..])?);
    Ok(Some(out))
}

fn pool(node: &Node, x: Option<Vec<usize>>) -> Refusal<Option<Vec<usize>>> {
    let Some(x) = x else { return Ok(None) };
    let kernel: Vec<usize> =
        node.ints("kernel_shape").unwrap_or(&[]).iter().map(|&v| v.clamp(0, 1 << 20) as usize).collect();
    if x.len() < 3 || kernel.len() != x.len() - 2 || kernel.contains(&0) {
        return Err(format!("a window of {kernel:?} does not fit an input of shape {x:?}"));
    }
    let mut out = vec![x[0], x[1]];
    out.extend(windows(node, &x[2..], &kernel)?);
    Ok(Some(out))
}

fn matmul(a: Option<Vec<usize>>, b: Option<Vec<usize>>) -> Refusal<Option<Vec<usize>>> {
    let (Some(a), Some(b)) = (a, b) else { return Ok(None) };
    match (a.as_slice(), b.as_slice()) {
        ([front @ .., rows, k], [back @ .., k2, columns]) if k == k2 => {
            let mut out = broadcast(front, back)?;
            out.extend([*rows, *columns]);
            Ok(Some(out))
        }
        _ if a.len() < 2 || b.len() < 2 => Ok(None),
        _ => Err(format!("the shapes {a:?} and {b:?} cannot be multiplied")),
    }
}

fn reshape(from: Option<Vec<usize>>, target: Option<Vec<f64>>) -> Refusal<Option<Vec<usize>>> {
    let (Some(from), Some(target)) = (from, target) else { return Ok(None) };
    let total = elements(&from);
    let mut shape = Vec::new();
    let mut open = None;
    for (i, &v) in target.iter().enumerate() {
        if v == -1.0 {
            open = Some(i);
            shape.push(1);
        } else if v == 0.0 {
            shape.push(from.get(i).copied().unwrap_or(1));
        } else {
            shape.extend(sizes(&[v])?);
        }
    }
    let rest = elements(&shape).max(1);
    if let Some(i) = open {
        shape[i] = (total / rest) as usize;
    }
    if elements(&shape) != total {
        return Err(format!("{from:?} cannot be reshaped to {target:?}"));
    }
    Ok(Some(shape))
}

fn gather(node: &Node, inputs: &[Known]) -> Known {
    let (Some(data), Some(index)) = (inputs.first(), inputs.get(1)) else { return Known::default() };
    let (Some(shape), Some(picked)) = (&data.shape, &index.shape) else { return Known::default() };
    let Some(axis) = axis_of(node.int("axis", 0), shape.len()).filter(|&a| a < shape.len()) else {
        return Known::default();
    };
    let mut out = shape[..axis].to_vec();
    out.extend(picked);
    out.extend(&shape[axis + 1..]);
    let values = match (&data.values, &index.values) {
        (Some(values), Some(at)) if shape.len() == 1 => {
            at.iter().map(|&i| values.get(clamp_index(i as i64, values.len())).copied()).collect()
        }
        _ => None,
    };
    Known { shape: Some(out), values }
}

fn concat(node: &Node, inputs: &[Known]) -> Refusal<Known> {
    let shapes: Option<Vec<&Vec<usize>>> = inputs.iter().map(|k| k.shape.as_ref()).collect();
    let (Some(shapes), Some(head)) = (shapes, inputs.first().and_then(|k| k.shape.as_ref())) else {
        return Ok(Known::default());
    };
    let Some(axis) = axis_of(node.int("axis", 0), head.len()).filter(|&a| a < head.len()) else {
        return Err("its axis is outside its inputs".into());
    };
    let mut out = head.clone();
    out[axis] =
        shapes.iter().try_fold(0usize, |a, s| a.checked_add(*s.get(axis)?)).ok_or("its inputs differ in rank")?;
    let values: Option<Vec<Vec<f64>>> =
        (head.len() == 1).then(|| inputs.iter().map(|k| k.values.clone()).collect()).flatten();
    let values = values.map(|v| v.concat()).filter(|v| v.len() <= 64);
    Ok(Known { shape: Some(out), values })
}

fn stretch_rank(op: &str, shape: Option<Vec<usize>>, axes: Option<Vec<f64>>) -> Option<Vec<usize>> {
    let mut shape = shape?;
    if op == "Squeeze" {
        let Some(axes) = axes else {
            shape.retain(|&d| d != 1);
            return Some(shape);
        };
        let rank = shape.len();
        let gone: Option<Vec<usize>> = axes.iter().map(|&a| axis_of(a as i64, rank)).collect();
        let gone = gone?;
        return Some(shape.iter().enumerate().filter(|(i, _)| !gone.contains(i)).map(|(_, &d)| d).collect());
    }
    let axes = axes?;
    let rank = shape.len() + axes.len();
    let mut places: Vec<usize> = axes.iter().map(|&a| axis_of(a as i64, rank)).collect::<Option<_>>()?;
    places.sort_unstable();
    for place in places {
        if place > shape.len() {
            return None;
        }
        shape.insert(place, 1);
    }
    Some(shape)
}

/// Only what the way to a resize needs: a vector cut from `start` to `end`.
fn slice(node: &Node, inputs: &[Known], opset: i64) -> Known {
    let Some(data) = inputs.first() else { return Known::default() };
    let (Some(shape), Some(values)) = (&data.shape, &data.values) else { return Known::default() };
    let list = |name: &str, i: usize| -> Option<i64> {
        if opset < 10 {
            node.ints(name)?.first().copied()
        } else {
            inputs.get(i)?.values.as_ref()?.first().map(|&v| v.clamp(-9e15, 9e15) as i64)
        }
    };
    let (Some(start), Some(end)) = (list("starts", 1), list("ends", 2)) else { return Known::default() };
    let step = if opset < 10 { 1 } else { list("steps", 4).unwrap_or(1) };
    if shape.len() != 1 || step != 1 {
        return Known::default();
    }
    let (start, end) = (clamp_index(start, values.len()), clamp_index(end, values.len()));
    let part = values.get(start..end.max(start)).unwrap_or(&[]).to_vec();
    Known { shape: Some(vec![part.len()]), values: Some(part) }
}

fn resize(node: &Node, inputs: &[Known]) -> Refusal<Vec<usize>> {
    let unknown = || "the size that it resizes to cannot be told beforehand".to_owned();
    let shape = inputs.first().and_then(|k| k.shape.clone()).ok_or_else(unknown)?;
    let filled = |i: usize| inputs.get(i).and_then(|k| k.values.clone()).filter(|v| !v.is_empty());
    let by_attribute = node.attribute("scales").map(|a| a.floats.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
    // Upsample and the first Resize keep the scales second, later ones third and the sizes fourth.
    let scales = match (node.op.as_str(), inputs.len()) {
        ("Upsample", _) | (_, 2) => filled(1).or(by_attribute),
        _ => filled(2),
    };
    if let Some(scales) = scales {
        if scales.len() != shape.len() {
            return Err(format!("{} scales do not fit an input of shape {shape:?}", scales.len()));
        }
        let scaled: Vec<f64> = shape.iter().zip(&scales).map(|(&d, s)| (d as f64 * s).floor()).collect();
        return sizes(&scaled);
    }
    let target = sizes(&filled(3).ok_or_else(unknown)?)?;
    if target.len() != shape.len() {
        return Err(format!("{} sizes do not fit an input of shape {shape:?}", target.len()));
    }
    Ok(target)
}

fn pad(node: &Node, inputs: &[Known]) -> Refusal<Vec<usize>> {
    let unknown = || "the padding cannot be told beforehand".to_owned();
    let shape = inputs.first().and_then(|k| k.shape.clone()).ok_or_else(unknown)?;
    let pads: Vec<f64> = match node.ints("pads") {
        Some(pads) => pads.iter().map(|&v| v as f64).collect(),
        None => inputs.get(1).and_then(|k| k.values.clone()).ok_or_else(unknown)?,
    };
    if pads.len() != shape.len() * 2 {
        return Err(format!("{} paddings do not fit an input of shape {shape:?}", pads.len()));
    }
    let padded: Vec<f64> = shape.iter().enumerate().map(|(i, &d)| d as f64 + pads[i] + pads[shape.len() + i]).collect();
    sizes(&padded)
}
