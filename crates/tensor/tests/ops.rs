//! Operators against straightforward loops in f64, over odd shapes, in every compute type of the device: the one that
//! SAMEFACE_TEST_DEVICE names (`cpu`, `cuda:0`), else the first GPU, else the CPU.

mod device;

use device::device;
use tensor::ops::{self, Activation, Conv2d, ConvOptions, Fused, KeyValue, Linear, PackedKeyValue, Products};
use tensor::{DType, Device, Recording, Tensor};

/// Runs a body for every type in which the device computes; a failure in one does not hide the others.
fn each(body: impl Fn(DType)) {
    let types = match device() {
        Device::Cpu => &[DType::F32, DType::BF16][..],
        Device::Cuda(_) => &[DType::F32, DType::F16, DType::BF16],
    };
    let run = |dtype: &&DType| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(**dtype))).is_err();
    let failed: Vec<&DType> = types.iter().filter(run).collect();
    assert!(failed.is_empty(), "fails in {failed:?} on {}", device());
}

/// Deterministic numbers in [-1, 1).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| self.next()).collect();
        Tensor::from_f32(&device(), dtype, shape, &data).unwrap()
    }
}

/// The numbers that the tensor holds, after rounding to its type.
fn values(t: &Tensor) -> Vec<f64> {
    t.to_vec_f32().unwrap().iter().map(|&x| f64::from(x)).collect()
}

#[track_caller]
fn close(got: &Tensor, want: &[f64]) {
    let tolerance = if got.dtype() == DType::F32 { 2e-6 } else { 6e-3 };
    let (dtype, got) = (got.dtype(), values(got));
    assert_eq!(got.len(), want.len());
    let error: f64 = got.iter().zip(want).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    let norm: f64 = want.iter().map(|b| b * b).sum::<f64>().sqrt();
    println!("{}: {dtype} {:.1e}", std::panic::Location::caller(), error / norm);
    assert!(error <= tolerance * norm.max(1e-9), "relative error {} in {dtype}", error / norm);
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// erf by its series, for the reference only; beyond 4 it is 1 to eight digits.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / 2f64.sqrt()))
}

#[test]
fn linear_with_its_epilogues() {
    each(|dtype| {
        for (m, k, n) in [(1, 1, 1), (2, 3, 5), (13, 17, 33), (97, 255, 64), (5, 600, 130), (200, 513, 1100)] {
            let mut noise = Noise(m as u64);
            let (x, w, b, r) = (
                noise.tensor(dtype, &[m, k]),
                noise.tensor(dtype, &[n, k]),
                noise.tensor(dtype, &[n]),
                noise.tensor(dtype, &[m, n]),
            );
            let (xv, wv, bv, rv) = (values(&x), values(&w), values(&b), values(&r));
            let product: Vec<f64> = (0..m * n)
                .map(|i| (0..k).map(|j| xv[i / n * k + j] * wv[i % n * k + j]).sum::<f64>() + bv[i % n])
                .collect();
            let layer = Linear::new(&w, Some(&b)).unwrap();
            close(&layer.forward(&x).unwrap(), &product);
            let fused: Vec<f64> = product.iter().zip(&rv).map(|(p, r)| silu(*p) + r).collect();
            close(&layer.forward_with(&x, Activation::Silu, Some(&r)).unwrap(), &fused);
        }
    });
}

#[test]
fn gated_gelu_by_halves() {
    each(|dtype| {
        for (m, k, n) in [(3, 8, 10), (30, 40, 64), (100, 70, 192)] {
            let mut noise = Noise(n as u64);
            let (x, w, b) = (noise.tensor(dtype, &[2, m, k]), noise.tensor(dtype, &[n, k]), noise.tensor(dtype, &[n]));
            let (xv, wv, bv) = (values(&x), values(&w), values(&b));
            let at = |row: usize, j: usize| (0..k).map(|i| xv[row * k + i] * wv[j * k + i]).sum::<f64>() + bv[j];
            let want: Vec<f64> = (0..2 * m * n / 2)
                .map(|i| at(i / (n / 2), i % (n / 2)) * gelu(at(i / (n / 2), i % (n / 2) + n / 2)))
                .collect();
            let got = Linear::new(&w, Some(&b)).unwrap().forward_geglu(&x).unwrap();
            assert_eq!(got.shape(), [2, m, n / 2]);
            close(&got, &want);
        }
    });
}

#[test]
fn convolution_of_odd_shapes() {
    let rows = [
        ([1, 5, 7, 3], 8, [3, 3], ConvOptions::same3(), [5, 7]),
        ([2, 8, 6, 5], 33, [3, 3], ConvOptions { stride: 2, padding: [0, 1, 0, 1] }, [8, 6]),
        ([1, 9, 9, 40], 12, [1, 1], ConvOptions::default(), [9, 9]),
        ([2, 4, 5, 64], 20, [3, 3], ConvOptions::same3(), [8, 10]),
        ([1, 3, 4, 6], 4, [3, 3], ConvOptions::same3(), [5, 7]),
        ([1, 16, 16, 4], 6, [4, 4], ConvOptions::padded(4, 0), [16, 16]),
        // Wide enough for tiles: of 4x4 whole and cut, without padding, uneven padding, enlarged; of 2x2.
        ([1, 9, 11, 64], 80, [3, 3], ConvOptions::same3(), [9, 11]),
        ([2, 8, 5, 112], 64, [3, 3], ConvOptions::default(), [8, 5]),
        ([1, 3, 3, 64], 64, [3, 3], ConvOptions { stride: 1, padding: [0, 2, 1, 0] }, [3, 3]),
        ([2, 5, 4, 64], 64, [3, 3], ConvOptions::same3(), [10, 8]),
        ([1, 3, 3, 64], 96, [3, 3], ConvOptions::same3(), [5, 7]),
        ([1, 3, 3, 1280], 976, [3, 3], ConvOptions::same3(), [3, 3]),
        // Lines of 16 results, which tiles of AMX read where they lie: two pictures, every second pixel, enlarged, more
        // lines than a task has, parts of lines.
        ([2, 3, 16, 32], 40, [3, 3], ConvOptions::same3(), [3, 16]),
        ([1, 7, 32, 32], 33, [3, 3], ConvOptions { stride: 2, padding: [0, 1, 0, 1] }, [7, 32]),
        ([1, 4, 8, 32], 20, [3, 3], ConvOptions::same3(), [8, 16]),
        ([2, 3, 16, 32], 64, [3, 3], ConvOptions::same3(), [6, 32]),
        ([1, 13, 48, 32], 20, [3, 3], ConvOptions::same3(), [13, 48]),
        ([1, 2, 320, 32], 8, [3, 3], ConvOptions::same3(), [2, 320]),
        ([2, 5, 16, 352], 8, [3, 3], ConvOptions::same3(), [5, 16]),
        // Patches of 8 lines of 32 of them: two pictures, every second pixel, enlarged.
        ([2, 16, 64, 32], 20, [3, 3], ConvOptions::same3(), [16, 64]),
        ([1, 16, 128, 32], 33, [3, 3], ConvOptions { stride: 2, padding: [0, 1, 0, 1] }, [16, 128]),
        ([1, 8, 16, 32], 20, [3, 3], ConvOptions::same3(), [16, 32]),
        ([2, 8, 32, 64], 96, [3, 3], ConvOptions::same3(), [16, 64]),
        // Lines of no whole tiles, one after the other: two pictures, more lines than a task has, enlarged, long lines.
        ([2, 9, 13, 32], 20, [3, 3], ConvOptions::same3(), [9, 13]),
        ([1, 30, 26, 32], 20, [3, 3], ConvOptions::same3(), [30, 26]),
        ([1, 5, 10, 64], 20, [3, 3], ConvOptions::same3(), [10, 20]),
        ([1, 2, 261, 32], 8, [3, 3], ConvOptions::same3(), [2, 261]),
    ];
    each(|dtype| {
        for (shape, n, [kh, kw], options, seen) in rows {
            let [b, h, w, c] = shape;
            let mut noise = Noise(n as u64);
            let (x, weight, bias) =
                (noise.tensor(dtype, &shape), noise.tensor(dtype, &[n, c, kh, kw]), noise.tensor(dtype, &[n]));
            let (xv, wv, bv) = (values(&x), values(&weight), values(&bias));
            let oh = (seen[0] + options.padding[0] + options.padding[1] - kh) / options.stride + 1;
            let ow = (seen[1] + options.padding[2] + options.padding[3] - kw) / options.stride + 1;
            let at = |p: usize, y: isize, x: isize, ch: usize| {
                if y < 0 || x < 0 || y >= seen[0] as isize || x >= seen[1] as isize {
                    return 0.0;
                }
                let (sy, sx) = (y as usize * h / seen[0], x as usize * w / seen[1]);
                xv[((p * h + sy) * w + sx) * c + ch]
            };
            let mut want = Vec::new();
            for i in 0..b * oh * ow * n {
                let (o, px) = (i % n, i / n);
                let (p, oy, ox) = (px / (oh * ow), px / ow % oh, px % ow);
                let mut sum = bv[o];
                for (ky, kx, ch) in (0..kh * kw * c).map(|j| (j / (kw * c), j / c % kw, j % c)) {
                    let y = (oy * options.stride + ky) as isize - options.padding[0] as isize;
                    let x = (ox * options.stride + kx) as isize - options.padding[2] as isize;
                    sum += at(p, y, x, ch) * wv[((o * c + ch) * kh + ky) * kw + kx];
                }
                want.push(sum);
            }
            let mut conv = Conv2d::new(&weight, Some(&bias), options).unwrap();
            if seen == [h, w] {
                close(&conv.forward(&x).unwrap(), &want);
                let (add, residual) = (noise.tensor(dtype, &[b, n]), noise.tensor(dtype, &[b, oh, ow, n]));
                let (av, rv) = (values(&add), values(&residual));
                let fused: Vec<f64> =
                    want.iter().enumerate().map(|(i, x)| silu(x + av[i / (n * oh * ow) * n + i % n]) + rv[i]).collect();
                let with = Fused { channel_add: Some(&add), activation: Activation::Silu, residual: Some(&residual) };
                close(&conv.forward_with(&x, &with).unwrap(), &fused);
            } else {
                close(&conv.forward_upsampled_to(&x, seen[0], seen[1]).unwrap(), &want);
                conv.transform_doubled(&weight, Products::Whole).unwrap();
                close(&conv.forward_upsampled_to(&x, seen[0], seen[1]).unwrap(), &want);
            }
        }
    });
}

/// Softmax attention in f64.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64, causal: bool) -> Vec<f64> {
    let ([b, n, width], m) = (q.dims3().unwrap(), k.dim(1));
    let d = width / heads;
    let (qv, kv, vv) = (values(q), values(k), values(v));
    let mut out = vec![0.0; b * n * width];
    for (p, h, i) in (0..b * heads * n).map(|x| (x / (heads * n), x / n % heads, x % n)) {
        let keys = if causal { i + 1 } else { m };
        let score = |j: usize| {
            (0..d).map(|e| qv[(p * n + i) * width + h * d + e] * kv[(p * m + j) * width + h * d + e]).sum::<f64>()
                * scale
        };
        let scores: Vec<f64> = (0..keys).map(score).collect();
        let highest = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
        let total: f64 = weights.iter().sum();
        for e in 0..d {
            out[(p * n + i) * width + h * d + e] =
                (0..keys).map(|j| weights[j] * vv[(p * m + j) * width + h * d + e]).sum::<f64>() / total;
        }
    }
    out
}

#[test]
fn attention_with_two_branches() {
    each(|dtype| {
        for (b, n, m, heads, d, causal) in [
            (1, 1, 1, 1, 1, false),
            (2, 5, 7, 3, 5, false),
            (1, 77, 77, 2, 16, true),
            (1, 100, 600, 2, 64, false),
            (1, 300, 300, 1, 40, true),
            (1, 9, 513, 1, 96, false),
            (2, 70, 130, 1, 200, false),
            (2, 130, 77, 3, 64, false),
            (1, 30, 128, 1, 64, false),
            (1, 40, 256, 1, 32, false),
            (1, 129, 192, 1, 160, false),
            (1, 250, 250, 1, 64, true),
            (3, 65, 21, 2, 64, false),
            (1, 700, 80, 1, 64, false),
            (2, 33, 11, 3, 64, false),
        ] {
            let mut noise = Noise(n as u64);
            let width = heads * d;
            let (q, k, v) = (
                noise.tensor(dtype, &[b, n, width]),
                noise.tensor(dtype, &[b, m, width]),
                noise.tensor(dtype, &[b, m, width]),
            );
            let (k2, v2) = (noise.tensor(dtype, &[b, 16, width]), noise.tensor(dtype, &[b, 16, width]));
            let scale = 1.3;
            let first = attention(&q, &k, &v, heads, scale, causal);
            let kv = KeyValue { k: &k, v: &v };
            close(&ops::attention(&q, kv, heads, scale as f32, causal, None).unwrap(), &first);
            let second = attention(&q, &k2, &v2, heads, scale, false);
            let both: Vec<f64> = first.iter().zip(&second).map(|(a, b)| a + 0.75 * b).collect();
            let kv2 = KeyValue { k: &k2, v: &v2 };
            close(&ops::attention(&q, kv, heads, scale as f32, causal, Some((kv2, 0.75))).unwrap(), &both);
        }
    });
}

#[test]
fn attention_from_one_product_and_from_packed_keys() {
    each(|dtype| {
        for (b, n, m, heads, d, causal) in [
            (1, 1, 1, 1, 1, false),
            (2, 45, 93, 3, 5, false),
            (1, 140, 16, 2, 64, true),
            (2, 33, 300, 1, 72, false),
            (2, 75, 16, 3, 64, false),
            (2, 14, 5, 2, 64, false),
        ] {
            let mut noise = Noise(n as u64);
            let width = heads * d;
            let qkv = noise.tensor(dtype, &[b, n, 3 * width]);
            let parts = ops::split_last(&qkv, 3).unwrap();
            let want = attention(&parts[0], &parts[1], &parts[2], heads, 0.7, causal);
            close(&ops::attention_joined(&qkv, heads, 0.7, causal).unwrap(), &want);
            let (k, v) = (noise.tensor(dtype, &[b, m, width]), noise.tensor(dtype, &[b, m, width]));
            let packed = PackedKeyValue::new(KeyValue { k: &k, v: &v }, heads).unwrap();
            let first = ops::attention_packed(&parts[0], &packed, 0.7, None).unwrap();
            close(&first, &attention(&parts[0], &k, &v, heads, 0.7, false));
            let twice = ops::attention_packed(&parts[0], &packed, 0.7, Some((&packed, 0.5))).unwrap();
            close(&twice, &values(&first).iter().map(|x| 1.5 * x).collect::<Vec<_>>());
        }
    });
    let x = Noise(1).tensor(DType::F32, &[1, 4, 12]);
    let packed = PackedKeyValue::new(KeyValue { k: &x, v: &x }, 3).unwrap();
    let wide = Noise(1).tensor(DType::F32, &[1, 4, 24]);
    assert!(ops::attention_packed(&wide, &packed, 1.0, None).unwrap_err().to_string().contains("[1, 4, 24]"));
    assert!(ops::attention_joined(&x, 5, 1.0, false).is_err());
}

/// The highest score of a query's first keys says nothing about later ones.
#[test]
fn scores_that_rise_from_key_to_key() {
    each(|dtype| {
        if dtype == DType::F32 {
            return; // so large a score alone costs more than is allowed
        }
        for (n, m, causal, most) in
            [(40, 700, false, 2.0), (140, 300, false, 8.0), (200, 200, true, 6.0), (33, 450, false, -8.0)]
        {
            let mut noise = Noise(5);
            let (q, k, v) = (
                noise.tensor(dtype, &[1, n, 128]),
                noise.tensor(dtype, &[1, m, 128]),
                noise.tensor(dtype, &[1, m, 128]),
            );
            // Queries above zero meet keys of one sign each, larger and larger.
            let q: Vec<f32> = q.to_vec_f32().unwrap().iter().map(|x| x.abs()).collect();
            let rise = |(i, x): (usize, &f32)| (0.25 * x + 1.0) * (i / 128) as f32 / m as f32 * most;
            let k: Vec<f32> = k.to_vec_f32().unwrap().iter().enumerate().map(rise).collect();
            let q = Tensor::from_f32(&device(), dtype, &[1, n, 128], &q).unwrap();
            let k = Tensor::from_f32(&device(), dtype, &[1, m, 128], &k).unwrap();
            let want = attention(&q, &k, &v, 2, 0.5, causal);
            close(&ops::attention(&q, KeyValue { k: &k, v: &v }, 2, 0.5, causal, None).unwrap(), &want);
        }
    });
}

#[test]
fn large_scores_do_not_overflow() {
    each(|dtype| {
        let mut noise = Noise(3);
        let (q, k, v) =
            (noise.tensor(dtype, &[1, 40, 32]), noise.tensor(dtype, &[1, 400, 32]), noise.tensor(dtype, &[1, 400, 32]));
        let want = attention(&q, &k, &v, 2, 50.0, false);
        close(&ops::attention(&q, KeyValue { k: &k, v: &v }, 2, 50.0, false, None).unwrap(), &want);
    });
}

#[test]
fn inputs_in_two_parts() {
    each(|dtype| {
        for (c1, c2, groups, out) in [(3, 5, 2, 4), (30, 34, 8, 40), (320, 301, 27, 33)] {
            let mut noise = Noise(c1 as u64);
            let (a, b) = (noise.tensor(dtype, &[2, 5, 7, c1]), noise.tensor(dtype, &[2, 5, 7, c2]));
            let both = ops::concat_last(&[&a, &b]).unwrap();
            let (w, t) = (noise.tensor(DType::F32, &[c1 + c2]), noise.tensor(DType::F32, &[c1 + c2]));
            let joined = ops::group_norm_joined([&a, &b], groups, &w, &t, 1e-5, Activation::Silu).unwrap();
            let whole = ops::group_norm(&both, groups, &w, &t, 1e-5, Activation::Silu).unwrap();
            assert_eq!(joined.shape(), whole.shape());
            assert_eq!(joined.to_vec_f32().unwrap(), whole.to_vec_f32().unwrap());
            let layer = Linear::new(&noise.tensor(dtype, &[out, c1 + c2]), None).unwrap();
            let joined = layer.forward_joined(&a, &b).unwrap();
            assert_eq!(joined.shape(), [2, 5, 7, out]);
            assert_eq!(joined.to_vec_f32().unwrap(), layer.forward(&both).unwrap().to_vec_f32().unwrap());
            assert!(layer.forward_joined(&a, &a).is_err());
        }
    });
}

#[test]
fn normalisation() {
    each(|dtype| {
        for (b, n, c, groups) in [(1, 1, 4, 2), (2, 35, 12, 3), (2, 700, 64, 32), (2, 33, 96, 3), (1, 3, 5, 5)] {
            let mut noise = Noise(n as u64);
            let x = noise.tensor(dtype, &[b, n, c]);
            // A mean far from zero, as deep activations have it.
            let x = ops::add(&x, &Tensor::from_f32(&device(), dtype, x.shape(), &vec![5.0; x.len()]).unwrap()).unwrap();
            let (w, t) = (noise.tensor(DType::F32, &[c]), noise.tensor(DType::F32, &[c]));
            // Channels of a wider row.
            let wide = noise.tensor(DType::F32, &[b, 3 + c + 2]);
            let add = ops::slice_last(&wide, 3, c).unwrap();
            let (xv, wv, tv, av) = (values(&x), values(&w), values(&t), values(&add));
            let sums: Vec<f64> = xv.iter().enumerate().map(|(i, x)| x + av[i / (n * c) * c + i % c]).collect();
            let normalised = |xv: &[f64], members: Vec<usize>, i: usize| {
                let mean = members.iter().map(|&j| xv[j]).sum::<f64>() / members.len() as f64;
                let variance = members.iter().map(|&j| (xv[j] - mean).powi(2)).sum::<f64>() / members.len() as f64;
                (xv[i] - mean) / (variance + 1e-5).sqrt() * wv[i % c] + tv[i % c]
            };
            let size = c / groups;
            let group = |i: usize| {
                let first = i / (n * c) * n * c;
                (first..first + n * c).filter(|j| j % c / size == i % c / size).collect()
            };
            let cases: Vec<usize> = (0..x.len()).step_by(if x.len() > 5000 { 997 } else { 1 }).collect();
            let pick = |t: &Tensor| {
                let all = t.to_vec_f32().unwrap();
                Tensor::from_f32(
                    &device(),
                    t.dtype(),
                    &[cases.len()],
                    &cases.iter().map(|&i| all[i]).collect::<Vec<_>>(),
                )
                .unwrap()
            };
            let want: Vec<f64> = cases.iter().map(|&i| silu(normalised(&xv, group(i), i))).collect();
            close(&pick(&ops::group_norm(&x, groups, &w, &t, 1e-5, Activation::Silu).unwrap()), &want);
            let want: Vec<f64> = cases.iter().map(|&i| silu(normalised(&sums, group(i), i))).collect();
            let added = |first| ops::group_norm_added(&x, &wide, first, groups, &w, &t, 1e-5, Activation::Silu);
            close(&pick(&added(3).unwrap()), &want);
            assert!(added(6).is_err());
            let want: Vec<f64> =
                cases.iter().map(|&i| normalised(&xv, (i / c * c..i / c * c + c).collect(), i)).collect();
            if c > 4 {
                close(&pick(&ops::layer_norm(&x, &w, Some(&t), 1e-5).unwrap()), &want);
            }
        }
    });
}

#[test]
fn elementwise_and_shapes() {
    let mut noise = Noise(1);
    let (a, b) = (noise.tensor(DType::F32, &[2, 3, 4, 6]), noise.tensor(DType::F32, &[2, 3, 4, 6]));
    let (av, bv) = (values(&a), values(&b));
    close(
        &ops::combine(&[(0.5, &a), (-2.0, &b)]).unwrap(),
        &av.iter().zip(&bv).map(|(a, b)| 0.5 * a - 2.0 * b).collect::<Vec<_>>(),
    );
    close(&ops::activation(&a, Activation::Gelu).unwrap(), &av.iter().map(|x| gelu(*x)).collect::<Vec<_>>());
    let quick: Vec<f64> = av.iter().map(|x| x / (1.0 + (-1.702 * x).exp())).collect();
    close(&ops::activation(&a, Activation::QuickGelu).unwrap(), &quick);
    let joined = ops::concat_last(&[&a, &b]).unwrap();
    assert_eq!(joined.shape(), [2, 3, 4, 12]);
    let halves = ops::split_last(&joined, 2).unwrap();
    assert_eq!(halves[1].to_vec_f32().unwrap(), b.to_vec_f32().unwrap());
    assert_eq!(ops::concat_rows(&[&a, &b]).unwrap().rows(2, 2).unwrap().to_vec_f32().unwrap(), b.to_vec_f32().unwrap());
    let window = ops::crop(&a, 1, 2, 2, 2).unwrap().to_vec_f32().unwrap();
    assert_eq!(f64::from(window[0]), av[(4 + 2) * 6]);
    let large = ops::upsample_nearest(&a, 6, 8).unwrap().to_vec_f32().unwrap();
    assert_eq!(f64::from(large[(5 * 8 + 7) * 6]), av[(2 * 4 + 3) * 6]);
    assert_eq!(
        ops::embedding(&a.reshape(&[24, 6]).unwrap(), &[3]).unwrap().to_vec_f32().unwrap(),
        a.to_vec_f32().unwrap()[18..24]
    );
    assert!(ops::embedding(&a.reshape(&[24, 6]).unwrap(), &[24]).is_err());
    assert!(ops::add(&a, &joined).unwrap_err().to_string().contains("[2, 3, 4, 12]"));
    let half = a.cast(DType::F16).unwrap();
    match device() {
        Device::Cpu => assert!(ops::scale(&half, 2.0).unwrap_err().to_string().contains("GPU")),
        Device::Cuda(_) => close(&ops::scale(&half, 2.0).unwrap(), &av.iter().map(|x| 2.0 * x).collect::<Vec<_>>()),
    }
}

/// What the pictures of a step are made of: parts that do not begin at round addresses, and every change of type.
#[test]
fn slices_and_types() {
    each(|dtype| {
        let mut noise = Noise(3);
        let x = noise.tensor(dtype, &[5, 3, 7, 3]);
        let xv = values(&x);
        let part = x.rows(1, 3).unwrap();
        let want = &xv[63..4 * 63];
        close(&ops::scale(&part, 1.0).unwrap(), want);
        close(&ops::activation(&part, Activation::Silu).unwrap(), &want.iter().map(|x| silu(*x)).collect::<Vec<_>>());
        for other in [DType::F32, DType::F16, DType::BF16] {
            close(&part.cast(other).unwrap(), want);
        }
        assert_eq!(values(&ops::repeat_rows(&part, 3).unwrap()), want.repeat(3));
        assert_eq!(values(&ops::concat_axis1(&[&part, &part]).unwrap())[..63], want[..63]);
        assert_eq!(values(&ops::concat_axis1(&[&part, &part]).unwrap())[63..126], want[..63]);
        let window = ops::crop(&part, 1, 2, 2, 4).unwrap();
        assert_eq!(values(&window)[..12], want[(7 + 2) * 3..(7 + 6) * 3]);
        assert_eq!(values(&Tensor::zeros(&device(), dtype, &[3, 2]).unwrap()), [0.0; 6]);
        let many: Vec<(f32, Tensor)> = (0..11).map(|i| (i as f32, noise.tensor(DType::F32, &[37]))).collect();
        let terms: Vec<(f32, &Tensor)> = many.iter().map(|(s, x)| (*s, x)).collect();
        let sum = |i: usize| many.iter().map(|(s, x)| f64::from(*s) * values(x)[i]).sum();
        close(&ops::combine(&terms).unwrap(), &(0..37).map(sum).collect::<Vec<f64>>());
    });
}

/// A device that is not there is refused in a sentence, and operands on two devices are not mixed.
#[test]
fn devices_are_checked() {
    let absent = Device::Cuda(99);
    let said = Tensor::zeros(&absent, DType::F32, &[1]).unwrap_err().to_string();
    assert!(said.starts_with("cuda:99 cannot be used: "), "{said}");
    if let Device::Cuda(_) = device() {
        let (here, there) = (Noise(1).tensor(DType::F32, &[2]), Tensor::zeros(&Device::Cpu, DType::F32, &[2]).unwrap());
        assert!(ops::add(&here, &there).unwrap_err().to_string().contains("lies on cpu"));
        assert_eq!(here.to_device(&Device::Cpu).unwrap().to_vec_f32().unwrap(), here.to_vec_f32().unwrap());
        let far = Tensor::zeros(&device(), DType::F32, &[1 << 40]).unwrap_err().to_string();
        assert!(far.contains("out of memory"), "{far}");
    }
}

/// What was recorded gives the same numbers again, on new inputs, while others take and leave memory.
#[test]
fn recorded_work_is_replayed() {
    let mut noise = Noise(11);
    let dtype = DType::F32;
    let (x, other) = (noise.tensor(dtype, &[2, 6, 6, 32]), noise.tensor(dtype, &[2, 6, 6, 32]));
    let (w, b) = (noise.tensor(dtype, &[32]), noise.tensor(dtype, &[32]));
    let conv = Conv2d::new(&noise.tensor(dtype, &[32, 32, 3, 3]), Some(&b), ConvOptions::same3()).unwrap();
    let layer = Linear::new(&noise.tensor(dtype, &[96, 32]), None).unwrap();
    let work = |x: &Tensor| -> tensor::Result<Tensor> {
        let h = ops::group_norm(x, 8, &w, &b, 1e-5, Activation::Silu)?;
        let h = conv.forward_with(&h, &Fused { residual: Some(x), ..Fused::default() })?;
        let h = layer.forward(&h.reshape(&[2, 36, 32])?)?;
        let h = ops::attention_joined(&h, 2, 0.25, false)?;
        ops::add(&h, &x.reshape(&[2, 36, 32])?)
    };
    let (first, second) = (work(&x).unwrap(), work(&other).unwrap());
    let input = ops::scale(&x, 1.0).unwrap();
    let recorded = Recording::new(&device(), || work(&input).map(|out| vec![out])).unwrap();
    let Some((recording, results)) = recorded else {
        assert_eq!(device(), Device::Cpu);
        return;
    };
    for (given, want) in [(&x, &first), (&other, &second), (&x, &first)] {
        input.overwrite(given).unwrap();
        recording.replay().unwrap();
        let kept: Vec<Tensor> = (0..20).map(|i| ops::scale(&other, i as f32).unwrap()).collect();
        assert_eq!(results[0].to_vec_f32().unwrap(), want.to_vec_f32().unwrap());
        drop(kept);
    }
    // Two pieces at the same time, which take and leave memory of the same sizes, and memory that was there before.
    let beside = |x: &Tensor| -> tensor::Result<Tensor> {
        let before = ops::scale(x, 2.0)?;
        let (one, two) = device().both(|| work(&ops::scale(&before, 0.5)?), || work(&ops::scale(&before, 0.25)?));
        drop(before);
        work(x)?;
        ops::add(&one?, &two?)
    };
    let wants = [&x, &other].map(|x| beside(x).unwrap().to_vec_f32().unwrap());
    let (recording, results) = Recording::new(&device(), || beside(&input).map(|out| vec![out])).unwrap().unwrap();
    for _ in 0..20 {
        for (given, want) in [&x, &other].into_iter().zip(&wants) {
            input.overwrite(given).unwrap();
            recording.replay().unwrap();
            assert_eq!(&results[0].to_vec_f32().unwrap(), want);
        }
    }
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Recording::new(&device(), || -> tensor::Result<Vec<Tensor>> {
            device().both(|| work(&input), || panic!("within a recording"));
            unreachable!()
        })
    }));
    assert!(failed.is_err());
    let read = Recording::new(&device(), || work(&input)?.to_vec_f32().map(|_| Vec::new()));
    assert!(read.is_err());
    assert_eq!(work(&x).unwrap().to_vec_f32().unwrap(), first.to_vec_f32().unwrap());
}

/// Weights of doubled pictures lie beside the plain ones, unless Winograd's do the work.
#[test]
fn numbers_held_for_doubled_pictures() {
    let held = |dtype| {
        let doubled = Conv2d::held_doubled(dtype, Products::Whole, Device::Cpu, [640, 320]);
        (doubled, Conv2d::held(dtype, Products::Whole, Device::Cpu, [640, 320, 3], ConvOptions::same3()))
    };
    // Tiles of 6x6 numbers in f32, where products of bf16 take as long as theirs.
    let expected = match held(DType::BF16).1 / (640 * 320) {
        72 => (72 * 640 * 320, 72 * 640 * 320),
        _ => (25 * 640 * 320, 9 * 640 * 320),
    };
    assert_eq!(held(DType::BF16), expected);
    assert_eq!(held(DType::F32), (36 * 640 * 320, 36 * 640 * 320));
    let large = |dtype| Conv2d::held(dtype, Products::Whole, Device::Cpu, [1280, 1280, 3], ConvOptions::same3());
    assert_eq!((large(DType::BF16), large(DType::F32)), (9 * 1280 * 1280, 16 * 1280 * 1280));
}
