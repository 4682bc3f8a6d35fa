//! The people of a comparison as the judge sees them.

use crate::{Error, Eyes, Result};
use faces::{Identity, Keypoints, Photo};
use std::path::{Path, PathBuf};

/// A picture of somebody, with keypoints where they are known for certain, as in a drawing.
#[derive(Clone, Debug)]
pub struct Known {
    /// The picture.
    pub photo: Photo,
    /// Its keypoints; found by the detector if not known.
    pub keypoints: Option<Keypoints>,
}

/// Somebody: the given picture, and what is known from others.
pub struct Person {
    /// For people.
    pub name: String,
    /// The given picture.
    pub photo: Photo,
    /// What the detector and the encoder of the stack read in it.
    pub identity: Identity,
    /// What was noticed.
    pub notes: Vec<String>,
    /// The same as a saved identity, so that it is not read again for every picture.
    pub(crate) file: PathBuf,
    pub(crate) reference: Vec<f32>,
    pub(crate) others: Vec<Vec<f32>>,
}

impl Person {
    /// Reads who somebody is from one picture, and what the judge makes of that and of other pictures of them.
    ///
    /// # Errors
    /// No usable face in one of the pictures.
    pub fn meet(name: &str, photo: Photo, face_index: Option<usize>, others: &[Known], eyes: &Eyes) -> Result<Person> {
        let (identity, notes) = eyes.analyzer.identity_of_photo(&photo, face_index)?;
        let Some(kps) = identity.kps else {
            return Err(Error::Refused(format!("{name}: the detector gives no keypoints")));
        };
        let reference = eyes.judge.embed(&photo.image, &kps)?;
        let others = others.iter().map(|known| eyes.embed(known)).collect::<Result<_>>()?;
        let taken = std::fs::read_dir(eyes.folder.path()).map_err(Error::Temporary)?.count();
        let file = eyes.folder.path().join(format!("{taken}.safetensors"));
        identity.save(&file)?;
        Ok(Person { name: name.to_owned(), photo, identity, notes, file, reference, others })
    }

    /// The saved identity.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// How many other pictures are known.
    pub fn others(&self) -> usize {
        self.others.len()
    }

    /// The middle of the other pictures, or the given one where there is no other.
    pub(crate) fn centre(&self) -> Vec<f32> {
        if self.others.is_empty() { self.reference.clone() } else { centre(&self.others) }
    }
}

/// Everybody among whom the judge has to find the right one: the people compared, and others.
#[derive(Default)]
pub struct Gallery {
    pub(crate) centres: Vec<Vec<f32>>,
}

impl Gallery {
    /// Adds somebody who is not compared.
    ///
    /// # Errors
    /// A picture without a face.
    pub fn add(&mut self, pictures: &[Known], eyes: &Eyes) -> Result<()> {
        let all: Vec<Vec<f32>> = pictures.iter().map(|known| eyes.embed(known)).collect::<Result<_>>()?;
        if !all.is_empty() {
            self.centres.push(centre(&all));
        }
        Ok(())
    }

    /// How many were added.
    pub fn len(&self) -> usize {
        self.centres.len()
    }

    /// Whether nobody was added.
    pub fn is_empty(&self) -> bool {
        self.centres.is_empty()
    }
}

/// The mean of embeddings of length 1.
fn centre(all: &[Vec<f32>]) -> Vec<f32> {
    let mut sum = vec![0.0; all.first().map_or(0, Vec::len)];
    for one in all {
        let length = one.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        sum.iter_mut().zip(one).for_each(|(s, v)| *s += v / length);
    }
    sum
}
