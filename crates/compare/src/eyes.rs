//! Who looks at pictures: the stack's own detector, which finds faces, and the judge, which tells them apart.

use crate::content::keypoint_error;
use crate::people::Known;
use crate::{Error, Result};
use faces::{Detection, FaceAnalyzer, Judge, Keypoints, Photo, RgbImage};
use std::path::Path;

/// A face counts if it is at least this share as sure as the surest.
const NEARLY: f32 = 0.8;

/// Keypoints nearer to each other than this, in distances of the eyes, are of the same face.
const SAME_FACE: f64 = 0.5;

/// The detector and the judge.
pub struct Eyes {
    pub(crate) analyzer: FaceAnalyzer,
    pub(crate) judge: Judge,
    /// Where identities lie that were read once and are used for many pictures.
    pub(crate) folder: tempfile::TempDir,
}

impl Eyes {
    /// Opens the face models of the stack, and a judge's folder.
    ///
    /// # Errors
    /// Files that are missing or cannot be used.
    pub fn open(face_models: &Path, judge: &Path) -> Result<Eyes> {
        Ok(Eyes {
            analyzer: FaceAnalyzer::open(face_models)?,
            judge: Judge::open(judge)?,
            folder: tempfile::tempdir().map_err(Error::Temporary)?,
        })
    }

    /// Whether the judge tells what pictures show, beside who is in them.
    pub fn reads_content(&self) -> bool {
        self.judge.reads_content()
    }

    /// The keypoints of the face that a picture shows, if one is found. The picture is looked at in its own size, and
    /// what the detector half believes in gives way to what it is sure of: both move the alignment, and with it every
    /// similarity, by more than methods differ.
    ///
    /// # Errors
    /// The detector fails.
    pub fn find(&self, picture: &RgbImage) -> Result<Option<Keypoints>> {
        let found = self.analyzer.detections_unmagnified(picture)?.faces;
        Ok(shown(&found).and_then(|face| face.kps))
    }

    /// Which of the faces of a picture is the one that is known to be there, as the stack counts them; `None` where
    /// nothing is known, or the stack takes the right one by itself.
    pub(crate) fn which(&self, known: &Known) -> Result<Option<usize>> {
        let Some(there) = known.keypoints else { return Ok(None) };
        let faces = self.analyzer.analyze(&known.photo)?.faces;
        let off = |i: &usize| keypoint_error(&faces[*i].kps, &there);
        let nearest = (0..faces.len()).min_by(|a, b| off(a).total_cmp(&off(b)));
        Ok(nearest.filter(|_| faces.len() > 1))
    }

    /// Where the judge looks at the face that the stack found at `kps`: at what is found there without magnifying, as in
    /// every other picture that is measured.
    pub(crate) fn again(&self, picture: &RgbImage, kps: Keypoints) -> Result<Keypoints> {
        let found = self.analyzer.detections_unmagnified(picture)?.faces;
        let all = found.into_iter().filter_map(|face| face.kps);
        let nearest = all.min_by(|a, b| keypoint_error(a, &kps).total_cmp(&keypoint_error(b, &kps)));
        Ok(nearest.filter(|nearest| keypoint_error(nearest, &kps) < SAME_FACE).unwrap_or(kps))
    }

    /// The judge's embedding of a known picture: at its known keypoints, or at those that are found.
    ///
    /// # Errors
    /// No face is found where none is known.
    pub fn embed(&self, known: &Known) -> Result<Vec<f32>> {
        let kps = match known.keypoints {
            Some(kps) => kps,
            None => self
                .find(&known.photo.image)?
                .ok_or_else(|| Error::Refused(format!("{}: no face was found", known.photo.name)))?,
        };
        Ok(self.judge.embed(&known.photo.image, &kps)?)
    }

    /// The judge's cosine between the largest faces of a photo and of a picture; `None` where one of them has none.
    ///
    /// # Errors
    /// A network fails.
    pub fn likeness(&self, photo: &Photo, picture: &RgbImage) -> Result<Option<f64>> {
        let (Some(from), Some(to)) = (self.find(&photo.image)?, self.find(picture)?) else { return Ok(None) };
        let (from, to) = (self.judge.embed(&photo.image, &from)?, self.judge.embed(picture, &to)?);
        Ok(Some(faces::cosine(&from, &to)))
    }
}

/// The largest of the faces that are nearly as sure as the surest.
fn shown(found: &[Detection]) -> Option<&Detection> {
    let area = |face: &Detection| (face.bbox[2] - face.bbox[0]) * (face.bbox[3] - face.bbox[1]);
    let surest = found.iter().map(|face| face.det_score).fold(0.0, f32::max);
    let sure = found.iter().filter(|face| face.det_score >= NEARLY * surest);
    sure.max_by(|a, b| area(a).total_cmp(&area(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face(side: f32, det_score: f32) -> Detection {
        Detection { bbox: [0.0, 0.0, side, side], kps: None, det_score }
    }

    #[test]
    fn the_largest_face_counts_unless_it_is_doubtful() {
        let score = |faces: &[Detection]| shown(faces).map(|face| face.det_score);
        assert_eq!(score(&[]), None);
        assert_eq!(score(&[face(90.0, 0.97), face(30.0, 0.99)]), Some(0.97));
        // As a half-trained detector answered to a generated picture: the larger box was no face.
        assert_eq!(score(&[face(90.0, 0.58), face(60.0, 1.0)]), Some(1.0));
        assert_eq!(score(&[face(40.0, 0.55), face(60.0, 0.52)]), Some(0.52));
    }
}
