//! Noise against PyTorch's, written by `reference/noise.py`.

use tensor::random::{Philox, TorchCpu};

fn lengths(field: &str) -> Vec<usize> {
    field.split(',').map(|n| n.parse().unwrap()).collect()
}

fn fnv(values: &[f32]) -> u64 {
    values
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn cpu_generator_equals_torch_bit_for_bit() {
    for row in include_str!("fixtures/random_cpu.txt").lines() {
        let fields: Vec<&str> = row.split(' ').collect();
        let mut generator = TorchCpu::new(fields[0].parse().unwrap());
        let values: Vec<f32> = lengths(fields[1]).into_iter().flat_map(|n| generator.randn(n)).collect();
        for (value, bits) in values.iter().zip(&fields[3..]) {
            assert_eq!(format!("{:08x}", value.to_bits()), *bits, "{row}");
        }
        assert_eq!(format!("{:016x}", fnv(&values)), fields[2], "{row}");
    }
}

/// The card's sine, cosine and logarithm are approximations of about 2^-21 that no other hardware repeats.
#[test]
fn philox_equals_torch_on_a_card_within_its_fast_functions() {
    let mut worst = 0.0f32;
    for row in include_str!("fixtures/random_cuda.txt").lines() {
        let fields: Vec<&str> = row.split(' ').collect();
        let mut generator = Philox::with_threads(fields[0].parse().unwrap(), fields[1].parse().unwrap());
        let values: Vec<f32> = lengths(fields[2]).into_iter().flat_map(|n| generator.randn(n)).collect();
        for pair in &fields[3..] {
            let (place, expected) = pair.split_once(':').unwrap();
            let difference = (values[place.parse::<usize>().unwrap()] - expected.parse::<f32>().unwrap()).abs();
            assert!(difference < 5e-6, "{pair} differs by {difference:e} in {row}");
            worst = worst.max(difference);
        }
    }
    println!("largest difference {worst:e}");
}

#[test]
fn an_unlimited_card_gives_the_values_of_a_large_one() {
    let (mut unlimited, mut card) = (Philox::new(5), Philox::with_threads(5, 270_336));
    for n in [12, 16384, 65536, 1] {
        assert_eq!(unlimited.randn(n), card.randn(n));
    }
}

#[test]
fn nothing_drawn_leaves_the_stream_where_it_was() {
    let (mut a, mut b) = (TorchCpu::new(3), TorchCpu::new(3));
    assert!(a.randn(0).is_empty());
    assert_eq!(a.randn(20), b.randn(20));
    let (mut a, mut b) = (Philox::new(3), Philox::new(3));
    assert!(a.randn(0).is_empty());
    assert_eq!(a.randn(20), b.randn(20));
}
