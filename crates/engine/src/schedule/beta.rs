//! Quantiles of the beta distribution with both parameters 0.6, over which a schedule can spread its noise levels.
//!
//! "Beta Sampling is All You Need" (Lee et al., 2024) sets more steps at both ends; 0.6 is what diffusers takes.

const A: f64 = 0.6;

/// The value below which a share `p`, from 0 to 1, of the distribution lies.
pub(super) fn quantile(p: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - quantile(1.0 - p); // it is symmetric
    }
    // Half of it lies below the middle, so what a gamma function would normalise by need not be known.
    let wanted = 2.0 * p * unnormalised(0.5);
    let (mut low, mut high) = (0.0, 0.5);
    // Each turn halves the distance: 64 of them end below what an f64 can tell beside sigmas.
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if unnormalised(middle) < wanted { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The incomplete beta function for `x` up to 0.5, by its series (DLMF 8.17.8), whose terms are all positive and halve.
fn unnormalised(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (1.0, 1.0, 0.0);
    while term > 1e-17 * sum {
        term *= x * (2.0 * A + n) / (A + 1.0 + n);
        sum += term;
        n += 1.0;
    }
    x.powf(A) * (1.0 - x).powf(A) / A * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.stats.beta.ppf(p, 0.6, 0.6)`, scipy 1.17.
    const QUANTILES: [(f64, f64); 9] = [
        (1e-06, 1.8558824624053043e-10),
        (0.001, 1.855873851745199e-05),
        (0.05, 0.012554456873611399),
        (0.2, 0.12292175045833292),
        (0.37, 0.3227940020973615),
        (0.4999, 0.49986127490549975),
        (0.61, 0.6506988426928272),
        (0.9, 0.9604155944112192),
        (0.999, 0.9999814412614826),
    ];

    #[test]
    fn quantiles_are_those_of_scipy() {
        for (p, x) in QUANTILES {
            assert!((quantile(p) - x).abs() <= 1e-14 * x.max(0.01), "{p}: {} is not {x}", quantile(p));
        }
        // The ends make the first and the last noise level.
        assert_eq!((quantile(0.0) + 1.0, quantile(1.0)), (1.0, 1.0));
    }
}
