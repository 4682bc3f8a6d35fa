//! What a caller hears while it waits, and how it stops the work: one callback.

use std::ops::ControlFlow;

/// A part of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Looking at photos.
    Faces,
    /// Encoding prompts.
    Text,
    /// Reading the denoising networks.
    Load,
    /// Denoising.
    Denoise,
    /// From latents to pictures.
    Decode,
}

impl Stage {
    /// In a word or two, for people.
    pub fn label(self) -> &'static str {
        match self {
            Stage::Faces => "looking at the face",
            Stage::Text => "reading the prompt",
            Stage::Load => "loading the models",
            Stage::Denoise => "denoising",
            Stage::Decode => "decoding",
        }
    }

    /// As a key of the timings.
    pub fn key(self) -> &'static str {
        match self {
            Stage::Faces => "faces_ms",
            Stage::Text => "text_ms",
            Stage::Load => "load_ms",
            Stage::Denoise => "denoise_ms",
            Stage::Decode => "decode_ms",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A stage begins.
    Begin(Stage),
    /// Something the user may want to know, as a sentence.
    Note(String),
    /// A denoising step is done.
    Step {
        /// Which picture, from 0; of several that share the step, the first.
        image: usize,
        /// How many share it.
        together: usize,
        /// Of how many.
        images: usize,
        /// Steps done.
        step: usize,
        /// Of how many.
        steps: usize,
    },
}

/// The callback: hears an event and says whether to go on.
pub type Observer<'a> = dyn FnMut(Event) -> ControlFlow<()> + 'a;
