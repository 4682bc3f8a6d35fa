//! The people of a comparison as the judge sees them.

use crate::content::Drawn;
use crate::{Error, Eyes, Result};
use faces::{Identity, Keypoints, Photo};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A picture of somebody, with what is known about it for certain, as it is about a drawing.
#[derive(Clone, Debug)]
pub struct Known {
    /// The picture.
    pub photo: Photo,
    /// Its keypoints; found by the detector if not known.
    pub keypoints: Option<Keypoints>,
    /// What it shows, attribute and choice by the judge's names; empty where nobody knows.
    pub shows: BTreeMap<String, String>,
}

impl Known {
    /// A picture about which nothing is known.
    pub fn photo(photo: Photo) -> Known {
        Known { photo, keypoints: None, shows: BTreeMap::new() }
    }
}

/// Longest side of a picture that is kept to be shown, as many people's photos are at once.
const SHOWN: u32 = 1024;

/// Somebody: what was given to condition on, and what is known from other pictures.
pub struct Person {
    /// For people.
    pub name: String,
    /// The given picture, to be shown: at most 1024 pixels wide and high. A saved identity has none.
    pub photo: Option<Photo>,
    /// What the detector and the encoder of the stack read in it.
    pub identity: Identity,
    /// What was noticed.
    pub notes: Vec<String>,
    /// The same as a saved identity, so that it is not read again for every picture.
    pub(crate) file: PathBuf,
    /// The judge's embedding of the given picture.
    pub(crate) reference: Option<Vec<f32>>,
    pub(crate) others: Vec<Vec<f32>>,
    /// What the judge reads in pictures whose content is known.
    pub(crate) drawn: Vec<Drawn>,
}

impl Person {
    /// Reads who somebody is from one picture, and what the judge makes of that and of other pictures of them.
    ///
    /// Others that cannot be read or have no usable face are left out with a note.
    ///
    /// # Errors
    /// No usable face in the given picture.
    pub fn meet(
        name: &str,
        given: &Known,
        others: impl Iterator<Item = faces::Result<Known>>,
        eyes: &Eyes,
    ) -> Result<Person> {
        let index = eyes.which(given)?;
        let (identity, mut notes) = eyes.analyzer.identity_of_photo(&given.photo, index)?;
        let kps = match given.keypoints {
            Some(kps) => kps,
            None => eyes.again(&given.photo.image, placed(name, &identity)?)?,
        };
        let reference = eyes.judge.embed(&given.photo.image, &kps)?;
        let mut person = Person::of(name, identity, others, eyes)?;
        person.drawn.extend(Drawn::read(given, eyes)?);
        notes.append(&mut person.notes);
        Ok(Person { photo: Some(shown(&given.photo)?), notes, reference: Some(reference), ..person })
    }

    /// Somebody of whom a saved identity is given: there is no given picture to be similar to, only others. Those that
    /// cannot be used are left out with a note.
    ///
    /// # Errors
    /// An identity without keypoints.
    pub fn saved(
        name: &str,
        identity: Identity,
        others: impl Iterator<Item = faces::Result<Known>>,
        eyes: &Eyes,
    ) -> Result<Person> {
        placed(name, &identity)?;
        Person::of(name, identity, others, eyes)
    }

    fn of(
        name: &str,
        identity: Identity,
        others: impl Iterator<Item = faces::Result<Known>>,
        eyes: &Eyes,
    ) -> Result<Person> {
        let (mut embedded, mut drawn, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        // One after the other: a folder can hold more photos than memory does.
        for known in others {
            let looked = known.map_err(Error::from).and_then(|known| {
                let embedding = eyes.embed(&known)?;
                Ok((embedding, Drawn::read(&known, eyes)?))
            });
            match looked {
                Ok((embedding, read)) => {
                    embedded.push(embedding);
                    drawn.extend(read);
                }
                Err(error) if error.is_user_fault() => notes.push(format!("{error}; it is left out")),
                Err(error) => return Err(error),
            }
        }
        let taken = std::fs::read_dir(eyes.folder.path()).map_err(Error::Temporary)?.count();
        let file = eyes.folder.path().join(format!("{taken}.safetensors"));
        identity.save(&file)?;
        let name = name.to_owned();
        Ok(Person { name, photo: None, identity, notes, file, reference: None, others: embedded, drawn })
    }

    /// The saved identity.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// How many other pictures are known.
    pub fn others(&self) -> usize {
        self.others.len()
    }

    /// The middle of the other pictures, or the given one where there is no other; `None` where there is none at all.
    pub(crate) fn centre(&self) -> Option<Vec<f32>> {
        if self.others.is_empty() { self.reference.clone() } else { Some(centre(&self.others)) }
    }
}

/// A picture in a size to be shown.
fn shown(photo: &Photo) -> Result<Photo> {
    let (width, height) = photo.image.dimensions();
    let longest = width.max(height);
    if longest <= SHOWN {
        return Ok(photo.clone());
    }
    let scaled = |side: u32| (u64::from(side) * u64::from(SHOWN) / u64::from(longest)).max(1) as u32;
    let image = faces::resize_lanczos_like_pillow(&photo.image, scaled(width), scaled(height))?;
    Ok(Photo { image, name: photo.name.clone(), notices: photo.notices.clone() })
}

/// Where the face of an identity is: pictures are asked for with a face there, and measured there.
fn placed(name: &str, identity: &Identity) -> Result<Keypoints> {
    identity.kps.ok_or_else(|| {
        Error::Refused(format!("{name}: holds no keypoints, so it does not say where the face goes; give a photo"))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_photos_are_kept_small() {
        for (size, kept) in
            [((64, 48), (64, 48)), ((1024, 1024), (1024, 1024)), ((4000, 3000), (1024, 768)), ((9, 9000), (1, 1024))]
        {
            let photo = Photo::from_image("a", faces::RgbImage::new(size.0, size.1));
            assert_eq!(shown(&photo).unwrap().image.dimensions(), kept, "{size:?}");
        }
    }
}
