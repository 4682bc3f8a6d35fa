//! Who and what is compared: faces, their other pictures, the crowd around them, prompts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cast::HELD_OUT;
use compare::{Comparison, Eyes, Gallery, Known, Person, Prompt};
use engine::Request;
use faces::{Identity, Photo};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::JudgeFiles;
use crate::cli::CompareArgs;
use crate::fault::Fault;
use crate::people::{self, Drawn};
use crate::{output, stack};

/// People at hand where nothing is said.
const AMONG: usize = 40;
/// Other drawings of each character: all the rest of its album.
const OTHERS: usize = people::ALBUM - 1;
/// More than are worth drawing for a measure.
const MOST: usize = 10_000;
/// A face that was asked for.
pub(crate) struct Subject {
    pub(crate) name: String,
    /// A photo or a saved identity.
    pub(crate) given: PathBuf,
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
        subjects.push(subject(&face, drawn)?);
    }
    if subjects.is_empty() {
        return Err(Fault::Given(
            "there is nobody to compare; add --face PHOTO, --face cast:SEED or --cast-faces N".into(),
        ));
    }
    match (&mut subjects[..], args.other.is_empty()) {
        (_, true) => distinct(&subjects)?,
        ([one], false) => {
            for other in &args.other {
                one.others.push(drawn.file(other)?);
            }
        }
        (several, false) => {
            return Err(Fault::Given(format!(
                "--other belongs to one --face, and {} are given; give each person a folder of pictures: --face FOLDER",
                several.len()
            )));
        }
    }
    Ok(subjects)
}

/// Refuses somebody who is there twice: the control with another person's identity would be the person.
fn distinct(subjects: &[Subject]) -> Result<(), Fault> {
    // Drawings lie in files of their own, however often they are asked for.
    let same = |a: &Subject, b: &Subject| match (a.seed, b.seed) {
        (None, None) => {
            a.given.canonicalize().is_ok_and(|path| b.given.canonicalize().is_ok_and(|other| path == other))
        }
        (a, b) => a == b,
    };
    for (i, subject) in subjects.iter().enumerate() {
        if subjects[..i].iter().any(|before| same(before, subject)) {
            return Err(Fault::Given(format!("{} is given twice; each person is compared once", subject.name)));
        }
    }
    Ok(())
}

/// A photo, a saved identity, a drawn character, or a folder with pictures of one person.
fn subject(face: &Path, drawn: &mut Drawn) -> Result<Subject, Fault> {
    let name = face.file_name().unwrap_or(face.as_os_str()).to_string_lossy().into_owned();
    if !face.is_dir() {
        let seed = people::seed(face)?;
        let name = if seed.is_some() { face.display().to_string() } else { name };
        return Ok(Subject { name, given: drawn.file(face)?, seed, others: Vec::new() });
    }
    let mut others = people::pictures_of(face)?;
    let given = others.remove(0);
    Ok(Subject { name, given, seed: None, others })
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

/// Reads a face and the person's other pictures, of which unusable ones are left out with a note. What is `built_in`, models or judge, knows no photographs.
pub(crate) fn meet(subject: &Subject, drawn: &Drawn, eyes: &Eyes, built_in: bool) -> Result<Person, Fault> {
    let drawings = match subject.seed {
        Some(seed) => people::drawings(seed, OTHERS)?,
        None => Vec::new(),
    };
    let photos = subject.others.iter().map(|other| Ok(Known::photo(Photo::open(other)?)));
    let others = drawings.into_iter().map(Ok).chain(photos);
    if Identity::sniff(&subject.given) {
        return Ok(Person::saved(&subject.name, Identity::open(&subject.given)?, others, eyes)?);
    }
    let given = match subject.seed {
        Some(seed) => people::portrait(seed)?,
        None => Known::photo(Photo::open(&subject.given)?),
    };
    if built_in && subject.seed.is_none() && engine::metadata::drawn(&subject.given).is_none() {
        output::say(&format!(
            "note: {}: the built-in models and their judge know drawn characters only; for photographs, `sameface models pull instantid` brings models, and --judge names another encoder",
            drawn.in_words(&given.photo.name)
        ));
    }
    Ok(Person::meet(&subject.name, &given, others, eyes)?)
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
    drawn.file(name.as_ref()).ok()?;
    Person::meet(&name, &people::portrait(seed).ok()?, std::iter::empty(), eyes).ok()
}

/// Sentences on what cannot be measured, and what would change that.
pub(crate) fn lacking(comparison: &Comparison, crowd: &Gallery, eyes: &Eyes) -> Vec<String> {
    let people = &comparison.people;
    let names = |of: &dyn Fn(&&Person) -> bool| {
        let names: Vec<&str> = people.iter().filter(of).map(|person| person.name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let alone = names(&|person| person.others() == 0).map(|names| {
        format!(
            "{names}: no other picture of the person is known, so SimGT and copy-paste are not measured; --other PHOTO, or --face FOLDER with several pictures, gives some"
        )
    });
    let saved = names(&|person| person.photo.is_none())
        .map(|names| format!("{names}: a saved identity has no picture, so SimRef is not measured"));
    let single = (people.len() == 1 && crowd.is_empty())
        .then(|| "there is one person alone, so top-1 is not measured; --among N adds drawn people".to_string());
    let free = comparison.prompts.iter().filter(|prompt| prompt.asks.is_empty()).count();
    let text = match (eyes.reads_content(), free) {
        (false, _) => Some("the judge has no content.onnx, so text and keypoints are not measured".to_string()),
        (true, 0) => None,
        (true, _) => Some(
            "what a --prompt in free words asks for is not known, so text agreement is measured for --cast-prompts only"
                .to_string(),
        ),
    };
    [alone, saved, single, text].into_iter().flatten().collect()
}

/// What is compared, as it has to be the same where pictures of several runs are put together. Methods and weights do
/// not belong to it: each picture stands for itself, and more can be added.
pub(crate) fn asked(
    args: &CompareArgs,
    subjects: &[Subject],
    prompts: &[Prompt],
    request: &Request,
    judge: &JudgeFiles,
) -> Result<Value, Fault> {
    let faces = subjects.iter().map(|subject| {
        let others = subject.others.iter().map(|other| digest(other)).collect::<Result<Vec<_>, _>>()?;
        Ok(json!({"name": subject.name, "sha256": digest(&subject.given)?, "others": others}))
    });
    let judge: BTreeMap<&str, String> = ["identity.onnx", "content.onnx", "judge.json"]
        .into_iter()
        .filter(|name| judge.folder.join(name).is_file())
        .map(|name| Ok((name, digest(&judge.folder.join(name))?)))
        .collect::<Result<_, Fault>>()?;
    let models = &request.models;
    let models = [&models.ip_adapter, &models.identitynet, &models.face_models].map(|path| path.as_deref());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "faces": faces.collect::<Result<Vec<_>, Fault>>()?,
        "prompts": prompts.iter().map(|prompt| json!({"prompt": prompt.text, "asks": prompt.asks})).collect::<Vec<_>>(),
        "per_face": args.per_face,
        "among": args.among,
        "seed": request.seed,
        "negative": request.negative,
        "size": request.size,
        "steps": request.steps,
        "guidance": request.guidance,
        "sampler": request.sampler,
        "identitynet_scale": request.identitynet_scale,
        "ip_adapter_scale": request.ip_adapter_scale,
        "model": name(&request.models.base),
        "other_models": models.map(|path| path.and_then(name)),
        "judge": judge,
    }))
}

fn digest(file: &Path) -> Result<String, Fault> {
    let bytes = std::fs::read(file).map_err(|e| Fault::Given(format!("{} could not be read: {e}", file.display())))?;
    Ok(stack::hex(&Sha256::digest(bytes)))
}
