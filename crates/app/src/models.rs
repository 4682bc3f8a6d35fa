//! `sameface models`: what is here, and bringing what is not.

use std::ops::ControlFlow;
use std::path::PathBuf;

use hub::{Event, HubConfig, Part, Plan, Role, human};
use serde_json::{Value, json};

use crate::cli::{ModelsArgs, ModelsCommand, PullArgs};
use crate::fault::Fault;
use crate::{output, stack};

/// What the environment says about models. The only place that reads it.
pub(crate) fn config() -> Result<HubConfig, Fault> {
    Ok(HubConfig::from_vars(|name| std::env::var(name).ok())?)
}

/// Where this program keeps what it can make again: `$SAMEFACE_HOME/cache`, else the system's place for such.
pub(crate) fn cache() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let own = match std::env::consts::OS {
        "windows" => var("LOCALAPPDATA"),
        "macos" => var("HOME").map(|home| home.join("Library/Caches")),
        _ => var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache"))),
    };
    // Through the same reading as the models' place, which knows what `~` stands for.
    let home = config().ok().and_then(|config| config.home).map(|home| home.join("cache"));
    home.or(own.map(|caches| caches.join("sameface"))).unwrap_or_else(|| std::env::temp_dir().join("sameface"))
}

pub(crate) fn run(args: &ModelsArgs) -> Result<(), Fault> {
    let config = config()?;
    match &args.command {
        ModelsCommand::List { json } => list(&config, *json),
        ModelsCommand::Pull(args) => pull(&config, args),
        ModelsCommand::Path { name, json } => {
            let path = match name.eq_ignore_ascii_case(stack::MINI) {
                true => mini::unpack(&cache())?,
                false => None,
            };
            let path = path.map_or_else(|| hub::path_of(&config, name), Ok)?.display().to_string();
            if *json { output::json(&json!({"path": path})) } else { output::line(&path) }
        }
    }
}

fn list(config: &HubConfig, as_json: bool) -> Result<(), Fault> {
    let listings = hub::list(config);
    let roles = Role::ALL.map(|role| (role, hub::locate(config, role, None)));
    let falls_back = stack::falls_back(config);
    if as_json {
        let models = listings.iter().map(|listing| {
            let entry = listing.entry;
            json!({
                "name": entry.name, "about": entry.about, "licence": entry.licence, "bytes": entry.bytes(),
                "repository": entry.sources[0].repo, "missing_files": listing.missing,
                "path": listing.path.as_ref().map(|path| path.display().to_string()),
            })
        });
        let in_use = roles.iter().map(|(role, found)| {
            let found = found.as_ref().ok().map(|found| found.path.display().to_string());
            let found = found.or_else(|| falls_back.then(|| stack::MINI.to_string()));
            (role.flag().trim_start_matches('-').to_string(), found.into())
        });
        let in_use: serde_json::Map<String, Value> = in_use.collect();
        let models: Vec<Value> = models.collect();
        let home = config.models.as_ref().map(|home| home.display().to_string());
        let cache = config.cache.display().to_string();
        return output::json(
            &json!({"models": models, "built_in": mini::is_built_in(), "in_use": in_use, "home": home, "cache": cache}),
        );
    }
    if mini::is_built_in() {
        output::line(&format!(
            "{:12}{:>8}  {}",
            stack::MINI,
            human(mini::bytes()),
            "InstantID in miniature, which knows drawn characters"
        ))?;
        output::line(&format!("{:22}built in", ""))?;
        output::line(&format!("{:22}licence: as this program", ""))?;
    }
    for listing in &listings {
        let entry = listing.entry;
        let state = match (&listing.path, listing.missing) {
            (Some(path), 0) => format!("here: {}", path.display()),
            (Some(path), missing) => format!("{missing} of {} files missing: {}", entry.files.len(), path.display()),
            (None, _) => format!("not here: `sameface models pull {}` brings it", entry.name),
        };
        output::line(&format!("{:12}{:>8}  {}", entry.name, human(entry.bytes()), entry.about))?;
        output::line(&format!("{:22}{}", "", state))?;
        output::line(&format!("{:22}licence: {}", "", entry.licence))?;
    }
    output::line("\nWith no option given, `sameface generate` uses")?;
    for (role, found) in &roles {
        let said = match found {
            Ok(found) => found.path.display().to_string(),
            Err(hub::Error::NotInstalled { .. }) if falls_back => "mini, the built-in models".to_string(),
            Err(hub::Error::NotInstalled { .. }) => "nothing yet".to_string(),
            Err(error) => error.to_string(),
        };
        output::line(&format!("  {:14}{}", role.flag(), said))?;
    }
    Ok(())
}

fn pull(config: &HubConfig, args: &PullArgs) -> Result<(), Fault> {
    let plan = hub::plan(config, &args.name)?;
    // Licences are for people; stdout is for the result.
    for part in &plan.parts {
        output::say(&described(part));
    }
    if args.dry_run {
        output::say(&format!("{} would be fetched", human(plan.missing())));
        let models: Vec<Value> = plan.parts.iter().map(|part| row(part, part.here.as_deref(), 0)).collect();
        return if args.json { output::json(&json!({"models": models})) } else { Ok(()) };
    }
    let pulled = fetch(config, &plan)?;
    if args.json {
        let rows = plan.parts.iter().zip(&pulled);
        let models: Vec<Value> = rows.map(|(part, pulled)| row(part, Some(&pulled.path), pulled.fetched)).collect();
        return output::json(&json!({"models": models}));
    }
    for pulled in &pulled {
        output::line(&format!("{:12}{}", pulled.name, pulled.path.display()))?;
    }
    Ok(())
}

fn fetch(config: &HubConfig, plan: &Plan) -> Result<Vec<hub::Pulled>, Fault> {
    if plan.missing() > 0 {
        output::say(&format!("fetching {} into {}", human(plan.missing()), config.cache.display()));
    }
    let bar = output::bar(plan.lacking(), true);
    let mut tell = |event: Event| {
        match event {
            Event::File { file, number, of, .. } => bar.set_message(format!("{number}/{of} {file}")),
            Event::Bytes(progress) => {
                bar.set_length(progress.total);
                bar.set_position(progress.done);
                bar.set_prefix(progress.seconds_left.map(output::time_left).unwrap_or_default());
            }
            Event::Note(note) => bar.suspend(|| output::say(&note)),
            _ => {}
        }
        ControlFlow::Continue(())
    };
    let pulled = hub::pull(config, plan, &mut tell);
    bar.finish_and_clear();
    Ok(pulled?)
}

fn described(part: &Part) -> String {
    let state = match &part.here {
        Some(_) => "here already".to_string(),
        None => format!("{} to fetch", human(part.missing)),
    };
    format!(
        "{}: {}\n  from     {} ({}, {state})\n  licence  {}",
        part.name,
        part.about,
        part.repo(),
        human(part.bytes()),
        part.licence
    )
}

fn row(part: &Part, path: Option<&std::path::Path>, fetched: u64) -> Value {
    let path = path.map(|path| path.display().to_string());
    json!({
        "name": part.name, "path": path, "licence": part.licence, "bytes": part.bytes(),
        "missing": part.missing, "fetched": fetched,
    })
}
