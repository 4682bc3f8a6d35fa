//! From a photo to its faces: the two networks found in a folder and run one after the other.

use crate::detect::{DETECTION_SIDE, Detection, Detections, Scrfd};
use crate::embed::ArcFace;
use crate::keypoints::Keypoints;
use crate::onnx::{Network, Role};
use crate::photo::Photo;
use crate::{Error, Result};
use image::RgbImage;
use std::path::{Path, PathBuf};

/// A face whose shorter box side is below this is mostly noise when it is scaled up to 112 pixels.
pub const MIN_FACE: f32 = 20.0;

/// Scores below this come with a warning. Chosen by judgement: the detector's own threshold is 0.5, a clear face is near 1.
const UNSURE: f32 = 0.6;

/// One face of a photo.
#[derive(Clone, Debug, PartialEq)]
pub struct Face {
    /// Left, top, right, bottom, in pixels of the photo.
    pub bbox: [f32; 4],
    /// Left eye, right eye, nose, left and right corner of the mouth, in pixels of the photo.
    pub kps: Keypoints,
    /// The detector's confidence.
    pub det_score: f32,
    /// The recogniser's answer as it came, not normalised: what InstantID is conditioned on.
    pub embedding: Vec<f32>,
}

impl Face {
    /// Area of the box in square pixels.
    pub fn area(&self) -> f32 {
        (self.bbox[2] - self.bbox[0]) * (self.bbox[3] - self.bbox[1])
    }

    /// The shorter side of the box in pixels.
    pub fn side(&self) -> f32 {
        (self.bbox[2] - self.bbox[0]).min(self.bbox[3] - self.bbox[1])
    }

    /// A sentence where the face is seen so much from the side, or so unsurely, that its likeness will suffer. From the
    /// front the nose lies about half-way between the eyes; in profile it reaches one of them.
    pub fn warning(&self) -> Option<String> {
        let [left, right, nose] = [self.kps[0], self.kps[1], self.kps[2]];
        let across = [right[0] - left[0], right[1] - left[1]];
        let square = across[0] * across[0] + across[1] * across[1];
        let along = ((nose[0] - left[0]) * across[0] + (nose[1] - left[1]) * across[1]) / square;
        let turned = !(0.15..=0.85).contains(&along);
        let why = match (turned, self.det_score < UNSURE) {
            (true, _) => "is turned far to the side",
            (false, true) => "is hard to make out, perhaps covered or blurred",
            (false, false) => return None,
        };
        Some(format!(
            "the face {why} (score {:.2}), so the likeness will suffer; a clear photo from the front serves better",
            self.det_score
        ))
    }

    /// The embedding scaled to length 1, for comparisons.
    pub fn normed_embedding(&self) -> Vec<f32> {
        let norm = self.embedding.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        self.embedding.iter().map(|&v| (f64::from(v) / norm) as f32).collect()
    }
}

/// Faces of one photo, the largest first, and what the user should know about them.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// The photo's name, for messages.
    pub name: String,
    /// Width and height of the photo.
    pub size: (u32, u32),
    /// In order of box size, the largest first: `--face-index` counts in this order from 0.
    pub faces: Vec<Face>,
    /// The detection size that found them.
    pub detection_side: u32,
    /// Sentences the user should see.
    pub notices: Vec<String>,
}

impl Analysis {
    /// The face to use: the largest, or the one asked for.
    ///
    /// Refuses photos without a face, an index that does not exist, and faces under [`MIN_FACE`]
    /// pixels. With several faces and no index, the returned sentence says which one was taken.
    pub fn choose(&self, index: Option<usize>) -> Result<(&Face, Option<String>)> {
        let refuse = |reason: String| Error::Face { name: self.name.clone(), reason };
        if self.faces.is_empty() {
            return Err(refuse(match self.notices.last() {
                Some(why) => format!("no face can be used: {why}"),
                None => "no face was found; a photo needs one that is well lit and seen from the front".into(),
            }));
        }
        let at = index.unwrap_or(0);
        let count = self.faces.len();
        let face = self.faces.get(at).ok_or_else(|| {
            refuse(format!(
                "face {at} was asked for, but the photo has {count}; valid are 0 to {}, the largest first",
                count - 1
            ))
        })?;
        if face.side() < MIN_FACE {
            return Err(refuse(format!(
                "face {at} is {:.0} pixels across; at least {MIN_FACE} are needed",
                face.side().max(0.0)
            )));
        }
        let told = (count > 1 && index.is_none()).then(|| {
            let [left, top, right, bottom] = face.bbox;
            format!(
                "{}: {count} faces; the largest is used, at ({left:.0}, {top:.0}) to ({right:.0}, {bottom:.0})",
                self.name
            )
        });
        Ok((face, told))
    }
}

/// The detector and the recogniser, ready to run.
pub struct FaceAnalyzer {
    detector: Scrfd,
    recogniser: ArcFace,
    detector_path: PathBuf,
    recogniser_path: PathBuf,
    recogniser_hash: String,
}

/// Files of known model packs that hold neither a detector nor a recogniser.
const NOT_NEEDED: [&str; 6] = ["1k3d68", "2d106det", "genderage", "inswapper_128", "liveness", "face_verifier"];

impl FaceAnalyzer {
    /// Opens a folder with an SCRFD and an ArcFace file, such as an unpacked antelopev2 or buffalo_l.
    ///
    /// The files are told apart by their graphs, in order of their names, the first of each kind
    /// counts; a folder inside that has the same name (the archive unpacks that way) is looked into.
    pub fn open(folder: &Path) -> Result<FaceAnalyzer> {
        let files = find_files(folder)?;
        let mut detector = None;
        let mut recogniser = None;
        let mut failures = Vec::new();
        for path in files {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
            if NOT_NEEDED.contains(&stem.as_str()) {
                continue;
            }
            let network = match Network::open(&path) {
                Ok(network) => network,
                Err(error) => {
                    failures.push(error);
                    continue;
                }
            };
            match network.role {
                Role::Detector if detector.is_none() => detector = Some((path, Scrfd::load(network)?)),
                Role::Recogniser if recogniser.is_none() => {
                    let hash = network.sha256();
                    recogniser = Some((path, ArcFace::load(network)?, hash));
                }
                _ => tracing::debug!(file = %path.display(), role = ?network.role, "not needed"),
            }
            if detector.is_some() && recogniser.is_some() {
                break;
            }
        }
        let missing = |what: &str| match failures.pop() {
            // A damaged file is the likelier reason than one that was never there.
            Some(error) => error,
            None => Error::Model {
                name: folder.display().to_string(),
                reason: format!(
                    "holds no {what}; an antelopev2 folder with scrfd_10g_bnkps.onnx and glintr100.onnx is needed"
                ),
            },
        };
        match (detector, recogniser) {
            (Some((detector_path, detector)), Some((recogniser_path, recogniser, recogniser_hash))) => {
                Ok(FaceAnalyzer { detector, recogniser, detector_path, recogniser_path, recogniser_hash })
            }
            (None, _) => Err({ missing }("detector (an SCRFD .onnx with 6, 9, 10 or 15 outputs)")),
            (_, None) => Err({ missing }("recogniser (an ArcFace .onnx with one square input and one output)")),
        }
    }

    /// Makes an analyzer of two networks in memory: an SCRFD and an ArcFace file.
    pub fn from_bytes(detector: Vec<u8>, recogniser: Vec<u8>) -> Result<FaceAnalyzer> {
        let detector = Network::parse("detector", detector)?;
        let recogniser = Network::parse("recogniser", recogniser)?;
        for (network, role) in [(&detector, Role::Detector), (&recogniser, Role::Recogniser)] {
            if network.role != role {
                return Err(Error::Model {
                    name: network.name.clone(),
                    reason: format!("is no {role:?} network by its inputs and outputs"),
                });
            }
        }
        Ok(FaceAnalyzer {
            recogniser_hash: recogniser.sha256(),
            detector: Scrfd::load(detector)?,
            recogniser: ArcFace::load(recogniser)?,
            detector_path: PathBuf::from("detector"),
            recogniser_path: PathBuf::from("recogniser"),
        })
    }

    /// The files in use: detector, recogniser.
    pub fn files(&self) -> (&Path, &Path) {
        (&self.detector_path, &self.recogniser_path)
    }

    /// SHA-256 of the recogniser's file: embeddings of different recognisers cannot be mixed.
    pub fn recogniser_hash(&self) -> &str {
        &self.recogniser_hash
    }

    /// Boxes and keypoints only, in insightface's order (best score first).
    pub fn detections(&self, picture: &RgbImage) -> Result<Detections> {
        self.detector.detect(picture)
    }

    /// As [`FaceAnalyzer::detections`], but a picture smaller than 640 pixels is not magnified unless nothing is found
    /// in it as it is: for measuring pictures, where keypoints have to lie exactly.
    pub fn detections_unmagnified(&self, picture: &RgbImage) -> Result<Detections> {
        self.detector.detect_unmagnified(picture)
    }

    /// Faces at the detector's own size, without the smaller ones that are tried where nothing is found.
    pub fn detect_once(&self, picture: &RgbImage) -> Result<Vec<Detection>> {
        self.detector.detect_once(picture)
    }

    /// The embedding of the face at these points, not normalised.
    pub fn embed(&self, picture: &RgbImage, kps: &Keypoints) -> Result<Vec<f32>> {
        self.recogniser.embed(picture, kps)
    }

    /// Multiplications of the detector's run and of the recogniser's.
    pub fn products(&self) -> (u64, u64) {
        (self.detector.products(), self.recogniser.products())
    }

    /// All faces of a picture with their embeddings, in insightface's order (best score first).
    pub fn detect(&self, picture: &RgbImage) -> Result<Vec<Face>> {
        let detections = self.detector.detect(picture)?;
        Ok(self.embed_all(picture, detections).0)
    }

    /// All faces of a photo, the largest first.
    pub fn analyze(&self, photo: &Photo) -> Result<Analysis> {
        let detections = self.detector.detect(&photo.image)?;
        let mut notices = photo.notices.clone();
        let side = detections.side;
        if side < DETECTION_SIDE && !detections.faces.is_empty() {
            notices.push(format!("the face was found at a detection size of {side} pixels"));
        }
        let (mut faces, dropped) = self.embed_all(&photo.image, detections);
        notices.extend(dropped);
        // Python's `sorted(...)[-1]` takes the last of equals; so a stable sort, then reversed.
        faces.sort_by(|a, b| a.area().total_cmp(&b.area()));
        faces.reverse();
        Ok(Analysis { name: photo.name.clone(), size: photo.image.dimensions(), faces, detection_side: side, notices })
    }

    /// Faces whose numbers cannot be used are left out, with a sentence each.
    fn embed_all(&self, picture: &RgbImage, detections: Detections) -> (Vec<Face>, Vec<String>) {
        let mut faces = Vec::new();
        let mut dropped = Vec::new();
        for (i, found) in detections.faces.into_iter().enumerate() {
            let Some(kps) = found.kps else {
                dropped.push("the detector gives no keypoints, without which no identity can be read".into());
                break;
            };
            if !found.bbox.iter().all(|v| v.is_finite()) {
                dropped.push(format!("found face {} has a box that is not finite and is left out", i + 1));
                continue;
            }
            match self.recogniser.embed(picture, &kps) {
                Ok(embedding) => {
                    faces.push(Face { bbox: found.bbox, kps, det_score: found.det_score, embedding });
                }
                Err(error) => dropped.push(format!("found face {} is left out: {error}", i + 1)),
            }
        }
        (faces, dropped)
    }
}

/// The .onnx files of a folder or of the folder of the same purpose inside it, by name.
fn find_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = |folder: &Path| -> std::io::Result<Vec<PathBuf>> {
        let mut all =
            std::fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>()?;
        all.sort();
        Ok(all)
    };
    let onnx = |path: &PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"));
    let entries = list(folder).map_err(|e| Error::Io {
        what: "the face model folder",
        path: folder.to_owned(),
        action: "read",
        reason: match e.kind() {
            std::io::ErrorKind::NotFound => "no such folder".into(),
            _ => e.to_string(),
        },
    })?;
    let files: Vec<PathBuf> = entries.iter().filter(|p| onnx(p)).cloned().collect();
    if !files.is_empty() {
        return Ok(files);
    }
    for inner in ["models/antelopev2", "antelopev2", "models", "buffalo_l"] {
        if let Ok(entries) = list(&folder.join(inner)) {
            let files: Vec<PathBuf> = entries.into_iter().filter(onnx).collect();
            if !files.is_empty() {
                return Ok(files);
            }
        }
    }
    // A folder with one folder inside: an archive unpacked into a folder of its name.
    if let [only] = entries.iter().filter(|p| p.is_dir()).collect::<Vec<_>>()[..] {
        return Ok(list(only).unwrap_or_default().into_iter().filter(onnx).collect());
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn analysis(side: f32, nose: [f32; 2], det_score: f32) -> Analysis {
        let kps = [[30.0, 40.0], [70.0, 40.0], nose, [35.0, 80.0], [65.0, 80.0]];
        let face = Face { bbox: [0.0, 0.0, side, side], kps, det_score, embedding: vec![1.0; 4] };
        Analysis { name: "a.jpg".into(), size: (200, 200), faces: vec![face], detection_side: 640, notices: Vec::new() }
    }

    #[test]
    fn tiny_faces_are_refused_and_doubtful_ones_come_with_a_warning() {
        let tiny = analysis(12.0, [50.0, 60.0], 0.9).choose(None).unwrap_err();
        assert_eq!(tiny.to_string(), "a.jpg: face 0 is 12 pixels across; at least 20 are needed");
        assert!(tiny.is_user_fault());
        for (nose, score, said) in [
            ([50.0, 60.0], 0.9, None),
            ([40.0, 60.0], 0.9, None),
            ([34.0, 60.0], 0.9, Some("turned far to the side (score 0.90)")),
            ([80.0, 60.0], 0.7, Some("turned far to the side (score 0.70)")),
            ([50.0, 60.0], 0.55, Some("hard to make out")),
        ] {
            let analysis = analysis(100.0, nose, score);
            let warning = analysis.choose(None).unwrap().0.warning();
            assert_eq!(warning.is_some(), said.is_some(), "{nose:?} {score}: {warning:?}");
            assert!(said.is_none_or(|said| warning.unwrap().contains(said)));
        }
    }
}
