//! What pictures show, as the judge reads it: of generated pictures against what was asked for, and of drawings against
//! what is known, which says how far the judge's reading can be trusted.

use crate::people::Known;
use crate::{Eyes, Result};
use faces::{Keypoints, Reading};
use std::collections::BTreeMap;

/// The judge's reading of a picture whose content is known: the most that a picture made to order can reach.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drawn {
    /// Whether each attribute is read as it is.
    pub(crate) right: BTreeMap<String, bool>,
    /// As [`keypoint_error`].
    pub(crate) keypoint_error: Option<f64>,
}

impl Drawn {
    /// Reads a picture; `None` where nothing is known of it, or the judge reads no content.
    pub(crate) fn read(known: &Known, eyes: &Eyes) -> Result<Option<Drawn>> {
        if known.shows.is_empty() && known.keypoints.is_none() {
            return Ok(None);
        }
        let Some(reading) = eyes.judge.read(&known.photo.image)? else { return Ok(None) };
        let keypoint_error = known.keypoints.map(|kps| keypoint_error(&reading.keypoints, &kps));
        Ok(Some(Drawn { right: agreement(&known.shows, &reading), keypoint_error }))
    }
}

/// Of each attribute that the judge knows, whether it reads the given choice.
pub(crate) fn agreement(wanted: &BTreeMap<String, String>, reading: &Reading) -> BTreeMap<String, bool> {
    let seen = |(name, choice): (&String, &String)| Some((name.clone(), reading.attributes.get(name)? == choice));
    wanted.iter().filter_map(seen).collect()
}

/// Mean distance between two sets of keypoints over the distance of the eyes of the second.
pub(crate) fn keypoint_error(read: &Keypoints, placed: &Keypoints) -> f64 {
    let distance = |a: &[f32; 2], b: &[f32; 2]| f64::from((a[0] - b[0]).hypot(a[1] - b[1]));
    let sum: f64 = read.iter().zip(placed).map(|(a, b)| distance(a, b)).sum();
    sum / 5.0 / distance(&placed[0], &placed[1]).max(1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_in_distances_of_the_eyes() {
        let placed = [[10.0, 10.0], [30.0, 10.0], [20.0, 20.0], [14.0, 30.0], [26.0, 30.0]];
        assert_eq!(keypoint_error(&placed, &placed), 0.0);
        let moved = placed.map(|[x, y]| [x + 3.0, y + 4.0]);
        assert!((keypoint_error(&moved, &placed) - 0.25).abs() < 1e-9);
    }

    #[test]
    fn attributes_that_the_judge_does_not_know_are_not_held_against_a_picture() {
        let words = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        let reading = Reading { keypoints: [[0.0; 2]; 5], attributes: words(&[("style", "ink"), ("tint", "red")]) };
        let agreed = agreement(&words(&[("style", "ink"), ("tint", "blue"), ("mood", "calm")]), &reading);
        assert_eq!(agreed.into_iter().collect::<Vec<_>>(), [("style".to_string(), true), ("tint".to_string(), false)]);
    }
}
