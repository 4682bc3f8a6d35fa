//! Linear layers in 8 bits against the same numbers, rounded here to e4m3 with a scale for each row and multiplied in f32.

mod device;

use device::device;
use tensor::ops::{self, Activation, Linear, Products, Rows};
use tensor::{DType, Device, Tensor};

/// Deterministic numbers in [-1, 1).
struct Noise(u64);

impl Noise {
    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let next = |_| {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let data: Vec<f32> = (0..shape.iter().product()).map(next).collect();
        Tensor::from_f32(&Device::Cpu, DType::F32, shape, &data).unwrap()
    }
}

/// Four bits of exponent, three of mantissa, up to 448; to nearest even.
fn e4m3(x: f32) -> f32 {
    let exponent = (x.abs().max(f32::MIN_POSITIVE).to_bits() >> 23) as i32 - 127;
    let step = 2f32.powi(exponent.max(-6) - 3);
    ((x / step).round_ties_even() * step).clamp(-448.0, 448.0)
}

/// Rows as 8 bits with a scale for each hold them.
fn narrowed(x: &Tensor) -> Tensor {
    let (numbers, c) = (x.to_vec_f32().unwrap(), x.shape()[x.shape().len() - 1]);
    let row = |row: &[f32]| {
        let top = row.iter().fold(0f32, |top, x| top.max(x.abs()));
        let scale = if top > 0.0 { top / 448.0 } else { 1.0 };
        row.iter().map(|x| e4m3(x * (1.0 / scale)) * scale).collect::<Vec<f32>>()
    };
    Tensor::from_f32(&Device::Cpu, DType::F32, x.shape(), &numbers.chunks(c).flat_map(row).collect::<Vec<f32>>())
        .unwrap()
}

/// Relative distance of all numbers.
fn distance(got: &Tensor, want: &Tensor) -> f64 {
    let (got, want) = (got.to_vec_f32().unwrap(), want.to_vec_f32().unwrap());
    assert_eq!(got.len(), want.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(&want).map(|(a, b)| square(a - b)).sum();
    (error / want.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

/// Layers in 8 bits do what their rounding says, with all that leads to them and from them; and how far that is from f32.
#[test]
fn eight_bits_are_what_rounding_says() {
    let mut noise = Noise(12);
    for (rows, c) in [(64, 64), (77, 128), (300, 640), (512, 1280)] {
        let dtype = if device() == Device::Cpu { DType::BF16 } else { DType::F16 };
        let rounded = |x: Tensor| x.cast(dtype).unwrap().cast(DType::F32).unwrap();
        let x = rounded(noise.tensor(&[2, rows, c]));
        let (w, b) = (noise.tensor(&[c]), noise.tensor(&[c]));
        // Of a size that neither overflows in 16 bits nor vanishes beside what is added.
        let small = |x: Tensor| rounded(ops::scale(&x, 4.0 / (c as f32).sqrt()).unwrap());
        let weights = [small(noise.tensor(&[8 * c, c])), small(noise.tensor(&[c, 4 * c]))];
        let here = |x: &Tensor| x.to_device(&device()).unwrap();
        let mut layers = weights.clone().map(|w| Linear::new(&here(&w).cast(dtype).unwrap(), None).unwrap());
        let does = layers.iter_mut().all(|layer| layer.narrow().unwrap());
        let normal = ops::layer_norm(&x, &w, Some(&b), 1e-5).unwrap();
        let block = |narrow: &dyn Fn(&Tensor) -> Tensor, normal: &Tensor| {
            let [up, down] = weights.clone().map(|w| Linear::new(&narrow(&w), None).unwrap());
            let h = up.forward_geglu(&narrow(normal)).unwrap();
            down.forward_with(&narrow(&h), Activation::None, Some(&x)).unwrap()
        };
        let exact = block(&Tensor::clone, &normal);
        // Straight from the norm, and by way of a tensor, whose numbers are rounded to 16 bits before.
        let narrow: &dyn Fn(&Tensor) -> Tensor = if does { &narrowed } else { &Tensor::clone };
        let wants = [block(narrow, &normal), block(narrow, &rounded(normal.clone()))];
        let ([up, down], [x, w, b]) = (&layers, [&x, &w, &b].map(here));
        let x = x.cast(dtype).unwrap();
        let h = ops::layer_norm_for(up, &x, &w, &b, 1e-5).unwrap();
        assert_eq!(matches!(h, Rows::Narrow(_)), does);
        let one = down.forward_rows(&up.forward_geglu_for(down, &h).unwrap(), Some(&x)).unwrap();
        let plain = up.forward_geglu(&ops::layer_norm(&x, &w, Some(&b), 1e-5).unwrap()).unwrap();
        let other = down.forward_with(&plain, Activation::None, Some(&x)).unwrap();
        for (got, want) in [one, other].iter().zip(&wants) {
            assert_eq!(got.shape(), x.shape());
            let (error, from_f32, rounding) = (distance(got, want), distance(got, &exact), distance(want, &exact));
            println!(
                "8 bits {does}, {rows} rows of {c}: {error:.1e}; from f32 {from_f32:.1e}, rounding {rounding:.1e}"
            );
            assert!(error < 1.2e-2, "{error}");
            assert!(!does || (from_f32 / rounding - 1.0).abs() < 0.05, "{from_f32} is not rounding's own {rounding}");
        }
    }
}

/// Rows enough for this crate's own products, which leave what the next ones read: sums, copies and gated numbers in 8 bits.
/// How far results are from f32 is what rounding costs that is done here with a scale for each row.
#[test]
fn what_products_leave_is_as_good_as_rounding() {
    let (rows, depth, c) = (2000, 192, 640);
    let dtype = if device() == Device::Cpu { DType::BF16 } else { DType::F16 };
    let mut noise = Noise(34);
    let rounded = |x: Tensor| x.cast(dtype).unwrap().cast(DType::F32).unwrap();
    let small = |x: Tensor, size: f32| rounded(ops::scale(&x, size).unwrap());
    let here = |x: &Tensor| x.to_device(&device()).unwrap().cast(dtype).unwrap();
    let there = |x: &Tensor| x.to_device(&device()).unwrap();
    let back = |x: &Tensor| x.to_device(&Device::Cpu).unwrap().cast(DType::F32).unwrap();
    let full = |value: f32| Tensor::from_f32(&Device::Cpu, DType::F32, &[c], &vec![value; c]).unwrap();
    let check = |what: &str, got: &Tensor, exact: &Tensor, rounding: &Tensor, does: bool| {
        let (error, own) = (distance(&back(got), exact), distance(rounding, exact));
        println!("8 bits {does}, {what}: {error:.2e} from f32, rounding rows and weights {own:.2e}");
        assert!(error < if does { 1.15 * own } else { 1.2e-2 }, "{what}: {error} beside {own}");
        assert!(!does || error > 0.5 * own, "{what} is not rounded: {error} beside {own}");
    };
    let product = |x: &Tensor, w: &Tensor, bias: Option<&Tensor>, more: Option<&Tensor>| {
        Linear::new(w, bias).unwrap().forward_with(x, Activation::None, more).unwrap()
    };

    // A product in 16 bits begins the rows, one in 8 adds to them.
    let (a, begin) = (rounded(noise.tensor(&[2, rows, depth])), small(noise.tensor(&[c, depth]), 0.125));
    let (h, added) = (rounded(noise.tensor(&[2, rows, c])), small(noise.tensor(&[c, c]), 0.1));
    let bias = noise.tensor(&[c]);
    let first = Linear::new(&here(&begin), Some(&there(&bias))).unwrap().forward(&here(&a)).unwrap();
    let mut layer = Linear::new(&here(&added), Some(&there(&bias))).unwrap();
    let does = layer.narrow().unwrap();
    let x = layer.forward_with(&here(&h), Activation::None, Some(&first)).unwrap();
    let first = back(&first);
    let narrow = |x: &Tensor| if does { narrowed(x) } else { x.clone() };
    let sum = |h: &Tensor, w: &Tensor| product(h, w, Some(&bias), Some(&first));
    check("a residual", &x, &sum(&h, &added), &sum(&narrow(&h), &narrow(&added)), does);

    // So does one in 16 bits, for layers in 8.
    let mut layer = Linear::new(&here(&added), None).unwrap();
    if does {
        layer.copy_in_eight();
    }
    let other = layer.forward_with(&here(&h), Activation::None, Some(&x)).unwrap();
    let sum = ops::add(&product(&h, &added, None, None), &back(&x)).unwrap();
    let error = distance(&back(&other), &sum);
    assert!(error < 4e-3, "{error}");

    // Layers behind a norm of them, plain and gated.
    let (gamma, beta) = (ops::add(&full(1.0), &small(noise.tensor(&[c]), 0.5)).unwrap(), noise.tensor(&[c]));
    let (one, zero) = (there(&full(1.0)), there(&full(0.0)));
    let behind = |w: &Tensor, bias: Option<&Tensor>| {
        let norm = [&there(&gamma), &there(&beta)];
        let (layer, takes) = Linear::behind_norm(&here(w), bias, Products::Whole, norm).unwrap();
        (layer, if takes { [one.clone(), zero.clone()] } else { [there(&gamma), there(&beta)] })
    };
    let w = small(noise.tensor(&[2 * c, c]), 0.1);
    let (mut layer, [weight, shift]) = behind(&w, None);
    layer.narrow().unwrap();
    for x in [&x, &other] {
        let normal = ops::layer_norm(&back(x), &gamma, Some(&beta), 1e-5).unwrap();
        let got = ops::layer_norm_for(&layer, x, &weight, &shift, 1e-5).unwrap();
        assert_eq!(matches!(got, Rows::Normed(_)), does, "{got:?}");
        let got = layer.forward_rows(&got, None).unwrap();
        let exact = product(&normal, &w, None, None);
        check("behind a norm", &got, &exact, &product(&narrow(&normal), &narrow(&w), None, None), does);
    }
    let normal = ops::layer_norm(&back(&other), &gamma, Some(&beta), 1e-5).unwrap();

    let (up, down) = (small(noise.tensor(&[8 * c, c]), 0.1), small(noise.tensor(&[c, 4 * c]), 0.05));
    let bias = noise.tensor(&[8 * c]);
    let (mut ff_in, [weight, shift]) = behind(&up, Some(&there(&bias)));
    let mut ff_out = Linear::new(&here(&down), None).unwrap();
    assert_eq!(ff_in.narrow_gated(&mut ff_out).unwrap(), does);
    let got = ops::layer_norm_for(&ff_in, &other, &weight, &shift, 1e-5).unwrap();
    let got = ff_in.forward_geglu_for(&ff_out, &got).unwrap();
    assert_eq!(matches!(got, Rows::Narrow(_)), does);
    let got = ff_out.forward_rows(&got, None).unwrap();
    let block = |narrow: &dyn Fn(&Tensor) -> Tensor| {
        let h = Linear::new(&narrow(&up), Some(&bias)).unwrap().forward_geglu(&narrow(&normal)).unwrap();
        product(&narrow(&h), &narrow(&down), None, None)
    };
    check("feed-forward", &got, &block(&Tensor::clone), &block(&narrow), does);
}
