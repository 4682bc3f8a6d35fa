//! `sameface faces`: the faces in photos, as text, JSON, a drawing or a saved identity.

use std::path::Path;

use faces::{Analysis, Face, FaceAnalyzer, Identity, Photo, RgbImage};
use serde_json::{Value, json};

use crate::cli::FacesArgs;
use crate::fault::Fault;
use crate::people::Drawn;
use crate::{models, output, stack, threads};

pub(crate) fn run(args: &FacesArgs) -> Result<(), Fault> {
    let several = args.photos.len() > 1;
    for (option, value) in [("--draw", &args.draw), ("--draw-keypoints", &args.draw_keypoints)] {
        if several && let Some(path) = value {
            let (path, count) = (path.display(), args.photos.len());
            return Err(Fault::Given(format!("{option} `{path}` is for one photo, and {count} are given")));
        }
    }
    // Asked before the work is done, as everything that can be.
    check_places(args)?;
    threads::limit(args.threads)?;
    let (folder, built_in) = stack::face_models(&models::config()?, args.face_models.as_deref())?;
    let analyzer = FaceAnalyzer::open(&folder)?;
    if built_in
        && args.photos.iter().any(|photo| faces::readable(photo).is_ok() && engine::metadata::drawn(photo).is_none())
    {
        output::say(
            "note: the built-in face models know drawn characters only; `sameface models pull antelopev2` brings those for photographs",
        );
    }

    let mut drawn = Drawn::new();
    let files = args.photos.iter().map(|photo| drawn.file(photo)).collect::<Result<Vec<_>, _>>()?;
    let photos = args.photos.iter().zip(&files);
    let looks: Vec<Look> = photos.map(|(path, file)| look(&analyzer, args, path, file, &drawn)).collect();
    write_files(&analyzer, args, &looks)?;
    print(args, &looks)?;
    match looks.iter().any(|look| look.outcome.is_err()) {
        true => Err(Fault::Said),
        false => Ok(()),
    }
}

/// Refuses names that cannot be written or hold something already.
fn check_places(args: &FacesArgs) -> Result<(), Fault> {
    let named = [("--draw", &args.draw), ("--draw-keypoints", &args.draw_keypoints), ("--save", &args.save)];
    let named: Vec<(&str, &Path)> =
        named.into_iter().filter_map(|(option, path)| Some((option, path.as_deref()?))).collect();
    for (i, (option, path)) in named.iter().enumerate() {
        let refuse = |why: &str| Err(Fault::Given(format!("{option} `{}` {why}", path.display())));
        engine::Target::check_file(path)?;
        let there = path.symlink_metadata().is_ok();
        if there && !path.is_file() {
            return refuse("is not a regular file; name a new one");
        }
        // Through links and dots too: what is drawn on must not be lost, --force or not.
        let same = |photo: &Path| there && photo.canonicalize().ok() == path.canonicalize().ok();
        if args.photos.iter().any(|photo| same(photo)) {
            return refuse("is the photo itself; name a new file");
        }
        if there && !args.force {
            return refuse("exists already; name a new file, or add --force to replace it");
        }
        if *option != "--save" && !path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png")) {
            return refuse("has another ending; pictures are written as .png");
        }
        if let Some((other, _)) = named[..i].iter().find(|(_, other)| other == path) {
            return refuse(&format!("is what {other} names too; give each its own file"));
        }
    }
    Ok(())
}

/// What came of one photo.
struct Look<'a> {
    path: &'a Path,
    /// The picture itself only where it is drawn on: many photos need not fit into memory together.
    outcome: Result<(Option<RgbImage>, Analysis), String>,
}

/// Looks at one photo. What is wrong with it is said at once, and the others go on.
fn look<'a>(analyzer: &FaceAnalyzer, args: &FacesArgs, path: &'a Path, file: &Path, drawn: &Drawn) -> Look<'a> {
    let outcome = Photo::open(file).and_then(|photo| {
        let analysis = analyzer.analyze(&photo)?;
        for notice in photo.notices.iter().chain(&analysis.notices) {
            output::say(&format!("{}: {notice}", path.display()));
        }
        // A list takes whatever was found; who asks for one face gets a usable one or a sentence.
        let image = args.draw.is_some().then_some(photo.image);
        let one = args.face_index.is_some() || args.save.is_some() || args.draw_keypoints.is_some();
        if !one && !analysis.faces.is_empty() {
            return Ok((image, analysis));
        }
        let (face, told) = analysis.choose(args.face_index)?;
        let warning = face.warning().map(|warning| format!("{}: {warning}", path.display()));
        told.iter().chain(&warning).for_each(|notice| output::say(&drawn.in_words(notice)));
        let faces = match args.face_index {
            Some(_) => vec![face.clone()],
            None => analysis.faces.clone(),
        };
        Ok((image, Analysis { faces, ..analysis }))
    });
    let outcome = outcome.map_err(|error| drawn.in_words(&error.to_string()));
    if let Err(error) = &outcome {
        output::say(&format!("sameface: {error}"));
    }
    Look { path, outcome }
}

fn write_files(analyzer: &FaceAnalyzer, args: &FacesArgs, looks: &[Look]) -> Result<(), Fault> {
    let usable: Vec<&(Option<RgbImage>, Analysis)> =
        looks.iter().filter_map(|look| look.outcome.as_ref().ok()).collect();
    let Some((image, analysis)) = usable.first() else { return Ok(()) };
    if let (Some(path), Some(image)) = (&args.draw, image) {
        faces::save_png(path, &faces::draw_faces(image, &analysis.faces))?;
    }
    if let Some(path) = &args.draw_keypoints {
        let (width, height) = analysis.size;
        faces::save_png(path, &faces::draw_keypoints(width, height, &analysis.faces[0].kps)?)?;
    }
    if let Some(path) = &args.save {
        let read = usable.iter().map(|(_, analysis)| {
            let identity = Identity::of_face(&analysis.faces[0], analysis, analyzer.recogniser_hash());
            (analysis.name.clone(), Ok((identity, Vec::new())))
        });
        let averaged = faces::average(read.collect())?;
        for report in &averaged.reports {
            if let Some(why) = &report.skipped {
                output::say(&format!("{}: left out of the identity: {why}", report.name));
            }
        }
        averaged.identity.save(path)?;
        let used = averaged.reports.iter().filter(|report| report.skipped.is_none()).count();
        output::say(&format!("the identity of {used} photo{} is in {}", plural(used), path.display()));
    }
    Ok(())
}

fn print(args: &FacesArgs, looks: &[Look]) -> Result<(), Fault> {
    if args.json {
        let mut values: Vec<Value> = looks.iter().map(value).collect();
        return match values.len() {
            1 => output::json(&values.remove(0)),
            _ => output::json(&Value::Array(values)),
        };
    }
    for look in looks {
        let Ok((_, analysis)) = &look.outcome else { continue };
        let (count, (width, height)) = (analysis.faces.len(), analysis.size);
        output::line(&format!("{}: {width}x{height}, {count} face{}", look.path.display(), plural(count)))?;
        for (index, face) in analysis.faces.iter().enumerate() {
            let [x1, y1, x2, y2] = face.bbox;
            let number = args.face_index.unwrap_or(index);
            output::line(&format!(
                "  {number}: ({x1:.0}, {y1:.0}) to ({x2:.0}, {y2:.0}), certainty {:.2}",
                face.det_score
            ))?;
        }
    }
    Ok(())
}

fn value(look: &Look) -> Value {
    let photo = look.path.display().to_string();
    match &look.outcome {
        Ok((_, analysis)) => {
            let (width, height) = analysis.size;
            let faces: Vec<Value> = analysis.faces.iter().map(face).collect();
            json!({"photo": photo, "size": [width, height], "faces": faces})
        }
        Err(error) => json!({"photo": photo, "faces": [], "error": error}),
    }
}

fn face(face: &Face) -> Value {
    let kps: Vec<Value> = face.kps.iter().map(|point| numbers(point)).collect();
    json!({
        "bbox": numbers(&face.bbox), "det_score": number(face.det_score), "kps": kps,
        "embedding": numbers(&face.embedding),
    })
}

fn numbers(values: &[f32]) -> Value {
    values.iter().map(|value| number(*value)).collect()
}

/// The shortest decimals that read back as the same f32; as an f64 it would have twice as many.
fn number(value: f32) -> Value {
    value.to_string().parse::<f64>().unwrap_or(f64::from(value)).into()
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
