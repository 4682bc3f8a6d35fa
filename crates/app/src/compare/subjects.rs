//! Who and what is compared: faces, their other pictures, the crowd around them, prompts.

use std::path::PathBuf;

use cast::HELD_OUT;
use compare::{Eyes, Gallery, Known, Person, Prompt};
use faces::Photo;

use crate::cli::CompareArgs;
use crate::fault::Fault;
use crate::output;
use crate::people::{self, Drawn};

/// People at hand where nothing is said.
const AMONG: usize = 40;
/// Other drawings of each character: all the rest of its album.
const OTHERS: usize = people::ALBUM - 1;
/// More than are worth drawing for a measure.
const MOST: usize = 10_000;

/// A face that was asked for.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    /// Of a drawn character.
    pub(crate) seed: Option<u64>,
    pub(crate) others: Vec<PathBuf>,
}

/// The i-th character that no training has seen, each of a family of its own, so that no two are look-alikes by birth.
fn unseen(i: usize) -> u64 {
    HELD_OUT + 4 * i as u64
}

/// The faces that were asked for.
pub(crate) fn said(args: &CompareArgs, drawn: &mut Drawn) -> Result<Vec<Subject>, Fault> {
    let count = args.cast_faces.unwrap_or(0);
    for (option, number) in [("--cast-faces", count), ("--among", args.among.unwrap_or(0))] {
        if number > MOST {
            return Err(Fault::Given(format!("{option} is {number}; at most {MOST} people can be drawn")));
        }
    }
    let unseen = (0..count).map(|i| PathBuf::from(format!("cast:{}", unseen(i))));
    let mut subjects = Vec::new();
    for face in args.face.iter().cloned().chain(unseen) {
        let seed = people::seed(&face)?;
        let name = match seed {
            Some(_) => face.display().to_string(),
            None => face.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        subjects.push(Subject { name, file: drawn.file(&face)?, seed, others: Vec::new() });
    }
    if subjects.is_empty() {
        return Err(Fault::Given(
            "there is nobody to compare; add --face PHOTO, --face cast:SEED or --cast-faces N".into(),
        ));
    }
    if let Some(file) = subjects.iter().find(|subject| faces::Identity::sniff(&subject.file)) {
        return Err(Fault::Given(format!(
            "--face {}: a saved identity has no picture that could be compared; give a photo",
            file.file.display()
        )));
    }
    match (&mut subjects[..], args.other.is_empty()) {
        (_, true) => {}
        ([one], false) => one.others = args.other.iter().map(|other| drawn.file(other)).collect::<Result<_, _>>()?,
        (several, false) => {
            return Err(Fault::Given(format!(
                "--other belongs to one --face, and {} are given; compare them one by one",
                several.len()
            )));
        }
    }
    Ok(subjects)
}

/// The prompts that were asked for; only drawn ones say what they ask for.
pub(crate) fn prompts(args: &CompareArgs) -> Result<Vec<Prompt>, Fault> {
    let count = args.cast_prompts.unwrap_or(0);
    if count > MOST {
        return Err(Fault::Given(format!("--cast-prompts is {count}; it must be at most {MOST}")));
    }
    let free = args.prompt.iter().map(|text| Prompt { text: text.clone(), asks: Default::default() });
    let known = cast::prompts(HELD_OUT, count).into_iter().map(|prompt| Prompt {
        text: prompt.text,
        asks: prompt.asks.into_iter().map(|(name, choice)| (name.to_string(), choice.to_string())).collect(),
    });
    let prompts: Vec<Prompt> = free.chain(known).collect();
    match prompts.is_empty() {
        true => Err(Fault::Given("there is nothing to show; add --prompt TEXT or --cast-prompts N".into())),
        false => Ok(prompts),
    }
}

/// Reads a face and the person's other pictures. What is `built_in`, models or judge, knows no photographs.
pub(crate) fn meet(subject: &Subject, drawn: &Drawn, eyes: &Eyes, built_in: bool) -> Result<Person, Fault> {
    let mut others = match subject.seed {
        Some(seed) => people::drawings(seed, OTHERS)?,
        None => Vec::new(),
    };
    for other in &subject.others {
        others.push(Known { photo: Photo::open(other)?, keypoints: None });
    }
    let photo = Photo::open(&subject.file)?;
    if built_in && subject.seed.is_none() && engine::metadata::drawn(&subject.file).is_none() {
        output::say(&format!(
            "note: {}: the built-in models and their judge know drawn characters only; for photographs, `sameface models pull instantid` brings models, and --judge names another encoder",
            drawn.in_words(&photo.name)
        ));
    }
    Ok(Person::meet(&subject.name, photo, None, &others, eyes)?)
}

/// People who are not compared, among whom the judge must find those who are.
pub(crate) fn crowd(args: &CompareArgs, subjects: &[Subject], eyes: &Eyes) -> Result<Gallery, Fault> {
    let all_drawn = subjects.iter().all(|subject| subject.seed.is_some());
    let among = args.among.unwrap_or(if all_drawn { AMONG } else { 0 });
    let mut gallery = Gallery::default();
    let strangers = (0..).map(unseen).filter(|seed| subjects.iter().all(|subject| subject.seed != Some(*seed)));
    let wanted: Vec<u64> = strangers.take(among.saturating_sub(subjects.len())).collect();
    let bar = output::bar(wanted.len() as u64, false);
    bar.set_message("drawing people to be told apart");
    for seed in wanted {
        gallery.add(&people::drawings(seed, OTHERS)?, eyes)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(gallery)
}

/// Somebody else for one person alone: a character, where the stack can read one.
pub(crate) fn stranger(subjects: &[Subject], drawn: &mut Drawn, eyes: &Eyes) -> Option<Person> {
    let seed = (AMONG..).map(unseen).find(|seed| subjects.iter().all(|subject| subject.seed != Some(*seed)))?;
    let name = format!("cast:{seed}");
    let file = drawn.file(name.as_ref()).ok()?;
    Person::meet(&name, Photo::open(&file).ok()?, None, &[], eyes).ok()
}
