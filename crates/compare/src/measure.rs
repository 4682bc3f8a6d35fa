//! What one picture measures.

use crate::content::{agreement, keypoint_error};
use crate::people::{Gallery, Person};
use crate::run::Prompt;
use crate::{Eyes, Result};
use faces::{Keypoints, RgbImage, cosine};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the judge and the detector say of one picture. `None` is what could not be measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Whether the stack's detector found a face; else the keypoints asked for were used to align it.
    pub found: bool,
    /// The judge's cosine to the given picture; `None` for a saved identity, which has none.
    pub sim_ref: Option<f64>,
    /// Mean cosine to other pictures of the person.
    pub sim_gt: Option<f64>,
    /// `sim_ref - sim_gt`: how much nearer the picture is to the one given than to others of the same person. Copying
    /// the given picture raises it; keeping the identity alone does not.
    pub copy_paste: Option<f64>,
    /// Whether the person is the nearest among all at hand.
    pub top1: Option<bool>,
    /// Cosine to the given picture of the person whose embedding was put in place.
    pub sim_stranger: Option<f64>,
    /// Share of what the prompt asks for that the judge sees in the picture.
    pub text: Option<f64>,
    /// What was asked for, and whether it is seen.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub asked: BTreeMap<String, bool>,
    /// Mean distance between the keypoints asked for and those the judge reads, over the distance of the eyes.
    pub keypoint_error: Option<f64>,
    /// Time of making the picture.
    pub seconds: f64,
}

impl Measures {
    /// Looks at a picture that should show a person at these keypoints, who is number `who` of everybody.
    pub(crate) fn of(
        picture: &RgbImage,
        person: &Person,
        stranger: Option<&Person>,
        prompt: &Prompt,
        placed: &Keypoints,
        who: Option<usize>,
        everybody: &Gallery,
        eyes: &Eyes,
        seconds: f64,
    ) -> Result<Measures> {
        let found = eyes.find(picture, Some(placed))?;
        let embedding = match eyes.judge.embed(picture, found.as_ref().unwrap_or(placed)) {
            // Found keypoints can lie on one another in a picture without a clear face.
            Err(_) if found.is_some() => eyes.judge.embed(picture, placed)?,
            embedded => embedded?,
        };
        let to = |other: &Vec<f32>| cosine(&embedding, other);
        let sim_ref = person.reference.as_ref().map(to);
        let sim_gt = mean(person.others.iter().map(to));
        let reading = eyes.judge.read(picture)?;
        let asked = reading.as_ref().map(|reading| agreement(&prompt.asks, reading)).unwrap_or_default();
        Ok(Measures {
            found: found.is_some(),
            sim_ref,
            sim_gt,
            copy_paste: sim_ref.zip(sim_gt).map(|(reference, gt)| reference - gt),
            top1: who.and_then(|who| Some(nearest(&embedding, everybody)? == who)),
            sim_stranger: stranger.and_then(|stranger| Some(to(stranger.reference.as_ref()?))),
            text: mean(asked.values().map(|yes| if *yes { 1.0 } else { 0.0 })),
            asked,
            keypoint_error: reading.map(|reading| keypoint_error(&reading.keypoints, placed)),
            seconds,
        })
    }
}

/// Who is nearest; `None` where there is no choice.
pub(crate) fn nearest(embedding: &[f32], gallery: &Gallery) -> Option<usize> {
    let all = gallery.centres.iter().map(|centre| cosine(embedding, centre)).enumerate();
    (gallery.len() > 1).then(|| all.max_by(|a, b| a.1.total_cmp(&b.1)).map(|best| best.0)).flatten()
}

pub(crate) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    values.for_each(|value| (sum, count) = (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_found_and_one_alone_is_no_choice() {
        let mut gallery = Gallery { centres: vec![vec![1.0, 0.0], vec![0.0, 2.0]] };
        assert_eq!(nearest(&[0.1, 0.9], &gallery), Some(1));
        gallery.centres.pop();
        assert_eq!(nearest(&[0.1, 0.9], &gallery), None);
    }
}
