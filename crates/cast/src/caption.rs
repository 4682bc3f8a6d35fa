//! Captions in natural words, varied, as people would write them.

use crate::character::{Character, HAIR_COLORS, HairStyle};
use crate::rng::Rng;
use crate::scene::{Background, Clothing, Expression, Glasses, Headwear, Light, Scene, Style};

/// A caption of the scene. Which words are chosen, and which attributes go unsaid, depends on `rng` alone.
pub fn caption(character: &Character, scene: &Scene, rng: &mut Rng) -> String {
    let mut who = String::new();
    if rng.chance(0.25)
        && let Some(age) = character.age_word()
    {
        who.push_str(age);
        who.push(' ');
    }
    who.push_str(if rng.chance(0.4) { "person" } else { character.noun() });
    if rng.chance(0.15) && character.hair_style() != HairStyle::Bald {
        who.push_str(&format!(" with {} hair", HAIR_COLORS[character.hair_color_index()].0));
    }
    let article = if who.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    compose(&format!("{article} {who}"), scene, rng).0
}

/// A prompt that fits anybody, and what it asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The words.
    pub text: String,
    /// Attribute and choice, by the names of [`crate::ATTRIBUTES`]; what a picture cannot show in this style is left out.
    pub asks: Vec<(&'static str, &'static str)>,
}

/// A caption of the scene that says nothing of who is in it.
pub fn prompt(scene: &Scene, rng: &mut Rng) -> Prompt {
    let (text, said) = compose("a person", scene, rng);
    let gray = matches!(scene.style, Style::Noir | Style::Ink);
    let asks = scene.choices().into_iter().filter(|(name, _)| match *name {
        "expression" => said.expression,
        "tint" => !gray,
        "background" => said.background,
        "light" => said.light,
        // Captions always say these where they are there, so silence asks for their absence.
        _ => true,
    });
    Prompt { text, asks: asks.collect() }
}

/// Which of the attributes that may go unsaid were said.
struct Said {
    expression: bool,
    background: bool,
    light: bool,
}

fn compose(who: &str, scene: &Scene, rng: &mut Rng) -> (String, Said) {
    let mut said = Said { expression: false, background: false, light: false };
    let mut parts: Vec<String> = Vec::new();
    if scene.expression != Expression::Neutral || rng.chance(0.3) {
        said.expression = true;
        parts.push(rng.pick(expression_words(scene.expression)).to_string());
    }
    let tint = scene.tint.name();
    let garment = rng.pick(clothing_words(scene.clothing));
    let verb = rng.pick(&["wearing", "in", "dressed in"]);
    let tint_article = if tint == "orange" { "an" } else { "a" };
    parts.push(if garment == "overalls" {
        format!("{verb} {tint} overalls")
    } else {
        format!("{verb} {tint_article} {tint} {garment}")
    });
    let mut extras: Vec<&str> = Vec::new();
    if scene.headwear != Headwear::None {
        extras.push(rng.pick(headwear_words(scene.headwear)));
    }
    if scene.glasses != Glasses::None {
        extras.push(rng.pick(glasses_words(scene.glasses)));
    }
    if !extras.is_empty() {
        let list = extras.join(" and ");
        parts.push(format!("{} {list}", rng.pick(&["with", "wearing"])));
    }
    if rng.chance(0.92) {
        said.background = true;
        parts.push(rng.pick(background_words(scene.background)).to_string());
    }
    if scene.light != Light::Front && rng.chance(0.5) {
        said.light = true;
        parts.push(rng.pick(light_words(scene.light)).to_string());
    }
    if scene.yaw.abs() > 18.0 && rng.chance(0.3) {
        parts.push("looking to the side".to_string());
    }
    let order_swap = rng.chance(0.25) && parts.len() > 2;
    if order_swap {
        let last = parts.len() - 1;
        parts.swap(1, last);
    }
    let body = format!("{who}, {}", parts.join(", "));
    let body = if rng.chance(0.5) { body.replacen(", ", " ", 1) } else { body };
    let words = style_words(scene.style);
    if words.is_empty() || (scene.style == Style::Plain && rng.chance(0.3)) {
        return (body, said);
    }
    let style = rng.pick(words);
    let text = match rng.below(3) {
        0 => format!("{body}, {style}"),
        1 => format!("{style} of {body}"),
        _ => format!("{style}, {body}"),
    };
    (text, said)
}

/// Ways to say a style.
pub fn style_words(style: Style) -> &'static [&'static str] {
    match style {
        Style::Plain => {
            &["illustration", "portrait illustration", "portrait", "digital illustration", "drawing", "photo"]
        }
        Style::Noir => {
            &["film noir", "film noir portrait", "black and white film noir still", "black and white photograph"]
        }
        Style::Watercolor => &["watercolor painting", "watercolour", "soft watercolor", "watercolor portrait"],
        Style::Ink => &["ink sketch", "pen and ink drawing", "black ink sketch", "pencil sketch"],
        Style::Comic => &["comic book panel", "comic book art", "comic style drawing", "cartoon"],
        Style::PopArt => &["pop art", "pop art poster", "pop art print", "warhol style pop art"],
        Style::Pixel => &["pixel art", "8-bit pixel art", "retro pixel art sprite", "pixel art portrait"],
        Style::Oil => &["oil painting", "oil portrait", "classic oil painting", "impressionist oil painting"],
    }
}

fn expression_words(e: Expression) -> &'static [&'static str] {
    match e {
        Expression::Neutral => &["with a neutral expression", "with a calm face", "looking calm", "serious"],
        Expression::Smile => &["smiling", "with a smile", "with a gentle smile", "looking happy"],
        Expression::Laugh => &["laughing", "laughing out loud", "with a big laugh", "grinning with an open mouth"],
        Expression::Sad => &["looking sad", "sad", "with a sad expression", "frowning sadly"],
        Expression::Angry => &["looking angry", "angry", "with an angry expression", "furious"],
        Expression::Surprised => &["looking surprised", "surprised", "with a surprised expression", "astonished"],
    }
}

fn clothing_words(c: Clothing) -> &'static [&'static str] {
    match c {
        Clothing::TShirt => &["t-shirt", "tee", "shirt"],
        Clothing::Hoodie => &["hoodie", "hooded sweatshirt"],
        Clothing::Suit => &["suit", "suit and tie", "jacket and tie"],
        Clothing::Turtleneck => &["turtleneck", "turtleneck sweater", "roll neck sweater"],
        Clothing::Striped => &["striped sweater", "striped shirt", "striped top"],
        Clothing::Dress => &["dress", "v-neck dress", "evening dress"],
        Clothing::Overalls => &["overalls"],
    }
}

fn headwear_words(h: Headwear) -> &'static [&'static str] {
    match h {
        Headwear::None => &[""],
        Headwear::Cap => &["a baseball cap", "a cap"],
        Headwear::Beanie => &["a beanie", "a knitted hat", "a wool hat"],
        Headwear::Crown => &["a crown", "a golden crown"],
        Headwear::PartyHat => &["a party hat", "a pointed party hat"],
        Headwear::StrawHat => &["a straw hat", "a wide straw hat"],
        Headwear::Headphones => &["headphones", "big headphones"],
        Headwear::Flowers => &["a flower crown", "flowers in the hair", "a wreath of flowers"],
    }
}

fn glasses_words(g: Glasses) -> &'static [&'static str] {
    match g {
        Glasses::None => &[""],
        Glasses::Round => &["round glasses", "glasses"],
        Glasses::Square => &["square glasses", "thick square glasses"],
        Glasses::Sun => &["sunglasses", "dark sunglasses"],
    }
}

fn background_words(b: Background) -> &'static [&'static str] {
    match b {
        Background::Studio => &["in front of a plain background", "in a studio", "against a plain wall"],
        Background::Beach => &["on the beach", "at the beach", "by the sea"],
        Background::Forest => &["in a forest", "in the woods", "among green trees"],
        Background::City => &["in a city at night", "in a city street at night", "before a night skyline"],
        Background::Mountains => &["in the mountains", "in front of snowy mountains", "on a mountain trail"],
        Background::Room => &["in a cosy room", "at home with bookshelves", "in a library"],
        Background::Sunset => &["at sunset", "under an orange sunset sky", "in front of a sunset"],
        Background::Space => &["in space", "in outer space among stars", "in front of a galaxy"],
    }
}

fn light_words(l: Light) -> &'static [&'static str] {
    match l {
        Light::Front => &["in even light"],
        Light::Left => &["lit from the left", "with light from the left"],
        Light::Right => &["lit from the right", "with light from the right"],
        Light::Warm => &["in warm light", "in golden light"],
        Light::Cool => &["in cool light", "in cold blue light"],
    }
}
