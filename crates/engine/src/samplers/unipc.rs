//! Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models" (2023), on
//! predicted pictures, with B(h) as in its "bh1" and "bh2"; `UniPCMultistepScheduler`.

use tensor::Tensor;

use super::{Driver, Mix, combine};
use crate::Result;
use crate::schedule::Schedule;

pub(super) fn run(schedule: &Schedule, mut x: Tensor, driver: &mut Driver<'_>) -> Result<Tensor> {
    let (solver, steps) = (&schedule.settings.solver, schedule.len());
    let lambda = |i: usize| -schedule.sigma(i).ln();
    let mut pictures: Vec<Tensor> = Vec::new(); // latest first
    let mut last: Option<(Tensor, usize)> = None; // the latent before the last step, and that step's order
    for i in 0..steps {
        let (alpha, sigma) = variance_preserving(schedule.sigma(i));
        let picture = Mix::picture(schedule.prediction(), alpha, sigma);
        let output = driver.step(schedule, i, &x, 1.0, picture)?;
        let new = picture.of(&x, &output)?;

        // Correct the latent with what the network now says.
        if let Some((before, order)) = last.filter(|_| !solver.disable_corrector.contains(&(i - 1))) {
            let step = Update::new(solver.bh1, schedule, i - 1, lambda);
            let factors = step.corrector(order);
            let mut terms = vec![(step.keep, &before)];
            terms.extend(factors[1..].iter().copied().zip(&pictures));
            terms.push((factors[0], &new));
            x = combine(&terms)?;
        }
        pictures.insert(0, new);
        pictures.truncate(solver.order);

        let wanted = if solver.lower_order_final { solver.order.min(steps - i) } else { solver.order };
        let order = wanted.min(pictures.len());
        let step = Update::new(solver.bh1, schedule, i, lambda);
        let mut terms = vec![(step.keep, &x)];
        let factors = step.predictor(order);
        terms.extend(factors.into_iter().zip(&pictures));
        let next = combine(&terms)?;
        last = Some((std::mem::replace(&mut x, next), order));
    }
    Ok(x)
}

fn variance_preserving(sigma: f64) -> (f64, f64) {
    let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
    (alpha, sigma * alpha)
}

/// The quantities of a step from level `from` to the next one.
struct Update<'a> {
    /// What the latent counts.
    keep: f64,
    alpha: f64,
    /// B(h) of the paper.
    b_h: f64,
    /// exp(-h) - 1
    phi_1: f64,
    hh: f64,
    /// Distance of the `k`-th level before `from`, in units of the step.
    distance: Box<dyn Fn(usize) -> f64 + 'a>,
}

impl<'a> Update<'a> {
    fn new(bh1: bool, schedule: &Schedule, from: usize, lambda: impl Fn(usize) -> f64 + 'a) -> Update<'a> {
        let ((alpha, sigma), (_, sigma_from)) =
            (variance_preserving(schedule.sigma(from + 1)), variance_preserving(schedule.sigma(from)));
        let h = lambda(from + 1) - lambda(from);
        let phi_1 = (-h).exp_m1();
        let distance = Box::new(move |k: usize| (lambda(from - k) - lambda(from)) / h);
        Update { keep: sigma / sigma_from, alpha, b_h: if bh1 { -h } else { phi_1 }, phi_1, hh: -h, distance }
    }

    /// Right-hand side of equation 8, `order` entries.
    fn moments(&self, order: usize) -> Vec<f64> {
        let (mut phi, mut factorial) = (self.phi_1 / self.hh - 1.0, 1.0);
        (1..=order)
            .map(|i| {
                let b = phi * factorial / self.b_h;
                factorial *= (i + 1) as f64;
                phi = phi / self.hh - 1.0 / factorial;
                b
            })
            .collect()
    }

    /// Factors of the pictures at `from` and before.
    fn predictor(&self, order: usize) -> Vec<f64> {
        let distances: Vec<f64> = (1..order).map(|k| (self.distance)(k)).collect();
        let rhos = match order {
            1 => Vec::new(),
            2 => vec![0.5],
            _ => solve(&distances, &self.moments(order - 1)),
        };
        let mut factors = vec![-self.alpha * self.phi_1];
        for (rho, distance) in rhos.iter().zip(&distances) {
            let slope = -self.alpha * self.b_h * rho / distance;
            factors[0] -= slope;
            factors.push(slope);
        }
        factors
    }

    /// Factors of the new picture, then of those at `from` and before.
    fn corrector(&self, order: usize) -> Vec<f64> {
        let mut distances: Vec<f64> = (1..order).map(|k| (self.distance)(k)).collect();
        distances.push(1.0);
        let rhos = if order == 1 { vec![0.5] } else { solve(&distances, &self.moments(order)) };
        let mut factors = vec![0.0, -self.alpha * self.phi_1];
        for (k, (rho, distance)) in rhos.iter().zip(&distances).enumerate() {
            let slope = -self.alpha * self.b_h * rho / distance;
            factors[1] -= slope;
            if k + 1 == order { factors[0] += slope } else { factors.push(slope) }
        }
        factors
    }
}

/// Solves sum_k distance_k^i rho_k = b_i for up to three unknowns: Gaussian elimination with pivots.
fn solve(distances: &[f64], b: &[f64]) -> Vec<f64> {
    let n = distances.len();
    let mut rows: Vec<Vec<f64>> =
        (0..n).map(|i| distances.iter().map(|d| d.powi(i as i32)).chain(std::iter::once(b[i])).collect()).collect();
    for column in 0..n {
        let pivot =
            (column..n).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs())).unwrap_or(column);
        rows.swap(column, pivot);
        let pivot = rows[column].clone();
        for (i, row) in rows.iter_mut().enumerate() {
            if i != column {
                let factor = row[column] / pivot[column];
                row.iter_mut().zip(&pivot).for_each(|(a, b)| *a -= factor * b);
            }
        }
    }
    (0..n).map(|i| rows[i][n] / rows[i][i]).collect()
}
