//! Who is drawn: the identity traits, all derived from one seed.

use crate::color::{Rgb, mix, ramp, rgb};
use crate::rng::Rng;

/// Seeds from here on are kept for tests and measurements; no training set may draw them.
pub const HELD_OUT: u64 = 1_000_001;

/// Whether a seed is kept for tests and measurements.
pub fn is_held_out(seed: u64) -> bool {
    seed >= HELD_OUT
}

macro_rules! traits {
    ($($name:ident = $text:literal),* $(,)?) => {
        /// The identity traits. Each is a number in 0..1; the drawing maps it to a shape, a colour or a choice.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Trait { $($name),* }
        /// Names of the traits, in the order of [`Character::traits`].
        pub const TRAIT_NAMES: &[&str] = &[$($text),*];
        const TRAITS: &[Trait] = &[$(Trait::$name),*];
    };
}

traits! {
    Presentation = "presentation", Age = "age", FaceWidth = "face_width", FaceLength = "face_length",
    JawWidth = "jaw_width", ChinShape = "chin_shape", Cheekbones = "cheekbones", SkinTone = "skin_tone",
    Undertone = "undertone", EyeSize = "eye_size", EyeSpacing = "eye_spacing", EyeTilt = "eye_tilt",
    EyeOpen = "eye_open", EyeColor = "eye_color", BrowThickness = "brow_thickness", BrowArch = "brow_arch",
    BrowHeight = "brow_height", NoseLength = "nose_length", NoseWidth = "nose_width", NoseShape = "nose_shape",
    MouthWidth = "mouth_width", LipFullness = "lip_fullness", LipColor = "lip_color", EarSize = "ear_size",
    HairStyle = "hair_style", HairColor = "hair_color", HairShade = "hair_shade", Hairline = "hairline",
    FacialHair = "facial_hair", Freckles = "freckles", Mole = "mole", Lashes = "lashes",
}

/// Number of identity traits.
pub const TRAIT_COUNT: usize = TRAIT_NAMES.len();

/// Hair styles, told apart inside the narrow crop that face encoders see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum HairStyle {
    Bald,
    Buzz,
    Crop,
    SidePart,
    Quiff,
    Curly,
    Afro,
    Receding,
    SlickBack,
    Mohawk,
    Bob,
    BobFringe,
    LongStraight,
    LongWavy,
    LongCurly,
    Ponytail,
    Bun,
    Braids,
}

/// Facial hair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FacialHair {
    None,
    Stubble,
    Moustache,
    Goatee,
    ShortBeard,
    FullBeard,
}

/// A member of the cast: a seed and the traits that follow from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Character {
    /// The identity seed.
    pub seed: u64,
    /// One number in 0..1 per trait, in the order of [`TRAIT_NAMES`].
    pub traits: [f32; TRAIT_COUNT],
}

impl Character {
    /// The character of a seed.
    ///
    /// Seeds come in families of four. In one family in four the members are look-alikes: they share all traits
    /// but three to six, so that an encoder has to learn the details and not only hair and skin.
    pub fn from_seed(seed: u64) -> Character {
        let family = seed / 4;
        let look_alikes = Rng::stream(family, 1).chance(0.25);
        let mut traits =
            draw_traits(&mut Rng::stream(if look_alikes { family } else { seed }, 2 + u64::from(look_alikes)));
        if look_alikes && !seed.is_multiple_of(4) {
            let mut rng = Rng::stream(seed, 4);
            let fresh = draw_traits(&mut Rng::stream(seed, 5));
            for _ in 0..3 + rng.below(4) {
                // Presentation decides what the others mean, so it is never among the traits redrawn.
                let i = 1 + rng.below(TRAIT_COUNT - 1);
                traits[i] = fresh[i];
            }
        }
        Character { seed, traits }
    }

    /// The value of a trait, in 0..1.
    pub fn get(&self, which: Trait) -> f32 {
        self.traits[which as usize]
    }

    /// The trait mapped linearly to `low..high`.
    pub(crate) fn lerp(&self, which: Trait, low: f32, high: f32) -> f32 {
        low + (high - low) * self.get(which)
    }

    /// Whether the character presents as a man; the rest follow the conventions of drawn women.
    pub fn masculine(&self) -> bool {
        self.get(Trait::Presentation) >= 0.5
    }

    /// The hair style.
    pub fn hair_style(&self) -> HairStyle {
        use HairStyle::*;
        const MEN: &[HairStyle] = &[
            Bald,
            Buzz,
            Crop,
            Crop,
            SidePart,
            SidePart,
            Quiff,
            Quiff,
            Curly,
            Curly,
            Afro,
            Receding,
            SlickBack,
            Mohawk,
            LongStraight,
            LongWavy,
            Bun,
            BobFringe,
        ];
        const WOMEN: &[HairStyle] = &[
            Bob,
            Bob,
            BobFringe,
            BobFringe,
            LongStraight,
            LongStraight,
            LongWavy,
            LongWavy,
            LongCurly,
            LongCurly,
            Ponytail,
            Ponytail,
            Bun,
            Bun,
            Braids,
            Braids,
            Curly,
            Afro,
            Crop,
            SidePart,
        ];
        let table = if self.masculine() { MEN } else { WOMEN };
        table[((self.get(Trait::HairStyle) * table.len() as f32) as usize).min(table.len() - 1)]
    }

    /// The facial hair; women have none.
    pub fn facial_hair(&self) -> FacialHair {
        use FacialHair::*;
        const TABLE: &[FacialHair] = &[None, None, None, Stubble, Moustache, Goatee, ShortBeard, ShortBeard, FullBeard];
        if !self.masculine() {
            return None;
        }
        TABLE[((self.get(Trait::FacialHair) * TABLE.len() as f32) as usize).min(TABLE.len() - 1)]
    }

    /// Skin colour in even light.
    pub fn skin(&self) -> Rgb {
        const TONES: &[Rgb] = &[
            rgb(255, 229, 210),
            rgb(250, 212, 184),
            rgb(238, 188, 150),
            rgb(217, 158, 115),
            rgb(180, 120, 80),
            rgb(136, 86, 57),
            rgb(92, 58, 42),
        ];
        let base = ramp(TONES, self.get(Trait::SkinTone));
        let u = self.get(Trait::Undertone) - 0.5;
        [base[0] + 0.05 * u, base[1] - 0.015 * u.abs(), base[2] - 0.09 * u].map(|v| v.clamp(0.0, 1.0))
    }

    /// Index of the hair colour's word in [`HAIR_COLORS`]; age turns hair grey.
    pub fn hair_color_index(&self) -> usize {
        if self.get(Trait::Age) > 0.86 {
            return HAIR_COLORS.len() - 1;
        }
        ((self.get(Trait::HairColor) * (HAIR_COLORS.len() - 1) as f32) as usize).min(HAIR_COLORS.len() - 2)
    }

    /// Hair colour in even light.
    pub fn hair(&self) -> Rgb {
        let (_, base) = HAIR_COLORS[self.hair_color_index()];
        let shade = self.get(Trait::HairShade) - 0.5;
        let tinted = if shade > 0.0 {
            mix(base, [1.0, 0.96, 0.9], 0.28 * shade)
        } else {
            mix(base, [0.05, 0.03, 0.05], -0.4 * shade)
        };
        let age = self.get(Trait::Age);
        if age > 0.7 && age <= 0.86 { mix(tinted, rgb(170, 168, 166), (age - 0.7) * 2.6) } else { tinted }
    }

    /// Iris colour.
    pub fn iris(&self) -> Rgb {
        const IRIS: &[Rgb] = &[
            rgb(62, 36, 22),
            rgb(104, 62, 30),
            rgb(140, 98, 42),
            rgb(92, 128, 58),
            rgb(70, 150, 130),
            rgb(64, 130, 196),
            rgb(120, 146, 170),
            rgb(108, 84, 150),
        ];
        ramp(IRIS, self.get(Trait::EyeColor))
    }

    /// "man" or "woman".
    pub fn noun(&self) -> &'static str {
        if self.masculine() { "man" } else { "woman" }
    }

    /// A word for the age, where one is called for.
    pub fn age_word(&self) -> Option<&'static str> {
        match self.get(Trait::Age) {
            a if a < 0.22 => Some("young"),
            a if a > 0.8 => Some("old"),
            _ => None,
        }
    }
}

/// Hair colours and their words; the last is what age brings.
pub const HAIR_COLORS: &[(&str, Rgb)] = &[
    ("black", rgb(34, 30, 36)),
    ("dark brown", rgb(66, 42, 30)),
    ("brown", rgb(110, 70, 42)),
    ("auburn", rgb(132, 54, 34)),
    ("red", rgb(196, 84, 36)),
    ("blond", rgb(232, 190, 106)),
    ("light brown", rgb(160, 116, 72)),
    ("platinum", rgb(240, 228, 200)),
    ("pink", rgb(236, 112, 164)),
    ("blue", rgb(56, 100, 196)),
    ("teal", rgb(40, 150, 146)),
    ("purple", rgb(124, 70, 170)),
    ("grey", rgb(186, 186, 190)),
];

fn draw_traits(rng: &mut Rng) -> [f32; TRAIT_COUNT] {
    let mut traits = [0.0; TRAIT_COUNT];
    for (value, &which) in traits.iter_mut().zip(TRAITS) {
        let u = rng.unit();
        *value = match which {
            // Most people are neither very young nor very old.
            Trait::Age => 0.5 + 0.5 * (2.0 * u - 1.0).abs().powf(1.2) * (2.0 * u - 1.0).signum(),
            _ => u,
        };
    }
    traits
}
