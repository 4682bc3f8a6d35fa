//! Products of f32 done in two parts of bf16, beside those of f32: sizes that fill no tile, numbers of all magnitudes, and
//! those that are none. On processors without tiles both are the same; the feature `imitated-tiles` stands in for them.

use tensor::ops::{self, Activation, Conv2d, ConvOptions, Fused, KeyValue, Linear, PackedKeyValue, Products};
use tensor::{DType, Device, Tensor};

/// What is left out of a product is 2^-18 of it, what rounding the second parts leaves as much for each side.
const TOLERANCE: f64 = 1e-5;

fn tensor(shape: &[usize], data: &[f32]) -> Tensor {
    Tensor::from_f32(&Device::Cpu, DType::F32, shape, data).unwrap()
}

fn numbers(seed: usize, count: usize) -> Vec<f32> {
    let mut state = seed as u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn noise(seed: usize, shape: &[usize]) -> Tensor {
    tensor(shape, &numbers(seed, shape.iter().product()))
}

#[track_caller]
fn close(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.shape(), want.shape());
    let (got, want) = (got.to_vec_f32().unwrap(), want.to_vec_f32().unwrap());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(&want).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = want.iter().map(|b| square(*b)).sum();
    println!("{what}: {:.1e}", (error / norm).sqrt());
    assert!(error <= TOLERANCE * TOLERANCE * norm, "{what}: {:.1e}", (error / norm).sqrt());
}

/// The layer as it is, and in parts.
fn linear(weight: &Tensor, bias: Option<&Tensor>) -> [Linear; 2] {
    [Products::Whole, Products::InParts].map(|products| Linear::with(weight, bias, products).unwrap())
}

#[test]
fn linear_layers() {
    let sizes = [(1, 1, 1), (2, 3, 5), (13, 17, 33), (33, 32, 31), (97, 255, 64), (5, 600, 130), (200, 513, 1100)];
    for (rows, depth, columns) in sizes.into_iter().chain([(300, 1300, 64), (0, 7, 9), (257, 2592, 40)]) {
        let (x, w, b) = (noise(1, &[rows, depth]), noise(2, &[columns, depth]), noise(3, &[columns]));
        let residual = noise(4, &[rows, columns]);
        let [whole, parts] = linear(&w, Some(&b));
        let what = format!("{rows}x{depth} -> {columns}");
        close(&parts.forward(&x).unwrap(), &whole.forward(&x).unwrap(), &what);
        let both = [&parts, &whole].map(|layer| layer.forward_with(&x, Activation::Silu, Some(&residual)).unwrap());
        close(&both[0], &both[1], &format!("{what}, SiLU and residual"));
        if columns % 2 == 0 {
            let [got, want] = [&parts, &whole].map(|layer| layer.forward_geglu(&x).unwrap());
            close(&got, &want, &format!("{what}, gated"));
        }
        if depth > 1 {
            let [a, b] = [0, depth / 3]
                .map(|from| if from == 0 { depth / 3 } else { depth - from })
                .map(|width| noise(5, &[rows, width]));
            if depth / 3 > 0 {
                let [got, want] = [&parts, &whole].map(|layer| layer.forward_joined(&a, &b).unwrap());
                close(&got, &want, &format!("{what}, joined"));
            }
        }
    }
}

#[test]
fn convolutions() {
    let uneven = |stride| ConvOptions { stride, padding: [0, 1, 0, 1] };
    // Patches, parts of lines, whole lines, gathered windows; enlarged, two pictures, every second pixel.
    let rows = [
        ([1, 5, 7, 3], 8, 3, ConvOptions::same3(), [5, 7]),
        ([2, 8, 6, 5], 33, 3, uneven(2), [8, 6]),
        ([1, 9, 9, 40], 12, 1, ConvOptions::default(), [9, 9]),
        ([1, 9, 9, 64], 12, 1, ConvOptions::default(), [9, 9]),
        ([2, 4, 5, 64], 20, 3, ConvOptions::same3(), [8, 10]),
        ([1, 16, 16, 4], 6, 4, ConvOptions::padded(4, 0), [16, 16]),
        ([1, 9, 11, 64], 80, 3, ConvOptions::same3(), [9, 11]),
        ([1, 3, 3, 1280], 65, 3, ConvOptions::same3(), [3, 3]),
        ([2, 3, 16, 32], 40, 3, ConvOptions::same3(), [3, 16]),
        ([1, 7, 32, 32], 33, 3, uneven(2), [7, 32]),
        ([1, 13, 48, 32], 20, 3, ConvOptions::same3(), [13, 48]),
        ([2, 5, 16, 352], 8, 3, ConvOptions::same3(), [5, 16]),
        ([2, 16, 64, 32], 20, 3, ConvOptions::same3(), [16, 64]),
        ([1, 16, 128, 32], 33, 3, uneven(2), [16, 128]),
        ([1, 8, 16, 32], 20, 3, ConvOptions::same3(), [16, 32]),
        ([1, 30, 26, 32], 20, 3, ConvOptions::same3(), [30, 26]),
    ];
    for (shape, n, kernel, options, seen) in rows {
        let [b, h, w, c] = shape;
        let (x, weight, bias) = (noise(n, &shape), noise(1, &[n, c, kernel, kernel]), noise(2, &[n]));
        let mut both = [Products::InParts, Products::Whole]
            .map(|products| Conv2d::with(&weight, Some(&bias), options, products).unwrap());
        let what = format!("{b}x{h}x{w}x{c} -> {n}, {options:?}");
        if seen != [h, w] {
            let [got, want] = both.each_ref().map(|conv| conv.forward_upsampled_to(&x, seen[0], seen[1]).unwrap());
            close(&got, &want, &format!("{what}, enlarged"));
            both[0].transform_doubled(&weight, Products::InParts).unwrap();
            let got = both[0].forward_upsampled_to(&x, seen[0], seen[1]).unwrap();
            close(&got, &want, &format!("{what}, doubled"));
            continue;
        }
        let [got, want] = both.each_ref().map(|conv| conv.forward(&x).unwrap());
        close(&got, &want, &what);
        let (add, residual) = (noise(3, &[b, n]), noise(4, want.shape()));
        let fused = Fused { channel_add: Some(&add), activation: Activation::None, residual: Some(&residual) };
        let [got, want] = both.each_ref().map(|conv| conv.forward_with(&x, &fused).unwrap());
        close(&got, &want, &format!("{what}, fused"));
    }
}

#[test]
fn attention() {
    for (b, n, m, heads, d, causal) in [
        (1, 1, 1, 1, 1, false),
        (2, 5, 7, 3, 5, false),
        (1, 77, 77, 2, 16, true),
        (1, 100, 600, 2, 64, false),
        (1, 300, 300, 1, 40, true),
        (1, 9, 513, 1, 96, false),
        (2, 70, 130, 1, 200, false),
        (1, 33, 257, 2, 64, false),
    ] {
        let width = heads * d;
        let (q, k, v) = (noise(1, &[b, n, width]), noise(2, &[b, m, width]), noise(3, &[b, m, width]));
        let (k2, v2) = (noise(4, &[b, 16, width]), noise(5, &[b, 16, width]));
        let scale = 2.0 / (d as f32).sqrt();
        let what = format!("{n}x{m}, {heads} heads of {d}");
        let [whole, parts] = [Products::Whole, Products::InParts].map(|products| {
            let keys = |k, v| PackedKeyValue::with(KeyValue { k, v }, heads, products).unwrap();
            let (first, second) = (keys(&k, &v), keys(&k2, &v2));
            let alone = ops::attention_packed(&q, &first, scale, None).unwrap();
            let both = ops::attention_packed(&q, &first, scale, Some((&second, 0.75))).unwrap();
            let qkv = noise(6, &[b, n, 3 * width]);
            [alone, both, ops::attention_joined_with(&qkv, heads, scale, causal, products).unwrap()]
        });
        for (got, want) in parts.iter().zip(&whole) {
            close(got, want, &what);
        }
    }
    // Scores that would overflow without their maximum, and those from which on the softmax has no fast way.
    for (size, scale, most) in [(1.0, 50.0, 2e-3), (3e4, 1.0, 2.0)] {
        let scaled = |seed| tensor(&[1, 40, 32], &numbers(seed, 40 * 32).iter().map(|x| x * size).collect::<Vec<_>>());
        let (q, k, v) = (scaled(1), scaled(2), noise(3, &[1, 40, 32]));
        let [got, want] = [Products::InParts, Products::Whole].map(|products| {
            let keys = PackedKeyValue::with(KeyValue { k: &k, v: &v }, 2, products).unwrap();
            ops::attention_packed(&q, &keys, scale, None).unwrap().to_vec_f32().unwrap()
        });
        // Rounding a score by 2^-18 of it changes its weight by as much as the score is large.
        let apart = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{size}: {apart}");
        assert!(apart < most && got.iter().all(|y| y.abs() <= 1.0), "{size}: {apart}");
    }
    // What is no number, in each operand.
    for (value, which) in [f32::INFINITY, f32::NAN, 1e30, f32::MAX].into_iter().flat_map(|x| [(x, 0), (x, 1), (x, 2)]) {
        let operands: [Tensor; 3] = std::array::from_fn(|i| {
            let mut x = numbers(i, 70 * 64);
            if i == which {
                x[9 * 64 + 3] = value;
            }
            tensor(&[1, 70, 64], &x)
        });
        let [q, k, v] = &operands;
        let [got, want] = [Products::InParts, Products::Whole].map(|products| {
            let keys = PackedKeyValue::with(KeyValue { k, v }, 2, products).unwrap();
            ops::attention_packed(q, &keys, 0.2, None).unwrap().to_vec_f32().unwrap()
        });
        assert_eq!(kinds(&got), kinds(&want), "{value} in operand {which}");
    }
}

/// 0 for numbers, 1 and -1 for infinities, 2 for NaN.
fn kinds(y: &[f32]) -> Vec<i32> {
    let kind = |y: &f32| match (y.is_nan(), y.is_infinite()) {
        (true, _) => 2,
        (_, true) => y.signum() as i32,
        _ => 0,
    };
    y.iter().map(kind).collect()
}

/// Powers of two scale results exactly; numbers whose second parts tiles take for zero still have their first.
#[test]
fn magnitudes() {
    let [rows, depth, columns] = [40, 96, 48];
    let (x, w) = (numbers(1, rows * depth), numbers(2, columns * depth));
    let scaled = |of: &[f32], by: i32| of.iter().map(|x| x * 2f32.powi(by)).collect::<Vec<_>>();
    for (of_x, of_w) in
        [(0, 0), (59, -30), (-60, 50), (-30, -40), (58, 58), (70, -70), (120, -100), (-100, 120), (-90, 61)]
    {
        let x = tensor(&[rows, depth], &scaled(&x, of_x));
        let [whole, parts] = linear(&tensor(&[columns, depth], &scaled(&w, of_w)), None);
        let down = |y: Tensor| tensor(&[rows, columns], &scaled(&scaled(&y.to_vec_f32().unwrap(), -of_x), -of_w));
        close(&down(parts.forward(&x).unwrap()), &down(whole.forward(&x).unwrap()), &format!("2^{of_x}, 2^{of_w}"));
    }
    // Nothing is lost but what rounding to eight digits costs, where second parts would be too small for tiles.
    let tiny = tensor(&[rows, depth], &scaled(&x, -116));
    let [whole, parts] = linear(&tensor(&[columns, depth], &scaled(&w, 40)), None);
    let [got, want] = [&parts, &whole].map(|layer| layer.forward(&tiny).unwrap().to_vec_f32().unwrap());
    let error: f64 = got.iter().zip(&want).map(|(a, b)| f64::from((a - b) * 2f32.powi(76)).powi(2)).sum();
    let norm: f64 = want.iter().map(|b| f64::from(b * 2f32.powi(76)).powi(2)).sum();
    assert!(error <= 4e-3 * 4e-3 * norm, "{}", (error / norm).sqrt());
}

/// Infinities, NaN and what overflows give what they give in f32, and nothing to other rows.
#[test]
fn what_is_no_number() {
    let (rows, depth, columns) = (70, 40, 36);
    let some = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, -f32::MAX, 1e19];
    for value in some {
        let (mut x, mut w) = (numbers(1, rows * depth), numbers(2, columns * depth));
        // Twice in a row: infinities may cancel.
        for at in [3 * depth + 5, 3 * depth + 6, 50 * depth] {
            x[at] = value;
        }
        w[7] = 0.0;
        let check = |x: &[f32], w: &[f32]| {
            let [whole, parts] = linear(&tensor(&[columns, depth], w), None);
            let x = tensor(&[rows, depth], x);
            let [got, want] = [&parts, &whole].map(|layer| layer.forward(&x).unwrap().to_vec_f32().unwrap());
            assert_eq!(kinds(&got), kinds(&want), "{value}");
            let finite = |y: &[f32]| y.iter().map(|y| if y.abs() < 1e9 { *y } else { 0.0 }).collect::<Vec<_>>();
            close(
                &tensor(&[rows, columns], &finite(&got)),
                &tensor(&[rows, columns], &finite(&want)),
                &format!("{value}"),
            );
        };
        check(&x, &w);
        w[3 * depth + 2] = value;
        check(&numbers(1, rows * depth), &w);
        check(&x, &w);
    }
    // In windows: of a patch, and gathered.
    for (c, value) in [32, 5].into_iter().flat_map(|c| some.map(|value| (c, value))) {
        let shape = [1, 16, 64, c];
        let mut x = numbers(3, shape.iter().product());
        let at = (9 * 64 + 20) * c + 2;
        x[at] = value;
        let x = tensor(&shape, &x);
        let weight = noise(4, &[20, c, 3, 3]);
        let [got, want] = [Products::InParts, Products::Whole].map(|products| {
            let conv = Conv2d::with(&weight, None, ConvOptions::same3(), products).unwrap();
            conv.forward(&x).unwrap().to_vec_f32().unwrap()
        });
        assert_eq!(kinds(&got), kinds(&want), "{value}, {c} channels");
    }
}

/// The same bytes for any number of threads, with large numbers in some rows or without.
#[test]
fn threads_change_no_bytes() {
    let (mut x, w) = (numbers(1, 700 * 96), noise(2, &[192, 96]));
    let conv = Conv2d::with(&noise(3, &[70, 32, 3, 3]), None, ConvOptions::same3(), Products::InParts).unwrap();
    let layer = Linear::with(&w, None, Products::InParts).unwrap();
    for large in [false, true] {
        if large {
            x[300 * 96] = 1e30;
        }
        let rows = tensor(&[700, 96], &x);
        let pictures = [[1, 24, 64, 32], [1, 13, 48, 32], [1, 30, 26, 32]]
            .map(|shape| tensor(&shape, &x[..shape.iter().product()]));
        let keys = noise(4, &[1, 300, 96]);
        let results = || {
            let keys = PackedKeyValue::with(KeyValue { k: &keys, v: &keys }, 3, Products::InParts).unwrap();
            let queries = rows.reshape(&[1, 700, 96]).unwrap();
            let mut all = vec![layer.forward(&rows).unwrap(), layer.forward_geglu(&rows).unwrap()];
            all.push(ops::attention_packed(&queries, &keys, 0.2, None).unwrap());
            all.extend(pictures.iter().map(|x| conv.forward(x).unwrap()));
            all.iter().flat_map(|t| t.to_vec_f32().unwrap()).map(f32::to_bits).collect::<Vec<_>>()
        };
        let with = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(results);
        let one = with(1);
        for threads in [2, 3, 8] {
            assert!(with(threads) == one, "{threads} threads");
        }
    }
}
