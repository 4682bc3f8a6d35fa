//! Networks that measure pictures and never steer them: who a face is, by an encoder that no generation is conditioned
//! on, and what a picture shows.
//!
//! A judge is a folder: `identity.onnx` takes an aligned face as ArcFace does; `content.onnx`, if it is there, takes
//! `[1, 3, n, n]` from -1 to 1 and answers with five keypoints as shares of the side, and one row of logits for all
//! attributes of `judge.json`, in the order in which they stand there.

use crate::embed::ArcFace;
use crate::keypoints::Keypoints;
use crate::onnx::{Network, Runner};
use crate::resample::resize_bilinear;
use crate::{Error, Result};
use image::RgbImage;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::path::Path;

/// The judge.
pub struct Judge {
    identity: ArcFace,
    content: Option<Content>,
}

struct Content {
    runner: Runner,
    side: u32,
    attributes: Vec<(String, Vec<String>)>,
}

/// What a picture shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Where the features of the face are, in pixels of the picture.
    pub keypoints: Keypoints,
    /// The likeliest choice of each attribute.
    pub attributes: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct About {
    content: AboutContent,
}

#[derive(Deserialize)]
struct AboutContent {
    size: u32,
    #[serde(deserialize_with = "in_order")]
    attributes: Vec<(String, Vec<String>)>,
}

impl Judge {
    /// Opens a folder.
    ///
    /// # Errors
    /// `identity.onnx` is missing, or a file cannot be used.
    pub fn open(folder: &Path) -> Result<Judge> {
        let identity = ArcFace::load(Network::open(&folder.join("identity.onnx"))?)?;
        let file = folder.join("content.onnx");
        let content = if file.exists() { Some(Content::open(folder, &file)?) } else { None };
        Ok(Judge { identity, content })
    }

    /// Who the face at these keypoints is; compare by [`crate::cosine`].
    ///
    /// # Errors
    /// Keypoints that no face can be aligned by.
    pub fn embed(&self, picture: &RgbImage, kps: &Keypoints) -> Result<Vec<f32>> {
        self.identity.embed(picture, kps)
    }

    /// Whether the judge tells what a picture shows, beside who is in it.
    pub fn reads_content(&self) -> bool {
        self.content.is_some()
    }

    /// What the picture shows; `None` for a judge of identity alone.
    ///
    /// # Errors
    /// The network fails, or its answer does not fit `judge.json`.
    pub fn read(&self, picture: &RgbImage) -> Result<Option<Reading>> {
        self.content.as_ref().map(|content| content.read(picture)).transpose()
    }
}

impl Content {
    fn open(folder: &Path, file: &Path) -> Result<Content> {
        let path = folder.join("judge.json");
        let refuse = |reason: String| Error::Model { name: path.display().to_string(), reason };
        let text = std::fs::read(&path).map_err(|e| refuse(format!("could not be read: {e}")))?;
        let about: About = serde_json::from_slice(&text).map_err(|e| refuse(format!("cannot be used: {e}")))?;
        let AboutContent { size, attributes } = about.content;
        if !(16..=1024).contains(&size) {
            return Err(refuse(format!("has a content size of {size}; it must be between 16 and 1024")));
        }
        if attributes.is_empty() || attributes.iter().any(|(_, choices)| choices.is_empty()) {
            return Err(refuse("names no attributes, or one without choices".into()));
        }
        let runner = Network::open(file)?.load(size as usize, size as usize)?;
        Ok(Content { runner, side: size, attributes })
    }

    fn read(&self, picture: &RgbImage) -> Result<Reading> {
        let (side, plane) = (self.side as usize, (self.side * self.side) as usize);
        let (width, height) = picture.dimensions();
        let resized =
            ((width, height) != (self.side, self.side)).then(|| resize_bilinear(picture, self.side, self.side));
        let mut blob = vec![0.0; 3 * plane];
        for (i, pixel) in resized.as_ref().unwrap_or(picture).pixels().enumerate() {
            for c in 0..3 {
                blob[c * plane + i] = f32::from(pixel.0[c]) / 127.5 - 1.0;
            }
        }
        let refuse = |reason: String| Error::Model { name: self.runner.name().to_owned(), reason };
        let outputs = self.runner.run(blob, side, side)?;
        let wanted: usize = self.attributes.iter().map(|(_, choices)| choices.len()).sum();
        let [points, logits] = &outputs[..] else {
            return Err(refuse(format!("has {} outputs; keypoints and attributes are needed", outputs.len())));
        };
        if points.data.len() != 10 || logits.data.len() != wanted {
            return Err(refuse(format!(
                "answers with {} and {} numbers; ten and the {wanted} of judge.json are needed",
                points.data.len(),
                logits.data.len()
            )));
        }
        let p = &points.data;
        let keypoints = std::array::from_fn(|i| [p[2 * i] * width as f32, p[2 * i + 1] * height as f32]);
        let mut rest = &logits.data[..];
        let mut attributes = BTreeMap::new();
        for (name, choices) in &self.attributes {
            let (mine, others) = rest.split_at(choices.len());
            rest = others;
            let best = (0..mine.len()).max_by(|a, b| mine[*a].total_cmp(&mine[*b])).unwrap_or(0);
            attributes.insert(name.clone(), choices[best].clone());
        }
        Ok(Reading { keypoints, attributes })
    }
}

/// An object's entries in the order in which they are written, which is that of the network's outputs.
fn in_order<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Vec<(String, Vec<String>)>, D::Error> {
    struct Entries;
    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<(String, Vec<String>)>;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("an object of lists of words")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = map.next_entry()? {
                entries.push(entry);
            }
            Ok(entries)
        }
    }
    from.deserialize_map(Entries)
}
