//! What comes of all pictures of a column.

use crate::measure::{Measures, mean, nearest};
use crate::methods::Column;
use crate::people::{Gallery, Person};
use crate::run::{Cell, Comparison, Prompt};
use faces::cosine;
use serde::Serialize;
use std::collections::BTreeMap;

/// Means over the pictures of a column.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Name of the column.
    pub column: String,
    /// Its title.
    pub title: String,
    /// The method's name.
    pub method: &'static str,
    /// What it is, in a sentence.
    pub about: &'static str,
    /// Its weight, if it was set.
    pub scale: Option<f64>,
    /// Whether it is a control.
    pub control: bool,
    /// How many pictures.
    pub pictures: usize,
    /// In how many of them the detector found a face.
    pub found: usize,
    /// Mean of [`Measures::sim_ref`].
    pub sim_ref: Option<f64>,
    /// Its standard error over the people: how far it would move with other people of the same kind. `None` for one alone.
    pub sim_ref_error: Option<f64>,
    /// Its tenth percentile.
    pub sim_ref_p10: Option<f64>,
    /// Mean of [`Measures::sim_gt`].
    pub sim_gt: Option<f64>,
    /// Mean of [`Measures::copy_paste`].
    pub copy_paste: Option<f64>,
    /// Share of pictures in which the person is the nearest of all at hand.
    pub top1: Option<f64>,
    /// Mean of [`Measures::sim_stranger`].
    pub sim_stranger: Option<f64>,
    /// Mean of [`Measures::text`].
    pub text: Option<f64>,
    /// Mean of [`Measures::keypoint_error`].
    pub keypoint_error: Option<f64>,
    /// Its median, which single pictures without a readable face do not move.
    pub keypoint_error_median: Option<f64>,
    /// Median of [`Measures::seconds`], which the loading of networks for the first picture does not move.
    pub seconds: Option<f64>,
    /// Mean of [`Measures::sim_ref`] by the style that prompts ask for.
    pub sim_ref_by_style: BTreeMap<String, f64>,
    /// Share of each attribute that was asked for and is seen.
    pub text_by_attribute: BTreeMap<String, f64>,
}

/// A summary of each column.
pub fn summaries(comparison: &Comparison, measured: &[(Cell, Measures)]) -> Vec<Summary> {
    comparison.columns.iter().enumerate().map(|(i, column)| summary(comparison, i, column, measured)).collect()
}

fn summary(comparison: &Comparison, i: usize, column: &Column, measured: &[(Cell, Measures)]) -> Summary {
    let mine: Vec<&(Cell, Measures)> = measured.iter().filter(|(cell, _)| cell.column == i).collect();
    let over = |of: fn(&Measures) -> Option<f64>| mean(mine.iter().filter_map(|(_, m)| of(m)));
    let sorted = |of: fn(&Measures) -> Option<f64>| {
        let mut values: Vec<f64> = mine.iter().filter_map(|(_, m)| of(m)).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let styles =
        mine.iter().filter_map(|(cell, m)| Some((comparison.prompts[cell.prompt].asks.get("style")?, m.sim_ref?)));
    let asked = mine.iter().flat_map(|(_, m)| m.asked.iter()).map(|(name, yes)| (name, share(*yes)));
    Summary {
        column: column.name(),
        title: column.title(),
        method: column.method.name,
        about: column.method.about,
        scale: column.scale,
        control: column.method.control,
        pictures: mine.len(),
        found: mine.iter().filter(|(_, m)| m.found).count(),
        sim_ref: over(|m| m.sim_ref),
        sim_ref_error: error_over_people(mine.iter().filter_map(|(cell, m)| Some((cell.person, m.sim_ref?)))),
        sim_ref_p10: quantile(&sorted(|m| m.sim_ref), 0.1),
        sim_gt: over(|m| m.sim_gt),
        copy_paste: over(|m| m.copy_paste),
        top1: over(|m| m.top1.map(share)),
        sim_stranger: over(|m| m.sim_stranger),
        text: over(|m| m.text),
        keypoint_error: over(|m| m.keypoint_error),
        keypoint_error_median: quantile(&sorted(|m| m.keypoint_error), 0.5),
        seconds: quantile(&sorted(|m| Some(m.seconds)), 0.5),
        sim_ref_by_style: by_key(styles),
        text_by_attribute: by_key(asked),
    }
}

fn by_key<'a>(values: impl Iterator<Item = (&'a String, f64)>) -> BTreeMap<String, f64> {
    let mut groups: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    values.for_each(|(key, value)| groups.entry(key.clone()).or_default().push(value));
    groups.into_iter().filter_map(|(key, values)| Some((key, mean(values.into_iter())?))).collect()
}

/// The standard error of a mean, where several values of one person count as one: they are alike.
fn error_over_people(values: impl Iterator<Item = (usize, f64)>) -> Option<f64> {
    let mut groups: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    values.for_each(|(person, value)| groups.entry(person).or_default().push(value));
    let means: Vec<f64> = groups.into_values().filter_map(|values| mean(values.into_iter())).collect();
    let (count, middle) = (means.len() as f64, mean(means.iter().copied())?);
    let spread: f64 = means.iter().map(|value| (value - middle).powi(2)).sum();
    (means.len() > 1).then(|| (spread / (count - 1.0) / count).sqrt())
}

/// With interpolation between neighbours.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let at = q * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

/// What the judge says of the people's own pictures: the most that a method can reach.
#[derive(Clone, Debug, Serialize)]
pub struct Reality {
    /// Mean cosine of the given picture to the others of the same person.
    pub sim_ref: Option<f64>,
    /// Mean cosine among the others.
    pub sim_gt: Option<f64>,
    /// Mean cosine of given pictures of different people.
    pub sim_others: Option<f64>,
    /// Share of given pictures whose nearest person is the right one, among the people compared.
    pub top1: Option<f64>,
    /// Of each attribute, the share of drawings in which it is read as it is known to be.
    pub text_by_attribute: BTreeMap<String, f64>,
    /// Mean over the prompts of what could be read right of all that they ask for.
    pub text: Option<f64>,
    /// Mean error of the keypoints read in drawings, over the distance of the eyes.
    pub keypoint_error: Option<f64>,
}

/// Measures the people's own pictures.
pub fn reality(comparison: &Comparison) -> Reality {
    let people = &comparison.people;
    let known = || people.iter().filter_map(|person| Some((person, person.reference.as_ref()?)));
    let with_others = || known().filter(|(person, _)| !person.others.is_empty());
    let pairs = |all: usize| (0..all).flat_map(move |i| (i + 1..all).map(move |j| (i, j)));
    let gallery = Gallery { centres: with_others().filter_map(|(person, _)| person.centre()).collect() };
    let right = |(i, (_, given)): (usize, (&Person, &Vec<f32>))| Some(nearest(given, &gallery)? == i);
    let references: Vec<&Vec<f32>> = known().map(|(_, given)| given).collect();
    let drawn = || people.iter().flat_map(|person| &person.drawn);
    let read = drawn().flat_map(|drawn| drawn.right.iter()).map(|(name, right)| (name, share(*right)));
    let text_by_attribute = by_key(read);
    let asked = |prompt: &Prompt| mean(prompt.asks.keys().filter_map(|name| text_by_attribute.get(name).copied()));
    Reality {
        sim_ref: mean(with_others().flat_map(|(p, given)| p.others.iter().map(move |other| cosine(given, other)))),
        sim_gt: mean(
            people.iter().flat_map(|p| pairs(p.others.len()).map(|(i, j)| cosine(&p.others[i], &p.others[j]))),
        ),
        sim_others: mean(pairs(references.len()).map(|(i, j)| cosine(references[i], references[j]))),
        top1: mean(with_others().enumerate().filter_map(right).map(share)),
        text: mean(comparison.prompts.iter().filter_map(asked)),
        keypoint_error: mean(drawn().filter_map(|drawn| drawn.keypoint_error)),
        text_by_attribute,
    }
}

fn share(yes: bool) -> f64 {
    if yes { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_one_person_are_not_independent() {
        let people = |rows: &[(usize, f64)]| error_over_people(rows.iter().copied());
        assert_eq!(people(&[(0, 0.1), (0, 0.9)]), None);
        // Means .2 and .4: a deviation of sqrt(.02), over sqrt(2).
        let error = people(&[(0, 0.1), (0, 0.3), (1, 0.4), (1, 0.4), (1, 0.4)]).unwrap_or(0.0);
        assert!((error - 0.1).abs() < 1e-12, "{error}");
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[1.0], 0.1), Some(1.0));
        assert_eq!(quantile(&[0.0, 1.0, 2.0], 0.5), Some(1.0));
        assert!((quantile(&[0.0, 10.0], 0.1).unwrap_or(0.0) - 1.0).abs() < 1e-12);
    }
}
