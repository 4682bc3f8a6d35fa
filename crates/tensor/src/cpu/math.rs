//! Elementary functions in a form that vectorises: no branches, no table, no call.

/// exp(x) in f32, within 2 units in the last place for results that are normal numbers; below -87.3 the
/// result is 0, above 88.3 it saturates. Range reduction by ln 2 in two parts (Cody and Waite) and a polynomial.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped * LOG2E + MAGIC;
    let n = shifted - MAGIC;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let y = p * r * r + r + 1.0;
    // The low bits of `shifted` are n itself, between -126 and 127.
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { y * power }
}

/// The error function by a rational approximation on [-4, 4] (as in Eigen and XLA), a few units in the last place.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = -2.726_142_3e-10;
    let p = p * s + 2.770_681_5e-8;
    let p = p * s - 2.101_024e-6;
    let p = p * s - 5.692_506_6e-5;
    let p = p * s - 7.349_906e-4;
    let p = p * s - 2.954_6e-3;
    let p = p * s - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * s - 2.133_740_6e-4;
    let q = q * s - 1.682_827e-3;
    let q = q * s - 7.373_329e-3;
    let q = q * s - 1.426_473_9e-2;
    x * p / q
}

/// GELU within 2e-4, which bf16 rounds away: x (1/2 + P(x)) with the odd polynomial that is nearest to the normal
/// distribution on [-4, 4], where the rational function of [`erf`] waits for a division.
#[inline(always)]
pub(crate) fn gelu_16_bits(x: f32) -> f32 {
    // Written so that NaN passes.
    let t = if x < -4.0 { -4.0 } else { x };
    let t = if t > 4.0 { 4.0 } else { t };
    let s = t * t;
    let p = 2.278_145_4e-8;
    let p = p * s - 1.598_602_9e-6;
    let p = p * s + 4.795_552_6e-5;
    let p = p * s - 8.140_155e-4;
    let p = p * s + 8.772_388e-3;
    let p = p * s - 6.457_311e-2;
    let p = p * s + 3.978_833_5e-1;
    x * (0.5 + t * p)
}

/// tanh(x) through exp; saturates.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    let y = (1.0 - e) / (1.0 + e);
    // Near zero the difference loses digits; the odd series does not.
    let s = x * x;
    let series = x * (1.0 - s * (0.333_333_34 - s * (0.133_333_34 - s * (0.053_968_254 - s * 0.021_869_49))));
    if x.abs() < 0.3 { series } else { y.copysign(x) }
}

use crate::ops::Activation;

/// Applies an activation to one number.
#[inline(always)]
pub(crate) fn activate(x: f32, activation: Activation) -> f32 {
    match activation {
        Activation::None => x,
        Activation::Silu => x / (1.0 + exp(-x)),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => 0.5 * x * (1.0 + tanh(0.797_884_6 * (x + 0.044_715 * x * x * x))),
        Activation::QuickGelu => x / (1.0 + exp(-1.702 * x)),
        Activation::Relu => x.max(0.0),
    }
}

/// Applies an activation to every number; the choice is made once, outside the loop.
#[inline(always)]
pub(crate) fn activate_all(values: &mut [f32], activation: Activation) {
    macro_rules! each {
        ($which:expr) => {
            values.iter_mut().for_each(|x| *x = activate(*x, $which))
        };
    }
    match activation {
        Activation::None => {}
        Activation::Silu => each!(Activation::Silu),
        Activation::Gelu => each!(Activation::Gelu),
        Activation::GeluTanh => each!(Activation::GeluTanh),
        Activation::QuickGelu => each!(Activation::QuickGelu),
        Activation::Relu => each!(Activation::Relu),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elementary_functions_agree_with_f64() {
        for i in -87_300..88_000 {
            let x = i as f32 / 1000.0;
            let e = f64::from(x).exp();
            assert!(((f64::from(exp(x)) - e) / e).abs() < 2.5e-7, "exp({x})");
            let t = f64::from(x).tanh();
            assert!((f64::from(tanh(x)) - t).abs() <= 3e-7 * t.abs().max(1e-6), "tanh({x}) {} {t}", tanh(x));
        }
        // erf at points from tables (Abramowitz and Stegun, 7.1).
        for (x, y) in [
            (0.0, 0.0),
            (0.1, 0.112_462_92),
            (0.5, 0.520_499_9),
            (1.0, 0.842_700_8),
            (2.0, 0.995_322_3),
            (3.0, 0.999_977_9),
            (9.0, 1.0),
        ] {
            assert!((erf(x) - y).abs() < 3e-7, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + y).abs() < 3e-7);
        }
        assert_eq!(exp(-200.0), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
