//! One identity from several pictures.
//!
//! The raw embeddings are averaged, as users of InstantID do: a clear photo has a longer embedding
//! than a blurred one and so weighs more. A picture that cannot be read, has no usable face, or shows
//! somebody else than the others is skipped and reported; when none is left, that is an error.

use crate::analyze::FaceAnalyzer;
use crate::embed::cosine;
use crate::identity::Identity;
use crate::photo::{Photo, PhotoLimits};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Embeddings of one person in different photos are seldom below this, those of two seldom above.
pub const SAME_PERSON: f64 = 0.25;

/// What became of one picture.
#[derive(Clone, Debug)]
pub struct SourceReport {
    /// The picture or identity file.
    pub name: String,
    /// Why it was skipped; `None` when it was used.
    pub skipped: Option<String>,
    /// Sentences the user should see.
    pub notices: Vec<String>,
    /// Cosine to the mean of the other used pictures, when there are others.
    pub likeness: Option<f64>,
}

/// An identity and how it came about.
#[derive(Clone, Debug)]
pub struct Averaged {
    /// The mean embedding, with keypoints, box and size of the first picture used.
    pub identity: Identity,
    /// One report a picture, in the order given.
    pub reports: Vec<SourceReport>,
}

impl FaceAnalyzer {
    /// Reads the identity of one file: a photo, or a saved identity (told by its bytes).
    ///
    /// `index` picks a face of a photo, the largest first; the largest when `None`. The second value
    /// holds sentences the user should see.
    pub fn identity(&self, path: &Path, index: Option<usize>, limits: &PhotoLimits) -> Result<(Identity, Vec<String>)> {
        if Identity::sniff(path) {
            let identity = Identity::open(path)?;
            let mut notices = Vec::new();
            if identity.encoder.as_deref().is_some_and(|e| e != self.recogniser_hash()) {
                notices.push(format!(
                    "{}: saved with another recogniser than the one in use; the face may differ",
                    path.display()
                ));
            }
            return Ok((identity, notices));
        }
        self.identity_of_photo(&Photo::open_with(path, limits)?, index)
    }

    /// Reads the identity of one face of a photo.
    pub fn identity_of_photo(&self, photo: &Photo, index: Option<usize>) -> Result<(Identity, Vec<String>)> {
        let analysis = self.analyze(photo)?;
        let (face, told) = analysis.choose(index)?;
        let mut notices: Vec<String> = analysis.notices.iter().map(|n| format!("{}: {n}", photo.name)).collect();
        notices.extend(told);
        notices.extend(face.warning().map(|warning| format!("{}: {warning}", photo.name)));
        Ok((Identity::of_face(face, &analysis, self.recogniser_hash()), notices))
    }

    /// Averages the identities of several files. One file gives its own identity unchanged, and its
    /// fault as the error.
    pub fn average(&self, paths: &[PathBuf], index: Option<usize>, limits: &PhotoLimits) -> Result<Averaged> {
        let read = paths.iter().map(|path| (path.display().to_string(), self.identity(path, index, limits))).collect();
        average(read)
    }
}

/// An identity that was read, with sentences for the user, or why it was not.
pub type Read = Result<(Identity, Vec<String>)>;

/// Averages identities that were read, or failed to be.
pub fn average(read: Vec<(String, Read)>) -> Result<Averaged> {
    let mut reports = Vec::new();
    let mut used: Vec<(usize, Identity)> = Vec::new();
    let single = read.len() == 1;
    for (at, (name, result)) in read.into_iter().enumerate() {
        let mut report = SourceReport { name, skipped: None, notices: Vec::new(), likeness: None };
        match result {
            Err(error) if single => return Err(error),
            Err(error) => report.skipped = Some(error.to_string()),
            Ok((identity, notices)) => {
                report.notices = notices;
                let expected = used.first().map_or(identity.embedding.len(), |(_, first)| first.embedding.len());
                if identity.embedding.len() == expected {
                    used.push((at, identity));
                } else {
                    report.skipped = Some(format!(
                        "its embedding has {} values, those before have {expected}; embeddings of different recognisers cannot be mixed",
                        identity.embedding.len()
                    ));
                }
            }
        }
        reports.push(report);
    }
    drop_strangers(&mut used, &mut reports);
    if used.is_empty() {
        let why: Vec<String> = reports.iter().map(|r| r.skipped.clone().unwrap_or_default()).collect();
        return Err(Error::Face {
            name: format!("none of the {} pictures can be used", reports.len()),
            reason: if why.is_empty() { "at least one is needed".into() } else { why.join("; ") },
        });
    }
    let mut identity = used[0].1.clone();
    identity.embedding = mean(used.iter().map(|(_, i)| i.embedding.as_slice()));
    crate::embed::check_embedding(&identity.embedding).map_err(|reason| Error::Face {
        name: "the pictures together".into(),
        reason: format!("their mean embedding {reason}"),
    })?;
    if used.iter().any(|(_, i)| i.encoder != identity.encoder) {
        identity.encoder = None;
    }
    Ok(Averaged { identity, reports })
}

/// Takes out, one at a time, the picture least like the mean of the others, while it is too unlike.
fn drop_strangers(used: &mut Vec<(usize, Identity)>, reports: &mut [SourceReport]) {
    while used.len() > 1 {
        let likeness: Vec<f64> = (0..used.len())
            .map(|i| {
                let others =
                    mean(used.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, u)| u.1.embedding.as_slice()));
                cosine(&used[i].1.embedding, &others)
            })
            .collect();
        for ((at, _), value) in used.iter().zip(&likeness) {
            reports[*at].likeness = Some(*value);
        }
        let Some((worst, &value)) = likeness.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1)) else { return };
        if value >= SAME_PERSON {
            return;
        }
        if used.len() == 2 {
            // Which of two is the stranger nobody can tell; a blend may be wanted.
            let text = format!("it and the other picture seem to show two people (likeness {value:.2}); both are used");
            reports[used[1].0].notices.push(text);
            return;
        }
        let (at, _) = used.remove(worst);
        reports[at].skipped = Some(format!(
            "it seems to show somebody else: its likeness to the others is {value:.2}, and {SAME_PERSON} is needed"
        ));
    }
}

/// Mean of embeddings, summed in double precision.
fn mean<'a>(embeddings: impl Iterator<Item = &'a [f32]>) -> Vec<f32> {
    let mut sum: Vec<f64> = Vec::new();
    let mut count = 0.0;
    for embedding in embeddings {
        sum.resize(embedding.len(), 0.0);
        for (s, &v) in sum.iter_mut().zip(embedding) {
            *s += f64::from(v);
        }
        count += 1.0;
    }
    sum.into_iter().map(|s| (s / count) as f32).collect()
}
