//! `sameface compare`: the same faces and prompts through several methods, as pictures, a grid, a page and a table.

mod chart;
mod grid;
mod journal;
mod letters;
mod page;
mod pictures;
mod subjects;
mod table;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use compare::{Cell, Comparison, Eyes, Measures, Reality, Run, Summary};
use engine::{Event, Plan, Request};
use hub::Role;
use serde_json::{Value, json};

use crate::cli::CompareArgs;
use crate::fault::Fault;
use crate::people::Drawn;
use crate::stack::{self, Given};
use crate::{generate, models, output, threads};
use journal::{Entry, Journal};

pub(crate) fn run(args: &CompareArgs) -> Result<(), Fault> {
    threads::limit(args.machine.threads)?;
    let mut drawn = Drawn::new();
    work(args, &mut drawn).map_err(|fault| fault.reworded(|sentence| drawn.in_words(sentence)))
}

fn work(args: &CompareArgs, drawn: &mut Drawn) -> Result<(), Fault> {
    let mut columns = compare::columns(&args.methods, &args.scales)?;
    let subjects = subjects::said(args, drawn)?;
    let mut request = request(args)?;
    request.faces = subjects.iter().map(|subject| subject.given.clone()).collect();
    request.check()?;
    Journal::check(&args.output)?;
    let prompts = subjects::prompts(args)?;
    request.models = model_paths(args)?;
    let judge = judge(args, &request.models.base)?;
    let eyes = Eyes::open(request.models.face_models.as_deref().unwrap_or(Path::new("")), &judge.folder)?;
    let built_in = judge.built_in || stack::is_built_in(&request.models.base);
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
    let asked = subjects::asked(args, &subjects, &prompts, &request, &judge)?;
    let comparison = Comparison { people, stranger, prompts, per_face: args.per_face, columns, request };
    for note in subjects::lacking(&comparison, &crowd, &eyes) {
        output::say(&format!("note: {note}"));
    }
    args.from.iter().try_for_each(|from| Journal::check_source(from, &asked))?;
    let mut journal = Journal::open(&args.output, asked)?;
    let run = Run::new(&comparison, crowd, &eyes)?;
    let made = make(args, &comparison, run, &mut journal, judge.name)?;
    tell(args, &comparison, &made, &journal)
}

fn request(args: &CompareArgs) -> Result<Request, Fault> {
    if args.per_face == Some(0) {
        return Err(Fault::Given("--per-face is 0; each face needs at least one prompt".into()));
    }
    let mut request = generate::begin("", &args.picture, &args.machine);
    request.seed = Some(args.seed.unwrap_or(1));
    Ok(request)
}

fn model_paths(args: &CompareArgs) -> Result<engine::ModelPaths, Fault> {
    let given = Given::from(&args.models);
    stack::find(&models::config()?, &given, |_: Role| true)
}

/// Who measures.
struct JudgeFiles {
    folder: PathBuf,
    built_in: bool,
    /// For people.
    name: String,
}

fn judge(args: &CompareArgs, base: &Path) -> Result<JudgeFiles, Fault> {
    // A whole stack in one folder has its own.
    if let Some(folder) = args.judge.as_ref().filter(|folder| !folder.join("identity.onnx").is_file()) {
        return Err(Fault::Given(format!(
            "--judge {}: holds no identity.onnx; an encoder of aligned faces of that name is needed, such as buffalo_l's w600k_r50.onnx",
            folder.display()
        )));
    }
    let beside = Some(base.join("judge")).filter(|judge| judge.is_dir() && !stack::is_built_in(base));
    if let Some(folder) = args.judge.clone().or(beside) {
        return Ok(JudgeFiles { built_in: false, name: folder.display().to_string(), folder });
    }
    let folder = stack::judge()?.ok_or_else(|| {
        Fault::Given("this program was built without the built-in judge; name one with --judge FOLDER".to_string())
    })?;
    Ok(JudgeFiles { folder, built_in: true, name: "the built-in one, trained on other drawn people".into() })
}

/// What has been made so far, and what comes of it.
struct Made {
    measured: Vec<(Cell, Measures)>,
    /// How many pictures the whole comparison has.
    wanted: usize,
    at_hand: usize,
    judge: String,
    summaries: Vec<Summary>,
    reality: Reality,
}

/// Makes the pictures that are not there yet.
fn make(
    args: &CompareArgs,
    comparison: &Comparison,
    mut run: Run,
    journal: &mut Journal,
    judge: String,
) -> Result<Made, Fault> {
    for folder in &args.from {
        let count = journal.join(folder)?;
        output::say(&format!("{count} pictures came from {}", folder.display()));
    }
    let cells = comparison.cells();
    let mine: Vec<Cell> = cells.iter().copied().filter(|cell| args.shard.is_none_or(|s| s.has(cell.row))).collect();
    let missing: Vec<Cell> =
        mine.iter().copied().filter(|cell| journal.get(&path(comparison, *cell)).is_none()).collect();
    match mine.len() - missing.len() {
        0 => {}
        there if missing.is_empty() => output::say(&format!("all {there} pictures are there already")),
        there => output::say(&format!("{there} of {} pictures are there already; going on with the rest", mine.len())),
    }
    let mut told = BTreeSet::new();
    let bar = output::bar(mine.len() as u64, false);
    let since = Instant::now();
    for (i, cell) in missing.iter().copied().enumerate() {
        bar.set_position((mine.len() - missing.len() + i) as u64);
        if i > 0 {
            bar.set_prefix(output::time_left(since.elapsed().as_secs_f64() / i as f64 * (missing.len() - i) as f64));
        }
        let (person, column) = (&comparison.people[cell.person], &comparison.columns[cell.column]);
        bar.set_message(format!("{}: {}", person.name, column.title()));
        let mut observe = |event: Event| {
            if let Event::Note(note) = event
                && told.insert(note.clone())
            {
                bar.suspend(|| output::say(&format!("note: {note}")));
            }
            ControlFlow::Continue(())
        };
        let made = run.make(cell, &mut observe)?;
        let path = path(comparison, cell);
        journal.settle(&settings(&made.plan), &format!("-o {}", args.output.display()))?;
        let about = json!({
            "face": person.name,
            "prompt": comparison.prompts[cell.prompt].text,
            "column": column.name(),
        });
        let entry = Entry::new(made.picture.seed, made.measures, about, &path);
        journal.add(&path, &made.plan.png(&made.picture)?, entry)?;
    }
    bar.finish_and_clear();
    let there = |cell: &Cell| Some((*cell, journal.get(&path(comparison, *cell))?.measures.clone()));
    let measured: Vec<(Cell, Measures)> = cells.iter().filter_map(there).collect();
    let summaries = compare::summaries(comparison, &measured);
    let reality = compare::reality(comparison);
    Ok(Made { measured, wanted: cells.len(), at_hand: run.people_at_hand(), judge, summaries, reality })
}

/// Writes what there is to see, and says where it is.
fn tell(args: &CompareArgs, comparison: &Comparison, made: &Made, journal: &Journal) -> Result<(), Fault> {
    let folder = &args.output;
    for (i, person) in comparison.people.iter().enumerate() {
        if let Some(photo) = &person.photo {
            faces::save_png(&folder.join(reference(i)), &photo.image)?;
        }
    }
    let cells: Vec<Cell> = made.measured.iter().map(|(cell, _)| *cell).collect();
    let grid = grid::grid(comparison, &cells, |cell| folder.join(path(comparison, cell)))?;
    faces::save_png(&folder.join("grid.png"), &grid)?;
    let charts = chart::charts(&made.summaries, &made.reality);
    let curve = chart::picture(&charts);
    if let Some(curve) = &curve {
        faces::save_png(&folder.join("curve.png"), curve)?;
    }
    let table = table::table(comparison, made, journal);
    let page = page::page(comparison, made, &table["settings"], &charts, folder)?;
    for (name, text) in [("table.json", serde_json::to_string_pretty(&table).unwrap_or_default()), ("index.html", page)]
    {
        engine::write_atomically(&folder.join(name), text.as_bytes())?;
    }
    if args.json {
        return output::json(&table);
    }
    table::tell(made)?;
    if cells.len() < made.wanted {
        output::say(&format!(
            "{} of {} pictures are made; the same command without --shard makes the rest, and --from FOLDER takes them from elsewhere",
            cells.len(),
            made.wanted
        ));
    }
    let rows = cells.iter().map(|cell| cell.row).collect::<BTreeSet<_>>().len();
    if rows > grid::MOST_ROWS {
        output::say(&format!("grid.png shows the first {} of {rows} rows", grid::MOST_ROWS));
    }
    let names = [Some("grid.png"), curve.as_ref().map(|_| "curve.png"), Some("index.html")];
    names.into_iter().flatten().try_for_each(|name| output::line(&folder.join(name).display().to_string()))
}

/// Where a picture stands in the folder.
fn path(comparison: &Comparison, cell: Cell) -> String {
    format!("pictures/{:03}-{:02}-{}.png", cell.person, cell.prompt, comparison.columns[cell.column].name())
}

/// Where a person's given picture stands.
fn reference(person: usize) -> PathBuf {
    PathBuf::from(format!("pictures/{person:03}-reference.png"))
}

/// What all pictures of a comparison share.
fn settings(plan: &Plan) -> Value {
    let plan = json!(plan);
    let keys = ["width", "height", "steps", "guidance", "sampler", "rng", "device", "precision", "models", "version"];
    keys.iter().map(|key| (key.to_string(), plan[*key].clone())).collect::<serde_json::Map<_, _>>().into()
}
