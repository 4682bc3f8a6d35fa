//! Products of sizes that fill a large GPU, whose own kernel takes only such: results beside the same numbers in f32.

mod device;

use device::device;
use tensor::ops::{self, Activation, Conv2d, ConvOptions, Fused, KeyValue, Linear, Normed, Products, Rows};
use tensor::{DType, Device, Tensor};

/// Deterministic numbers in [-1, 1) times `size`, rounded to 16 bits of both kinds.
fn noise(seed: u64, size: f32, shape: &[usize]) -> Tensor {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Seven bits: exact in bf16, too.
        ((state >> 57) as f32 / 64.0 - 1.0) * size
    };
    let data: Vec<f32> = (0..shape.iter().product()).map(next).collect();
    Tensor::from_f32(&Device::Cpu, DType::F32, shape, &data).unwrap()
}

/// Relative distance of all numbers from what they should be, within what rounding the result costs.
fn close(got: &Tensor, want: &Tensor, dtype: DType, what: &str) {
    within(if dtype == DType::BF16 { 4e-3 } else { 5e-4 }, got, want, dtype, what);
}

fn within(most: f64, got: &Tensor, want: &Tensor, dtype: DType, what: &str) {
    let (got, want) = (got.to_vec_f32().unwrap(), want.to_vec_f32().unwrap());
    assert_eq!(got.len(), want.len(), "{what}");
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(&want).map(|(a, b)| square(a - b)).sum();
    let error = (error / want.iter().map(|b| square(*b)).sum::<f64>()).sqrt();
    println!("{what} in {dtype}: {error:.1e} from f32");
    assert!(error < most, "{what} in {dtype}: {error}");
}

fn each(check: impl Fn(DType, &dyn Fn(&Tensor) -> Tensor)) {
    for dtype in [DType::F16, DType::BF16] {
        if dtype == DType::F16 && device() == Device::Cpu {
            continue;
        }
        check(dtype, &|x: &Tensor| x.to_device(&device()).unwrap().cast(dtype).unwrap());
    }
}

/// With and without what is added; a last tile that is not full.
#[test]
fn linear_layers_of_many_rows() {
    for (rows, depth, columns) in [(4000, 192, 640), (2048, 64, 1280)] {
        let (x, w, b) = (noise(1, 1.0, &[rows, depth]), noise(2, 0.125, &[columns, depth]), noise(3, 1.0, &[columns]));
        let residual = noise(4, 1.0, &[rows, columns]);
        let exact = Linear::new(&w, Some(&b)).unwrap();
        let bare = Linear::new(&w, None).unwrap();
        each(|dtype, here| {
            let b = b.to_device(&device()).unwrap();
            let (layer, plain) = (Linear::new(&here(&w), Some(&b)).unwrap(), Linear::new(&here(&w), None).unwrap());
            let what = format!("linear {rows}x{depth} -> {columns}");
            let got = layer.forward_with(&here(&x), Activation::None, Some(&here(&residual))).unwrap();
            let want = exact.forward_with(&x, Activation::None, Some(&residual)).unwrap();
            close(&got, &want, dtype, &format!("{what} + bias + residual"));
            close(&plain.forward(&here(&x)).unwrap(), &bare.forward(&x).unwrap(), dtype, &what);
            close(&layer.forward(&here(&x)).unwrap(), &exact.forward(&x).unwrap(), dtype, &format!("{what} + bias"));
        });
    }
}

#[test]
fn gated_layers_of_many_rows() {
    for (rows, depth, columns) in [(2000, 128, 2048), (1000, 64, 4096)] {
        let (x, w, b) =
            (noise(5, 1.0, &[rows, depth]), noise(6, 0.25, &[2 * columns, depth]), noise(7, 1.0, &[2 * columns]));
        let want = Linear::new(&w, Some(&b)).unwrap().forward_geglu(&x).unwrap();
        each(|dtype, here| {
            let b = b.to_device(&device()).unwrap();
            let layer = Linear::new(&here(&w), Some(&b)).unwrap();
            let got = layer.forward_geglu(&here(&x)).unwrap();
            close(&got, &want, dtype, &format!("geglu {rows}x{depth} -> {columns}"));
        });
    }
}

/// Lines wider and narrower than a tile, more than one tile of columns, edges on all sides.
#[test]
fn convolutions_of_many_pixels() {
    for [b, h, w, c, n] in [[1, 128, 128, 64, 160], [8, 32, 32, 64, 320], [2, 32, 256, 64, 160]] {
        let (x, weight) = (noise(8, 1.0, &[b, h, w, c]), noise(9, 0.125, &[n, c, 3, 3]));
        let (bias, residual) = (noise(10, 1.0, &[n]), noise(11, 1.0, &[b, h, w, n]));
        let exact = Conv2d::new(&weight, Some(&bias), ConvOptions::same3()).unwrap();
        each(|dtype, here| {
            let bias = bias.to_device(&device()).unwrap();
            let conv = Conv2d::new(&here(&weight), Some(&bias), ConvOptions::same3()).unwrap();
            let what = format!("convolution {b}x{h}x{w}x{c} -> {n}");
            let there = here(&residual);
            let want = exact.forward_with(&x, &Fused { residual: Some(&residual), ..Fused::default() }).unwrap();
            let got = conv.forward_with(&here(&x), &Fused { residual: Some(&there), ..Fused::default() }).unwrap();
            close(&got, &want, dtype, &format!("{what} + residual"));
            close(&conv.forward(&here(&x)).unwrap(), &exact.forward(&x).unwrap(), dtype, &what);
        });
    }
}

/// Self-attention from one product: whole tiles of keys and a last one of few, heads that share a block with others, scores
/// near each other and scores of which one outweighs all.
#[test]
fn attention_over_many_positions() {
    for (b, n, heads, scale) in [(2, 1024, 20, 0.125), (2, 1000, 20, 8.0), (2, 520, 5, 0.125)] {
        let qkv = noise(23, 1.0, &[b, n, 3 * 64 * heads]);
        let want = ops::attention_joined(&qkv, heads, scale, false).unwrap();
        each(|dtype, here| {
            let got = ops::attention_joined(&here(&qkv), heads, scale, false).unwrap();
            close(&got, &want, dtype, &format!("attention {b}x{n}, {heads} heads, scale {scale}"));
        });
    }
    // The largest scores come last, far above those before.
    let [q, k, v] = [24, 25, 26].map(|seed| noise(seed, 1.0, &[2, 1000, 1280]));
    let later = |i: usize| i / 1280 % 1000 / 250;
    let grown: Vec<f32> = k.to_vec_f32().unwrap().iter().enumerate().map(|(i, x)| x * (1 << later(i)) as f32).collect();
    let k = Tensor::from_f32(&Device::Cpu, DType::F32, k.shape(), &grown).unwrap();
    let want = ops::attention(&q, KeyValue { k: &k, v: &v }, 20, 0.125, false, None).unwrap();
    each(|dtype, here| {
        let (q, k, v) = (here(&q), here(&k), here(&v));
        let got = ops::attention(&q, KeyValue { k: &k, v: &v }, 20, 0.125, false, None).unwrap();
        close(&got, &want, dtype, "attention with growing scores");
    });
}

/// Layers that take over the norm before them, on rows that a product wrote, with a mean beside their deviation.
#[test]
fn layers_behind_a_norm() {
    let (rows, depth, width) = (4000, 192, 640);
    let (a, w) = (noise(12, 1.0, &[rows, depth]), noise(13, 0.125, &[width, depth]));
    // A bias of one sign gives rows a mean.
    let (b, residual) = (constant(1.5, width), noise(15, 1.0, &[rows, width]));
    let (gamma, beta) = (noise(17, 1.0, &[width]), noise(18, 0.5, &[width]));
    let (plain, gated) = (noise(19, 0.125, &[1280, width]), noise(20, 0.125, &[2 * 2560, width]));
    let bias = noise(21, 1.0, &[2 * 2560]);
    each(|dtype, here| {
        let there = |x: &Tensor| x.to_device(&device()).unwrap();
        let x = Linear::new(&here(&w), Some(&there(&b))).unwrap();
        let x = x.forward_with(&here(&a), Activation::None, Some(&here(&residual))).unwrap();
        let exact = x.to_device(&Device::Cpu).unwrap().cast(DType::F32).unwrap();
        let exact = tensor::ops::layer_norm(&exact, &gamma, Some(&beta), 1e-5).unwrap();
        let behind = |weight: &Tensor, bias: Option<&Tensor>| {
            let norm = [there(&gamma), there(&beta)];
            let (layer, takes) =
                Linear::behind_norm(&here(weight), bias, Products::Whole, [&norm[0], &norm[1]]).unwrap();
            let [gamma, beta] = match takes {
                true => [there(&constant(1.0, width)), there(&constant(0.0, width))],
                false => norm,
            };
            let normal = tensor::ops::layer_norm_for(&layer, &x, &gamma, &beta, 1e-5).unwrap();
            println!("{takes}: {normal:?}");
            (layer, normal)
        };
        let (layer, normal) = behind(&plain, None);
        let want = Linear::new(&plain, None).unwrap().forward(&exact).unwrap();
        close(&layer.forward_rows(&normal, None).unwrap(), &want, dtype, "linear behind a norm");
        let (layer, normal) = behind(&gated, Some(&there(&bias)));
        let next = Linear::new(&here(&noise(22, 1.0, &[width, 2560])), None).unwrap();
        let want = Linear::new(&gated, Some(&bias)).unwrap().forward_geglu(&exact).unwrap();
        match layer.forward_geglu_for(&next, &normal).unwrap() {
            Rows::Plain(got) => close(&got, &want, dtype, "geglu behind a norm"),
            // Which only their layer can read; `rows_in_the_order_of_tiles` does.
            Rows::Packed(_) => {}
            other => panic!("{other:?} are not in 16 bits"),
        }
    });
}

fn constant(value: f32, count: usize) -> Tensor {
    Tensor::from_f32(&Device::Cpu, DType::F32, &[count], &vec![value; count]).unwrap()
}

/// A norm with SiLU of groups of so many channels.
fn normed<'a>(x: &'a Tensor, (weight, bias): &'a (Tensor, Tensor), size: usize) -> Normed<'a> {
    Normed { x, add: None, groups: x.last_dim() / size, weight, bias, eps: 1e-5, activation: Activation::Silu }
}

/// Convolutions of so many channels that they are computed by tiles, with the norm before them and without, one behind the
/// other; sizes that are no whole tiles. Tiles round their elements and products, too.
#[test]
fn wide_convolutions() {
    let sizes = [([2, 13, 39, 320], 640, 10), ([1, 34, 16, 640], 320, 20), ([2, 7, 10, 1280], 1280, 40)];
    for ([b, h, w, c], n, size) in sizes {
        let (x, residual) = (noise(23, 1.0, &[b, h, w, c]), noise(24, 1.0, &[b, h, w, n]));
        let weights = [noise(25, 0.03125, &[n, c, 3, 3]), noise(26, 0.03125, &[n, n, 3, 3])];
        let (bias, add) = (noise(27, 1.0, &[n]), noise(28, 2.0, &[b, n + 3]));
        let norms = [c, n].map(|c| (noise(29, 1.0, &[c]), noise(30, 0.5, &[c])));
        let exact = weights.each_ref().map(|weight| Conv2d::new(weight, Some(&bias), ConvOptions::same3()).unwrap());
        each(|dtype, here| {
            let there = |x: &Tensor| x.to_device(&device()).unwrap();
            let back = |x: &Tensor| x.to_device(&Device::Cpu).unwrap().cast(DType::F32).unwrap();
            let close = |got: &Tensor, want: &Tensor, what: &str| {
                let most = if dtype == DType::BF16 { 5e-3 } else { 2e-3 };
                within(most, got, want, dtype, &format!("{what} {b}x{h}x{w}x{c} -> {n}"));
            };
            let convs = weights.each_ref().map(|weight| {
                let mut conv = Conv2d::new(&here(weight), Some(&there(&bias)), ConvOptions::same3()).unwrap();
                conv.transform().unwrap();
                conv
            });
            let ours = norms.each_ref().map(|(weight, bias)| (there(weight), there(bias)));
            let (add_here, residual_here) = (there(&add), here(&residual));
            let given = here(&x);
            close(&convs[0].forward(&given).unwrap(), &exact[0].forward(&x).unwrap(), "convolution");
            // Of numbers whose results 16 bits just hold.
            let large = ops::scale(&x, 2048.0).unwrap();
            close(&convs[0].forward(&here(&large)).unwrap(), &exact[0].forward(&large).unwrap(), "large convolution");
            let first = convs[0].forward_normed(&normed(&given, &ours[0], size), &Fused::default()).unwrap();
            let want = exact[0].forward(&normed(&x, &norms[0], size).done().unwrap()).unwrap();
            close(&first, &want, "norm, convolution");
            // Of what the first one left, with and without its sums.
            let read = back(&first);
            let want = Normed { add: Some((&add, 3)), ..normed(&read, &norms[1], size) }.done().unwrap();
            let want = exact[1].forward_with(&want, &Fused { residual: Some(&residual), ..Fused::default() }).unwrap();
            for second in [&first, &here(&read)] {
                let norm = Normed { add: Some((&add_here, 3)), ..normed(second, &ours[1], size) };
                let fused = Fused { residual: Some(&residual_here), ..Fused::default() };
                close(&convs[1].forward_normed(&norm, &fused).unwrap(), &want, "norm of a sum, convolution, residual");
            }
            for (x, what) in [(&first, "sums known"), (&here(&read), "sums unknown")] {
                let norm = Normed { activation: Activation::None, ..normed(x, &ours[1], size) };
                let want = Normed { activation: Activation::None, ..normed(&read, &norms[1], size) }.done().unwrap();
                close(&norm.done().unwrap(), &want, &format!("group norm, {what}"));
            }
            let enlarged = convs[0].forward_upsampled_to(&given, 2 * h - 1, w + 3).unwrap();
            close(&enlarged, &exact[0].forward_upsampled_to(&x, 2 * h - 1, w + 3).unwrap(), "enlarged, convolution");
            let silu = Fused { activation: Activation::Silu, ..Fused::default() };
            let got = convs[0].forward_with(&given, &silu).unwrap();
            close(&got, &exact[0].forward_with(&x, &silu).unwrap(), "convolution, SiLU");
        });
    }
}

/// A processor's convolution does the norm before it in passing or not, as suits its tasks: that changes no bit. Patches, parts
/// of lines, and lines one after the other.
#[test]
fn norms_in_passing_change_nothing() {
    if device() != Device::Cpu {
        return;
    }
    for [b, h, w, c] in [[2, 16, 64, 64], [1, 13, 48, 32], [2, 30, 26, 96]] {
        let (x, weight) = (noise(34, 1.0, &[b, h, w, c]), noise(35, 0.125, &[40, c, 3, 3]));
        let norms = (noise(36, 1.0, &[c]), noise(37, 0.5, &[c]));
        each(|_, here| {
            let mut conv = Conv2d::new(&here(&weight), None, ConvOptions::same3()).unwrap();
            conv.transform().unwrap();
            let x = here(&x);
            for activation in [Activation::Silu, Activation::None, Activation::Gelu] {
                let norm = Normed { activation, ..normed(&x, &norms, 8) };
                let got = conv.forward_normed(&norm, &Fused::default()).unwrap();
                let want = conv.forward(&norm.done().unwrap()).unwrap();
                assert!(got.to_vec_f32().unwrap() == want.to_vec_f32().unwrap(), "{b}x{h}x{w}x{c}, {activation:?}");
            }
        });
    }
}

/// Convolutions of enlarged pictures: doubled and nearly so.
#[test]
fn wide_convolutions_of_doubled_pictures() {
    for ([b, h, w, c], n) in [([2, 9, 35, 320], 320), ([1, 17, 6, 640], 320)] {
        let (x, weight, bias) =
            (noise(31, 1.0, &[b, h, w, c]), noise(32, 0.03125, &[n, c, 3, 3]), noise(33, 1.0, &[n]));
        let exact = Conv2d::new(&weight, Some(&bias), ConvOptions::same3()).unwrap();
        each(|dtype, here| {
            let bias = bias.to_device(&device()).unwrap();
            let weight = here(&weight);
            let mut conv = Conv2d::new(&weight, Some(&bias), ConvOptions::same3()).unwrap();
            conv.transform_doubled(&weight, Products::Whole).unwrap();
            for (h, w) in [(2 * h, 2 * w), (2 * h - 1, 2 * w), (2 * h, 2 * w - 1), (h, w)] {
                let got = conv.forward_upsampled_to(&here(&x), h, w).unwrap();
                let want = exact.forward_upsampled_to(&x, h, w).unwrap();
                let most = if dtype == DType::BF16 { 5e-3 } else { 1e-3 };
                within(most, &got, &want, dtype, &format!("convolution {b}x{h}x{w}x{c} -> {n}, enlarged"));
            }
        });
    }
}
