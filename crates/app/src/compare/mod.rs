//! `sameface compare`: the same faces and prompts through several methods, as pictures, a grid, a page and a table.

mod grid;
mod page;
mod subjects;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use compare::{Cell, Comparison, Eyes, Measures, Run};
use engine::{Event, Request};
use hub::Role;
use serde_json::{Value, json};

use crate::cli::CompareArgs;
use crate::fault::Fault;
use crate::people::Drawn;
use crate::stack::{self, Given};
use crate::{generate, memory, models, output, threads};
use grid::Grid;

pub(crate) fn run(args: &CompareArgs) -> Result<(), Fault> {
    threads::limit(args.threads)?;
    let mut drawn = Drawn::new();
    work(args, &mut drawn).map_err(|fault| fault.reworded(|sentence| drawn.in_words(sentence)))
}

fn work(args: &CompareArgs, drawn: &mut Drawn) -> Result<(), Fault> {
    let mut columns = compare::columns(&args.methods, &args.scales)?;
    let subjects = subjects::said(args, drawn)?;
    let mut request = request(args)?;
    request.faces = subjects.iter().map(|subject| subject.file.clone()).collect();
    request.check()?;
    check_folder(&args.output)?;
    let prompts = subjects::prompts(args)?;
    request.models = model_paths(args)?;
    let judge = match &args.judge {
        Some(judge) => judge.clone(),
        None => stack::judge()?.ok_or_else(|| {
            Fault::Given("this program was built without the built-in judge; name one with --judge FOLDER".to_string())
        })?,
    };
    let eyes = Eyes::open(request.models.face_models.as_deref().unwrap_or(Path::new("")), &judge)?;
    let built_in = args.judge.is_none() || stack::is_built_in(&request.models.base);
    let people = subjects.iter().map(|subject| subjects::meet(subject, drawn, &eyes, built_in));
    let people = people.collect::<Result<Vec<_>, _>>()?;
    let crowd = subjects::crowd(args, &subjects, &eyes)?;
    let stranger = if people.len() == 1 { subjects::stranger(&subjects, drawn, &eyes) } else { None };
    if people.len() == 1 && stranger.is_none() {
        output::say("note: the control with another person's embedding is left out, as it needs a second --face");
        columns.retain(|column| column.method.name != "stranger");
    }
    for note in people.iter().flat_map(|person| &person.notes) {
        output::say(&format!("note: {}", drawn.in_words(note)));
    }
    let comparison = Comparison { people, stranger, prompts, per_face: args.per_face, columns, request };
    let run = Run::new(&comparison, crowd, &eyes)?;
    make(args, &comparison, run)
}

fn request(args: &CompareArgs) -> Result<Request, Fault> {
    if args.per_face == Some(0) {
        return Err(Fault::Given("--per-face is 0; each face needs at least one prompt".into()));
    }
    let mut request = Request::new("", engine::ModelPaths::default());
    request.negative = args.negative.clone();
    request.size = args.size.map(|size| (size.width, size.height));
    request.steps = args.steps;
    request.guidance = args.guidance;
    request.sampler = args.sampler.clone();
    request.seed = Some(args.seed.unwrap_or(1));
    request.device = generate::device(args.device);
    request.precision = generate::precision(args.precision);
    request.memory = memory::available();
    // Without it, every picture would read all model files once more for its record.
    request.digest_cache = Some(models::cache().join("digests.json"));
    Ok(request)
}

fn model_paths(args: &CompareArgs) -> Result<engine::ModelPaths, Fault> {
    let given = Given::from(&args.models);
    stack::find(&models::config()?, &given, |_: Role| true)
}

/// What was made before is not overwritten, and pages of two comparisons are not mixed.
fn check_folder(folder: &Path) -> Result<(), Fault> {
    let sentence = |why: &str| Fault::Given(format!("-o {}: {why}; name a new or empty folder", folder.display()));
    if folder.exists() && !folder.is_dir() {
        return Err(sentence("is a file"));
    }
    if std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(sentence("holds something already"));
    }
    Ok(engine::Target::check_file(&folder.join("table.json"))?)
}

/// Makes all pictures and what is told of them.
fn make(args: &CompareArgs, comparison: &Comparison, mut run: Run) -> Result<(), Fault> {
    let folder = &args.output;
    let pictures = folder.join("pictures");
    std::fs::create_dir_all(&pictures)
        .map_err(|e| Fault::Here(format!("{} could not be made: {e}", pictures.display())))?;
    for (i, person) in comparison.people.iter().enumerate() {
        faces::save_png(&folder.join(reference(i)), &person.photo.image)?;
    }
    let cells = comparison.cells();
    let mut grid = Grid::new(comparison);
    let mut measured: Vec<(Cell, Measures)> = Vec::new();
    let mut rows: Vec<Value> = Vec::new();
    let mut plan = Value::Null;
    let mut told = BTreeSet::new();
    let bar = output::bar(cells.len() as u64, false);
    let since = Instant::now();
    for (i, cell) in cells.iter().copied().enumerate() {
        let title = comparison.columns[cell.column].title();
        bar.set_message(format!("{}: {title}", comparison.people[cell.person].name));
        let mut observe = |event: Event| {
            if let Event::Note(note) = event
                && told.insert(note.clone())
            {
                bar.suspend(|| output::say(&format!("note: {note}")));
            }
            ControlFlow::Continue(())
        };
        let made = run.make(cell, &mut observe)?;
        let name =
            format!("pictures/{:03}-{:02}-{}.png", cell.person, cell.prompt, comparison.columns[cell.column].name());
        engine::write_atomically(&folder.join(&name), &made.plan.png(&made.picture)?)?;
        grid.add(cell, &made.picture);
        rows.push(row(comparison, cell, &name, made.picture.seed, &made.measures));
        if comparison.columns[cell.column].method.name == "instantid" || plan.is_null() {
            plan = json!(made.plan);
        }
        measured.push((cell, made.measures));
        bar.set_position(i as u64 + 1);
        let left = since.elapsed().as_secs_f64() / (i + 1) as f64 * (cells.len() - i - 1) as f64;
        bar.set_prefix(output::time_left(left));
    }
    bar.finish_and_clear();
    let mut table = table(comparison, &measured, run.people_at_hand(), &plan);
    table["pictures"] = json!(rows);
    faces::save_png(&folder.join("grid.png"), &grid.picture())?;
    let summaries = compare::summaries(comparison, &measured);
    let page = page::page(comparison, &summaries, &measured, &table);
    for (name, text) in [("table.json", serde_json::to_string_pretty(&table).unwrap_or_default()), ("index.html", page)]
    {
        engine::write_atomically(&folder.join(name), text.as_bytes())?;
    }
    if args.json {
        return output::json(&table);
    }
    tell(&summaries)?;
    output::line(&folder.join("index.html").display().to_string())
}

/// Where a person's given picture stands.
fn reference(person: usize) -> PathBuf {
    PathBuf::from(format!("pictures/{person:03}-reference.png"))
}

fn row(comparison: &Comparison, cell: Cell, path: &str, seed: u64, measures: &Measures) -> Value {
    let mut row = json!(measures);
    row["face"] = json!(comparison.people[cell.person].name);
    row["prompt"] = json!(comparison.prompts[cell.prompt].text);
    row["column"] = json!(comparison.columns[cell.column].name());
    row["path"] = json!(path);
    row["seed"] = json!(seed);
    row
}

fn table(comparison: &Comparison, measured: &[(Cell, Measures)], at_hand: usize, plan: &Value) -> Value {
    let people = comparison
        .people
        .iter()
        .enumerate()
        .map(|(i, person)| json!({"name": person.name, "reference": reference(i), "others": person.others()}));
    let prompts = comparison.prompts.iter().map(|prompt| json!({"prompt": prompt.text, "asks": prompt.asks}));
    let settings =
        ["width", "height", "steps", "guidance", "sampler", "rng", "device", "precision", "models", "version"];
    let settings: serde_json::Map<String, Value> =
        settings.iter().map(|key| (key.to_string(), plan[*key].clone())).collect();
    json!({
        "columns": compare::summaries(comparison, measured),
        "reality": compare::reality(&comparison.people),
        "people_at_hand": at_hand,
        "people": people.collect::<Vec<_>>(),
        "prompts": prompts.collect::<Vec<_>>(),
        "settings": settings,
    })
}

/// The table for a terminal.
fn tell(summaries: &[compare::Summary]) -> Result<(), Fault> {
    let width = summaries.iter().map(|s| s.title.chars().count()).max().unwrap_or(0);
    output::line(&format!("{:width$}{}", "", page::HEADS.map(|head| format!("{head:>12}")).concat()))?;
    for summary in summaries {
        let values = page::values(summary).map(|value| format!("{value:>12}")).concat();
        output::line(&format!("{:width$}{values}", summary.title))?;
    }
    Ok(())
}
