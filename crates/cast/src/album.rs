//! The pictures of a person and the prompts that measurements use: the same for everybody who asks.

use crate::caption::{Prompt, prompt};
use crate::rng::Rng;
use crate::scene::{Scene, Style};

/// Scenes of a person's pictures: the first `references` are portraits such as one gives as a reference, the others are
/// any scenes. The first scenes do not depend on `count`.
pub fn album(seed: u64, references: usize, count: usize) -> Vec<Scene> {
    let mut rng = Rng::stream(seed, 99);
    let scene = |i| if i < references { Scene::reference(&mut rng) } else { Scene::random(&mut rng) };
    (0..count).map(scene).collect()
}

/// Prompts for anybody with what they ask for, the styles in turn.
pub fn prompts(seed: u64, count: usize) -> Vec<Prompt> {
    let mut rng = Rng::stream(seed, 7);
    let one = |i: usize| {
        let scene = Scene { style: Style::ALL[(i + 1) % Style::ALL.len()], ..Scene::random(&mut rng) };
        prompt(&scene, &mut rng)
    };
    (0..count).map(one).collect()
}
