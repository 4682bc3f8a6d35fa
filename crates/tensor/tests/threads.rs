//! The same bytes for any number of threads.

use tensor::ops::{self, Activation, Conv2d, ConvOptions, KeyValue, Linear};
use tensor::{DType, Device, Tensor};

fn noise(dtype: DType, shape: &[usize]) -> Tensor {
    let mut state = 1u32;
    let data: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_f32(&Device::Cpu, dtype, shape, &data).unwrap()
}

/// What operators that divide their work make of the same inputs.
fn results(dtype: DType) -> Vec<Vec<f32>> {
    let linear = Linear::new(&noise(dtype, &[192, 96]), None).unwrap();
    let conv = Conv2d::new(&noise(dtype, &[70, 32, 3, 3]), None, ConvOptions::same3()).unwrap();
    let (x, k, v) = (noise(dtype, &[1, 700, 96]), noise(dtype, &[1, 300, 96]), noise(dtype, &[1, 300, 96]));
    // Patches, parts of lines, and lines of no whole tiles.
    let pictures = [[1, 24, 64, 32], [1, 13, 48, 32], [1, 30, 26, 32]].map(|shape| noise(dtype, &shape));
    let mut all = vec![
        linear.forward(&x).unwrap(),
        linear.forward_geglu(&x).unwrap(),
        ops::attention(&x, KeyValue { k: &k, v: &v }, 3, 0.2, false, None).unwrap(),
    ];
    all.extend(pictures.iter().map(|x| conv.forward(x).unwrap()));
    // By tiles, in more than one chunk.
    let wide = Conv2d::new(&noise(dtype, &[80, 64, 3, 3]), None, ConvOptions::same3()).unwrap();
    all.push(wide.forward(&noise(dtype, &[1, 90, 110, 64])).unwrap());
    let ones = noise(DType::F32, &[32]);
    all.push(ops::group_norm(&pictures[0], 8, &ones, &ones, 1e-5, Activation::Silu).unwrap());
    all.iter().map(|t| t.to_vec_f32().unwrap()).collect()
}

#[test]
fn threads_change_no_bytes() {
    for dtype in [DType::F32, DType::BF16] {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| results(dtype))
        };
        let one = with(1);
        for threads in [2, 3, 8] {
            assert!(with(threads) == one, "{dtype} with {threads} threads");
        }
    }
}
