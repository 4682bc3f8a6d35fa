//! Everything about a picture that is not who is in it.

use crate::color::{Rgb, rgb};
use crate::rng::Rng;

macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($item:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs)]
        pub enum $name { $($item),* }
        impl $name {
            /// All choices, in the order of their numbers.
            pub const ALL: &'static [$name] = &[$($name::$item),*];
            /// The word used in files and on the command line.
            pub fn name(self) -> &'static str { match self { $($name::$item => $text),* } }
            /// The choice of a word.
            pub fn from_name(name: &str) -> Option<$name> { Self::ALL.iter().copied().find(|c| c.name() == name) }
        }
    };
}

choices! {
    /// How the picture is made.
    Style { Plain = "plain", Noir = "noir", Watercolor = "watercolor", Ink = "ink", Comic = "comic", PopArt = "pop-art", Pixel = "pixel", Oil = "oil" }
}
choices! {
    /// The look on the face.
    Expression { Neutral = "neutral", Smile = "smile", Laugh = "laugh", Sad = "sad", Angry = "angry", Surprised = "surprised" }
}
choices! {
    /// What is worn on the body.
    Clothing { TShirt = "t-shirt", Hoodie = "hoodie", Suit = "suit", Turtleneck = "turtleneck", Striped = "striped", Dress = "dress", Overalls = "overalls" }
}
choices! {
    /// The colour of the clothing.
    Tint { Red = "red", Orange = "orange", Yellow = "yellow", Green = "green", Blue = "blue", Purple = "purple", Black = "black", White = "white" }
}
choices! {
    /// What is worn on the head.
    Headwear { None = "none", Cap = "cap", Beanie = "beanie", Crown = "crown", PartyHat = "party-hat", StrawHat = "straw-hat", Headphones = "headphones", Flowers = "flowers" }
}
choices! {
    /// Glasses.
    Glasses { None = "none", Round = "round", Square = "square", Sun = "sunglasses" }
}
choices! {
    /// What is behind.
    Background { Studio = "studio", Beach = "beach", Forest = "forest", City = "city", Mountains = "mountains", Room = "room", Sunset = "sunset", Space = "space" }
}
choices! {
    /// Where the light comes from.
    Light { Front = "front", Left = "left", Right = "right", Warm = "warm", Cool = "cool" }
}

impl Tint {
    /// The cloth's colour in even light.
    pub fn rgb(self) -> Rgb {
        match self {
            Tint::Red => rgb(204, 52, 54),
            Tint::Orange => rgb(238, 130, 44),
            Tint::Yellow => rgb(246, 206, 70),
            Tint::Green => rgb(64, 148, 84),
            Tint::Blue => rgb(58, 104, 190),
            Tint::Purple => rgb(130, 76, 166),
            Tint::Black => rgb(46, 46, 54),
            Tint::White => rgb(240, 238, 232),
        }
    }
}

/// Names of the choices, in the order of [`Scene::attributes`].
pub const ATTRIBUTES: [&str; 8] =
    ["style", "expression", "clothing", "tint", "headwear", "glasses", "background", "light"];

/// A scene: pose, place, clothes, light and style. Angles in degrees; positive yaw turns the face to the
/// picture's right, positive pitch lifts it, positive roll tilts it clockwise.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Scene {
    pub style: Style,
    pub expression: Expression,
    pub clothing: Clothing,
    pub tint: Tint,
    pub headwear: Headwear,
    pub glasses: Glasses,
    pub background: Background,
    pub light: Light,
    pub yaw: f32,
    pub pitch: f32,
    pub roll: f32,
    /// Distance between the eyes of an average face, as a share of the picture's width (0.11 to 0.24 is usual).
    pub size: f32,
    /// Where the middle of the face lies, as shares of the picture's width and height.
    pub center: [f32; 2],
    /// Decides what has no name: shape of clouds, windows, grain.
    pub detail: u64,
}

impl Scene {
    /// A calm portrait: plain style, no headwear, looking at the viewer.
    pub fn portrait() -> Scene {
        Scene {
            style: Style::Plain,
            expression: Expression::Neutral,
            clothing: Clothing::TShirt,
            tint: Tint::Blue,
            headwear: Headwear::None,
            glasses: Glasses::None,
            background: Background::Studio,
            light: Light::Front,
            yaw: 0.0,
            pitch: 0.0,
            roll: 0.0,
            size: 0.18,
            center: [0.5, 0.46],
            detail: 0,
        }
    }

    /// Any scene.
    pub fn random(rng: &mut Rng) -> Scene {
        let style = if rng.chance(0.3) { Style::Plain } else { rng.pick(Style::ALL) };
        let size = 0.115 + 0.09 * rng.unit().sqrt() + 0.02 * rng.unit();
        let free = (0.20 - size).max(0.0);
        Scene {
            style,
            expression: if rng.chance(0.2) { Expression::Neutral } else { rng.pick(Expression::ALL) },
            clothing: rng.pick(Clothing::ALL),
            tint: rng.pick(Tint::ALL),
            headwear: if rng.chance(0.55) { Headwear::None } else { rng.pick(&Headwear::ALL[1..]) },
            glasses: if rng.chance(0.75) { Glasses::None } else { rng.pick(&Glasses::ALL[1..]) },
            background: rng.pick(Background::ALL),
            light: rng.pick(Light::ALL),
            yaw: 34.0 * rng.bell() + 6.0 * rng.bell(),
            pitch: 16.0 * rng.bell(),
            roll: 16.0 * rng.bell(),
            size,
            center: [0.5 + (0.10 + 1.2 * free) * rng.bell(), 0.46 + (0.05 + 0.6 * free) * rng.bell()],
            detail: rng.next(),
        }
    }

    /// A portrait such as one gives as a reference: plain style, mild pose, nothing that hides the face.
    pub fn reference(rng: &mut Rng) -> Scene {
        let any = Scene::random(rng);
        Scene {
            style: Style::Plain,
            expression: rng.pick(&[Expression::Neutral, Expression::Smile]),
            headwear: Headwear::None,
            glasses: Glasses::None,
            yaw: 14.0 * rng.bell(),
            pitch: 8.0 * rng.bell(),
            roll: 6.0 * rng.bell(),
            size: rng.range(0.16, 0.19),
            center: [0.5 + 0.05 * rng.bell(), 0.47 + 0.03 * rng.bell()],
            ..any
        }
    }

    /// The choices as words, with the names of their attributes.
    pub fn choices(&self) -> [(&'static str, &'static str); 8] {
        let words = [
            self.style.name(),
            self.expression.name(),
            self.clothing.name(),
            self.tint.name(),
            self.headwear.name(),
            self.glasses.name(),
            self.background.name(),
            self.light.name(),
        ];
        std::array::from_fn(|i| (ATTRIBUTES[i], words[i]))
    }

    /// The choices as numbers, in the order style, expression, clothing, tint, headwear, glasses, background, light.
    pub fn attributes(&self) -> [u8; 8] {
        [
            self.style as u8,
            self.expression as u8,
            self.clothing as u8,
            self.tint as u8,
            self.headwear as u8,
            self.glasses as u8,
            self.background as u8,
            self.light as u8,
        ]
    }
}
