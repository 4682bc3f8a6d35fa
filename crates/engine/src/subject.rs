//! Who the picture shows: an embedding, keypoints, and where they came from.

use crate::request::{Embedding, Pose, Request};
use crate::{Error, Result};
use faces::{FaceAnalyzer, Identity, Keypoints, Photo, PhotoLimits, RgbImage, SourceReport};
use nets::Resampler;
use std::path::Path;
use tensor::{DType, Device, Tensor};

/// The face of a request.
pub struct Subject {
    identity: Identity,
    pose: PoseSource,
    reports: Vec<SourceReport>,
    notes: Vec<String>,
}

enum PoseSource {
    Points {
        kps: Keypoints,
        /// The picture in which they lie; `None` where a saved identity does not tell, and they are taken as they are.
        frame: Option<(u32, u32)>,
    },
    Map(RgbImage),
}

impl Subject {
    /// Reads all photos and identities; `None` where the request has no face, or none with any weight.
    ///
    /// # Errors
    /// No usable face, or files that cannot be read.
    pub(crate) fn resolve(request: &Request, analyzer: &mut Option<FaceAnalyzer>) -> Result<Option<Subject>> {
        if !request.wants_identity() {
            return Ok(None);
        }
        let limits = PhotoLimits::default();
        let index = request.face_index;
        let read = request
            .faces
            .iter()
            .map(|path| (path.display().to_string(), identity_of(path, index, request, analyzer, &limits)))
            .collect();
        let mut averaged = faces::average(read)?;
        let mut notes: Vec<String> = averaged.reports.iter().flat_map(|r| r.notices.clone()).collect();
        notes.extend(
            averaged.reports.iter().filter_map(|r| Some(format!("{} is left out: {}", r.name, r.skipped.as_ref()?))),
        );
        let pose = match &request.pose {
            Some(Pose::Map(path)) => PoseSource::Map(Photo::open_with(path, &limits)?.image),
            Some(Pose::Face(path)) => {
                let (identity, told) = identity_of(path, None, request, analyzer, &limits)?;
                notes.extend(told);
                points(&identity, path)?
            }
            None => points(&averaged.identity, &request.faces[0])?,
        };
        match &request.embedding {
            Some(Embedding::Zero) => averaged.identity.embedding.fill(0.0),
            Some(Embedding::Of(path)) => {
                averaged.identity.embedding = identity_of(path, None, request, analyzer, &limits)?.0.embedding;
            }
            None => {}
        }
        Ok(Some(Subject { identity: averaged.identity, pose, reports: averaged.reports, notes }))
    }

    /// What became of each photo.
    pub fn reports(&self) -> &[SourceReport] {
        &self.reports
    }

    pub(crate) fn into_reports(self) -> Vec<SourceReport> {
        self.reports
    }

    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// How many photos the embedding is the mean of.
    pub(crate) fn photos(&self) -> usize {
        self.reports.iter().filter(|r| r.skipped.is_none()).count()
    }

    /// The size of a ready keypoint image.
    pub(crate) fn pose_map_size(&self) -> Option<(u32, u32)> {
        match &self.pose {
            PoseSource::Map(image) => Some(image.dimensions()),
            PoseSource::Points { .. } => None,
        }
    }

    /// The keypoints in pixels of the output: the photo fitted whole into it and centred.
    pub(crate) fn keypoints_in(&self, size: (u32, u32)) -> Result<Option<Keypoints>> {
        Ok(match &self.pose {
            PoseSource::Map(_) => None,
            PoseSource::Points { kps, frame: Some(frame) } => Some(faces::place_keypoints(kps, *frame, size)?),
            PoseSource::Points { kps, frame: None } => Some(*kps),
        })
    }

    /// The picture that IdentityNet reads, `[1, h, w, 3]` with values from 0 to 1.
    pub(crate) fn hint(&self, (width, height): (u32, u32), device: &Device, dtype: DType) -> Result<Tensor> {
        let image = match (&self.pose, self.keypoints_in((width, height))?) {
            // The reference resizes by Lanczos and does not keep the aspect.
            (PoseSource::Map(image), _) => faces::resize_lanczos_like_pillow(image, width, height)?,
            (_, Some(kps)) => faces::draw_keypoints(width, height, &kps)?,
            (_, None) => RgbImage::new(width, height),
        };
        let values: Vec<f32> = image.as_raw().iter().map(|&v| f32::from(v) / 255.0).collect();
        Ok(Tensor::from_f32(device, dtype, &[1, height as usize, width as usize, 3], &values)?)
    }

    /// Identity tokens `[halves, n, c]`; the negative half is the Resampler's answer to zeros, as in the reference.
    pub(crate) fn tokens(&self, resampler: &Resampler, guided: bool, device: &Device) -> Result<Tensor> {
        let width = self.identity.embedding.len();
        let wanted = resampler.config().embedding_dim;
        if width != wanted {
            return Error::refused(format!(
                "the face's embedding has {width} numbers, but the identity adapter takes {wanted}; InstantID goes with antelopev2, whose embeddings have 512"
            ));
        }
        let halves = if guided { 2 } else { 1 };
        let mut values = vec![0.0; (halves - 1) * width];
        values.extend(&self.identity.embedding);
        let embedding = Tensor::from_f32(device, DType::F32, &[halves, 1, width], &values)?;
        Ok(resampler.forward(&embedding)?)
    }
}

/// Reads one photo or saved identity; the face networks are opened for the first photo.
fn identity_of(
    path: &Path,
    index: Option<usize>,
    request: &Request,
    analyzer: &mut Option<FaceAnalyzer>,
    limits: &PhotoLimits,
) -> faces::Result<(Identity, Vec<String>)> {
    if Identity::sniff(path) {
        return Ok((Identity::open(path)?, Vec::new()));
    }
    let photo = Photo::open_with(path, limits)?;
    let analyzer = match analyzer {
        Some(analyzer) => analyzer,
        None => {
            let folder = request.models.face_models.as_deref().ok_or_else(|| faces::Error::Model {
                name: "antelopev2".into(),
                reason: "is needed to find the face in a photo; name its folder with --face-models".into(),
            })?;
            analyzer.insert(FaceAnalyzer::open(folder)?)
        }
    };
    analyzer.identity_of_photo(&photo, index)
}

fn points(identity: &Identity, path: &Path) -> Result<PoseSource> {
    match identity.kps {
        Some(kps) => Ok(PoseSource::Points { kps, frame: identity.size }),
        None => Error::refused(format!(
            "{} holds no keypoints, so it does not say where the face goes; add --pose PHOTO",
            path.display()
        )),
    }
}
