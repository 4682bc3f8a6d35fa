//! Who looks at pictures: the stack's own detector, which finds faces, and the judge, which tells them apart.

use crate::people::Known;
use crate::{Error, Result};
use faces::{FaceAnalyzer, Judge, Keypoints, Photo, RgbImage};
use std::path::Path;

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

    /// The keypoints of the largest face, if one is found.
    ///
    /// # Errors
    /// The detector fails.
    pub fn find(&self, picture: &RgbImage) -> Result<Option<Keypoints>> {
        let area = |b: [f32; 4]| (b[2] - b[0]) * (b[3] - b[1]);
        let found = self.analyzer.detections(picture)?.faces.into_iter();
        Ok(found.max_by(|a, b| area(a.bbox).total_cmp(&area(b.bbox))).and_then(|face| face.kps))
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
