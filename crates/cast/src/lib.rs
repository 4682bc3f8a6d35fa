//! The cast: characters drawn by program, with known identity, pose, scene and caption.
//!
//! Real photographs of people cannot stand in a repository, and nothing certain is known about them. A member
//! of the cast is a seed: about thirty identity traits follow from it, and the same person can be drawn in any
//! pose, light, dress and style. So the project can train a miniature of its whole model stack, and measure
//! whether identity is kept, on subjects of its own.
//!
//! ```
//! use cast::{Character, Rng, Scene, draw};
//! let anna = Character::from_seed(7);
//! let picture = draw(&anna, &Scene::random(&mut Rng::new(1)), 256)?;
//! assert_eq!(picture.rgb.len(), 256 * 256 * 3);
//! # Ok::<(), cast::Error>(())
//! ```

mod album;
mod backdrop;
mod canvas;
mod caption;
mod character;
mod color;
mod draw;
mod effects;
mod features;
mod hair;
mod hair_back;
mod head;
mod rng;
mod scene;
mod wear;

pub use album::{album, prompts};
pub use caption::{Prompt, caption, prompt, style_words};
pub use character::{
    Character, FacialHair, HAIR_COLORS, HELD_OUT, HairStyle, TRAIT_COUNT, TRAIT_NAMES, Trait, is_held_out,
};
pub use draw::{Picture, Truth, draw};
pub use rng::Rng;
pub use scene::{ATTRIBUTES, Background, Clothing, Expression, Glasses, Headwear, Light, Scene, Style, Tint};

/// What can be wrong with a request to draw.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The picture's size is out of range.
    #[error("a picture of {size} pixels cannot be drawn; sizes from 32 to 2048 can")]
    Size {
        /// The size asked for.
        size: usize,
    },
    /// A number of the scene is out of range or not a number.
    #[error("the scene's {what} is {value}; it must lie between {low} and {high}")]
    Scene {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: f32,
        /// The least valid value.
        low: f32,
        /// The greatest valid value.
        high: f32,
    },
}
