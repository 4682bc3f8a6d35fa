//! How similar a finished picture is to the face given, where the built-in judge can tell: on drawn characters, made by
//! the built-in models.

use cast::HELD_OUT;
use compare::{Eyes, Known};
use engine::{Picture, Request};
use faces::{Keypoints, Photo, RgbImage};

use crate::fault::Fault;
use crate::{people, stack};

/// How many drawings the scale is made of.
const SCALE: usize = 4;

/// The judge with a drawing before it, and the seed of who that is.
pub(crate) struct Likeness(Option<(Eyes, Known, u64)>);

impl Likeness {
    /// Reads the first photo of a request; where it is no drawing, or on other models, the judge knows nothing.
    pub(crate) fn open(request: &Request) -> Result<Likeness, Fault> {
        let face = request.faces.first().filter(|face| request.wants_identity() && !faces::Identity::sniff(face));
        let (Some(face), Some(models)) = (face, &request.models.face_models) else { return Ok(Likeness(None)) };
        let drawn = engine::metadata::drawn(face).and_then(|truth| people::of_truth(&truth));
        // Asked last: finding the judge unpacks the built-in models.
        let drawn = drawn.filter(|_| stack::is_built_in(&request.models.base));
        let Some((seed, keypoints)) = drawn else { return Ok(Likeness(None)) };
        let Some(judge) = stack::judge()? else { return Ok(Likeness(None)) };
        let known = Known { keypoints: Some(keypoints), ..Known::photo(Photo::open(face)?) };
        Ok(Likeness(Some((Eyes::open(models, &judge)?, known, seed))))
    }

    /// The judge's cosine between the drawing and a picture, if that shows a face; of several, the one at the keypoints
    /// that were asked for.
    pub(crate) fn of(&self, picture: &Picture, asked: Option<&Keypoints>) -> Result<Option<f64>, Fault> {
        let Some((eyes, known, _)) = &self.0 else { return Ok(None) };
        let image = RgbImage::from_raw(picture.width, picture.height, picture.rgb.clone());
        Ok(image.map(|image| eyes.likeness(known, &image, asked)).transpose()?.flatten())
    }

    /// What such numbers mean: the same cosine for other drawings of the person, and of other people.
    pub(crate) fn scale(&self) -> Result<Option<(f64, f64)>, Fault> {
        let Some((eyes, known, seed)) = &self.0 else { return Ok(None) };
        let given = eyes.embed(known)?;
        let mean = |drawings: Vec<Known>| -> Result<f64, Fault> {
            let count = drawings.len().max(1) as f64;
            let each = drawings.iter().map(|known| Ok(faces::cosine(&given, &eyes.embed(known)?)));
            Ok(each.sum::<Result<f64, Fault>>()? / count)
        };
        let others = (0..).map(|i| HELD_OUT + 4 * i).filter(|other| other != seed).take(SCALE);
        let others: Vec<Known> =
            others.map(|other| people::drawings(other, 1)).collect::<Result<Vec<_>, _>>()?.concat();
        Ok(Some((mean(people::drawings(*seed, SCALE)?)?, mean(others)?)))
    }
}
