//! Rows that a norm, attention or a gated layer writes in the order in which the next product reads them, where products of bf16 run in
//! tiles: the same bytes as rows that are packed before the product, or by each of its tasks.

use tensor::ops::{self, Activation, KeyValue, Linear, PackedKeyValue, Products, Rows};
use tensor::{DType, Device, Tensor};

/// Deterministic numbers in [-1, 1).
fn noise(seed: u64, dtype: DType, shape: &[usize]) -> Tensor {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_f32(&Device::Cpu, dtype, shape, &data).unwrap()
}

#[test]
fn rows_in_the_order_of_tiles() {
    // One row, no whole groups, more depth than a slice, and a depth of no whole steps, which stays as it is.
    let sizes = [([1, 1], 64, 96), ([2, 77], 96, 640), ([1, 300], 1312, 2592), ([3, 64], 640, 160), ([2, 50], 72, 96)];
    for ([b, n], width, inner) in sizes {
        let seed = (n * width) as u64;
        let x = noise(seed, DType::BF16, &[b, n, width]);
        let norm = [noise(seed + 1, DType::F32, &[width]), noise(seed + 2, DType::F32, &[width])];
        let layer = |seed, out: usize, depth: usize| {
            let bias = noise(seed + 1, DType::F32, &[out]);
            Linear::new(&noise(seed, DType::BF16, &[out, depth]), Some(&bias)).unwrap()
        };
        let (plain, up, down) =
            (layer(seed + 3, inner, width), layer(seed + 5, 2 * inner, width), layer(seed + 7, width, inner));
        let normal = ops::layer_norm(&x, &norm[0], Some(&norm[1]), 1e-5).unwrap();
        let rows = ops::layer_norm_for(&plain, &x, &norm[0], &norm[1], 1e-5).unwrap();
        let tiled = tensor::instructions().unwrap() == "amx" && width.is_multiple_of(32);
        assert_eq!(matches!(rows, Rows::Packed(_)), tiled, "{rows:?}");
        let same = |got: Tensor, want: Tensor, what: &str| {
            assert_eq!(got.shape(), want.shape());
            assert!(got.to_vec_f32().unwrap() == want.to_vec_f32().unwrap(), "{what}, {n} rows of {width}");
        };
        // Many panels, so that every way to make them gets its turn.
        for _ in 0..3 {
            same(plain.forward_rows(&rows, None).unwrap(), plain.forward(&normal).unwrap(), "linear");
            let gated = up.forward_geglu_for(&down, &rows).unwrap();
            let want = down.forward_with(&up.forward_geglu(&normal).unwrap(), Activation::None, Some(&x)).unwrap();
            same(down.forward_rows(&gated, Some(&x)).unwrap(), want, "gated");
        }
        if tiled {
            let Err(error) = down.forward_rows(&rows, None) else { panic!("rows of another width") };
            assert!(error.to_string().contains("the packed input"), "{error}");
            assert!(plain.forward_rows(&rows, Some(&x)).is_err(), "a residual of another width");
        }
    }
}

#[test]
fn attention_in_the_order_of_tiles() {
    // One row, no whole groups of rows, a last panel of few queries, and heads of no whole lines, which stay as they are.
    let sizes = [([1, 1], 2, 32), ([2, 77], 10, 64), ([1, 300], 5, 128), ([3, 64], 3, 96), ([2, 50], 4, 40)];
    for ([b, n], heads, d) in sizes {
        let (seed, width) = ((n * d) as u64, heads * d);
        let of = |seed, shape: &[usize]| noise(seed, DType::BF16, shape);
        let bias = noise(seed + 1, DType::F32, &[96]);
        let layer = Linear::new(&of(seed + 2, &[96, width]), Some(&bias)).unwrap();
        let [qkv, residual] = [of(seed + 3, &[b, n, 3 * width]), of(seed + 4, &[b, n, 96])];
        let [text, identity] = [77, 16].map(|m| {
            let [k, v] = [seed + 5, seed + 6].map(|seed| of(seed + m as u64, &[b, m, width]));
            PackedKeyValue::new(KeyValue { k: &k, v: &v }, heads).unwrap()
        });
        let q = of(seed + 7, &[b, n, width]);
        let second = Some((&identity, 0.75));
        let tiled = tensor::instructions().unwrap() == "amx" && d.is_multiple_of(32);
        let same = |rows: Rows, plain: Tensor, what: &str| {
            assert_eq!(matches!(rows, Rows::Packed(_)), tiled, "{rows:?}");
            let got = layer.forward_rows(&rows, Some(&residual)).unwrap();
            let want = layer.forward_with(&plain, Activation::None, Some(&residual)).unwrap();
            assert_eq!(got.shape(), want.shape());
            assert!(
                got.to_vec_f32().unwrap() == want.to_vec_f32().unwrap(),
                "{what}, {n} queries of {heads} times {d}"
            );
        };
        let rows = ops::attention_joined_for(&layer, &qkv, heads, 0.2, Products::Whole).unwrap();
        same(rows, ops::attention_joined(&qkv, heads, 0.2, false).unwrap(), "of itself");
        for second in [None, second] {
            let rows = ops::attention_packed_for(&layer, &q, &text, 0.2, second).unwrap();
            same(rows, ops::attention_packed(&q, &text, 0.2, second).unwrap(), "over text");
        }
        let other = of(seed, &[b, n, width + heads]);
        let Err(error) = ops::attention_packed_for(&layer, &other, &text, 0.2, None) else { panic!("another width") };
        assert!(error.to_string().contains("the keys"), "{error}");
    }
}
