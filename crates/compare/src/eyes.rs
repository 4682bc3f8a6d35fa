//! Who looks at pictures: the stack's own detector, which finds faces, and the judge, which tells them apart.

use crate::content::keypoint_error;
use crate::people::Known;
use crate::{Error, Result};
use faces::{Detection, FaceAnalyzer, Judge, Keypoints, RgbImage};
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

    /// The keypoints of the face that a picture shows, if one is found: the one at the keypoints `asked` for, else the
    /// largest. The picture is looked at in its own size, and what the detector half believes in gives way to what it is
    /// sure of: both move the alignment, and with it every similarity, by more than methods differ.
    ///
    /// # Errors
    /// The detector fails.
    pub fn find(&self, picture: &RgbImage, asked: Option<&Keypoints>) -> Result<Option<Keypoints>> {
        let found = self.analyzer.detections_unmagnified(picture)?.faces;
        Ok(asked.and_then(|asked| at(&found, asked)).or_else(|| shown(&found)?.kps))
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
        Ok(at(&self.analyzer.detections_unmagnified(picture)?.faces, &kps).unwrap_or(kps))
    }

    /// The judge's embedding of a known picture: at its known keypoints, or at those that are found.
    ///
    /// # Errors
    /// No face is found where none is known.
    pub fn embed(&self, known: &Known) -> Result<Vec<f32>> {
        let kps = match known.keypoints {
            Some(kps) => kps,
            None => self
                .find(&known.photo.image, None)?
                .ok_or_else(|| Error::Refused(format!("{}: no face was found", known.photo.name)))?,
        };
        Ok(self.judge.embed(&known.photo.image, &kps)?)
    }

    /// The judge's cosine between a known picture and one that was asked to show the same face at the keypoints `asked`;
    /// `None` where it shows none.
    ///
    /// # Errors
    /// No face in the known picture, or a network fails.
    pub fn likeness(&self, known: &Known, picture: &RgbImage, asked: Option<&Keypoints>) -> Result<Option<f64>> {
        let Some(to) = self.find(picture, asked)? else { return Ok(None) };
        Ok(Some(faces::cosine(&self.embed(known)?, &self.judge.embed(picture, &to)?)))
    }
}

/// The keypoints of the face that lies at the given ones, however many others there are and however sure they are.
fn at(found: &[Detection], there: &Keypoints) -> Option<Keypoints> {
    let off = |kps: &Keypoints| keypoint_error(kps, there);
    let all = found.iter().filter_map(|face| face.kps).filter(|kps| off(kps) < SAME_FACE);
    all.min_by(|a, b| off(a).total_cmp(&off(b)))
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

    #[test]
    fn the_face_that_was_asked_for_counts_among_others() {
        let face = |left: f32, top: f32, eyes: f32| {
            let place = |x: f32, y: f32| [left + x * eyes, top + y * eyes];
            let kps = [place(0.0, 0.0), place(1.0, 0.0), place(0.5, 0.6), place(0.1, 1.1), place(0.9, 1.1)];
            Detection { bbox: [0.0; 4], kps: Some(kps), det_score: 1.0 }
        };
        let asked = face(100.0, 100.0, 40.0).kps.unwrap();
        // A second face inside the first, one around it, and one elsewhere.
        let (there, inside) = (face(103.0, 98.0, 42.0), face(104.0, 130.0, 12.0));
        let (around, elsewhere) = (face(60.0, 70.0, 120.0), face(10.0, 10.0, 40.0));
        let all = [elsewhere.clone(), inside.clone(), around.clone(), there.clone()];
        assert_eq!(at(&all, &asked), there.kps);
        assert_eq!(at(&[inside, around, elsewhere], &asked), None, "then the largest is taken");
        assert_eq!(at(&[Detection { kps: None, ..there }], &asked), None);
    }
}
