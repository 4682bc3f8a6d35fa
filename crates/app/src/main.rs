//! The program `sameface`: reads the command line, calls the crates that do the work, and says what came of it.

mod bench;
mod cast;
mod cli;
mod compare;
mod faces;
mod fault;
mod generate;
mod likeness;
mod memory;
mod models;
mod output;
mod panics;
mod people;
mod stack;
mod threads;

use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ErrorKind};

use cli::{Cli, Command};
use fault::Fault;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match panics::contained(|| run(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => report(&fault),
    }
}

fn run(cli: &Cli) -> Result<(), Fault> {
    engine::check_instructions()?;
    engine::keep_kernels_in(&models::cache().join("kernels"));
    match &cli.command {
        Command::Generate(args) => generate::run(args),
        Command::Faces(args) => faces::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Cast(args) => cast::run(args),
        Command::Models(args) => models::run(args),
    }
}

/// One sentence on stderr; with `--json` also an object on stdout, so that whoever parses it always finds one.
fn report(fault: &Fault) -> ExitCode {
    match fault {
        Fault::Closed | Fault::Said => {}
        Fault::Given(sentence) | Fault::Here(sentence) => {
            output::say(&format!("sameface: {sentence}"));
            if wants_json() {
                let _ = output::json(&serde_json::json!({"error": sentence}));
            }
        }
    }
    ExitCode::from(fault.status())
}

/// What clap says of a command line that cannot be read; help and version are not refusals.
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            let unknown = error.context().find(|(kind, _)| *kind == ContextKind::InvalidArg);
            let here = unknown.and_then(|(_, name)| elsewhere(&name.to_string()));
            report(&Fault::Given(sentence(&error.to_string(), here)))
        }
    }
}

/// What other programs' options are called here, where clap's guess leads astray.
fn elsewhere(option: &str) -> Option<&'static str> {
    let name = option.trim_start_matches('-').split('=').next().unwrap_or_default().replace('_', "-");
    Some(match &*name {
        "prompt" => "the prompt stands without an option: sameface generate \"a sailor\"",
        "width" | "height" | "resolution" => "the size is --size WIDTHxHEIGHT",
        "cfg" | "cfg-scale" | "guidance-scale" => "guidance is --guidance",
        "num-inference-steps" | "num-steps" => "steps are --steps",
        "negative-prompt" => "what shall not be shown is --negative",
        "scheduler" => "noise levels belong to the sampler's name: --sampler dpmpp_2m_karras",
        "sampler-name" | "sampling-method" => "the sampler is --sampler",
        "controlnet-conditioning-scale" | "identitynet-strength-ratio" => "IdentityNet's weight is --identitynet-scale",
        "adapter-strength-ratio" | "ip-adapter-weight" => "the adapter's weight is --ip-adapter-scale",
        "image" | "face-image" | "photo" | "reference" => "the person's photo is --face",
        "batch-size" => "the number of pictures is --count, and of those that share a step --batch",
        "batch-count" | "num-images" | "num-images-per-prompt" | "n-iter" => "the number of pictures is --count",
        "ckpt" | "checkpoint" => "the checkpoint is --model",
        "outdir" | "out" | "output-dir" => "the place for pictures is -o or --output",
        "fp16" | "half" | "dtype" => "numbers are --precision",
        _ => return None,
    })
}

/// Clap's first paragraph, and its guess at what was meant or a surer word, as one line.
fn sentence(text: &str, here: Option<&str>) -> String {
    let mut paragraphs = text.split("\n\n");
    let first = paragraphs.next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first).split_whitespace().collect::<Vec<_>>().join(" ");
    // That a dash can begin a value is seldom what was meant.
    let tips =
        text.lines().filter_map(|line| line.trim().strip_prefix("tip: ")).filter(|tip| !tip.starts_with("to pass "));
    let tips: String = match here {
        Some(here) => format!("; {here}"),
        None => tips.map(|tip| format!("; {tip}")).collect(),
    };
    format!("{first}{tips} (--help explains)")
}

fn wants_json() -> bool {
    std::env::args_os().any(|arg| arg == "--json")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn names_of_other_programs_lead_to_ours() {
        for name in ["--cfg-scale", "--negative_prompt", "--prompt", "--width=512", "--num_inference_steps"] {
            let error = Cli::try_parse_from(["sameface", "generate", "x", name]).unwrap_err();
            let unknown = error.context().find(|(kind, _)| *kind == ContextKind::InvalidArg).unwrap().1.to_string();
            assert!(elsewhere(&unknown).is_some(), "{unknown}");
        }
        // What is said of them can be given.
        for line in ["--size 64x64", "--guidance 5", "--steps 2", "--negative x", "--count 2", "--output x", "--face x"]
        {
            Cli::try_parse_from(["sameface", "generate", "x"].into_iter().chain(line.split(' '))).unwrap();
        }
        assert_eq!(elsewhere("--nonsense"), None);
    }

    /// What stands behind the name of the program in an example: quoted where it has spaces, and at a gap of two
    /// spaces or a `|` it ends.
    fn words(example: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let (mut quoted, mut before) = (false, ' ');
        for c in example.trim_start().chars() {
            match c {
                '"' => quoted = !quoted,
                ' ' if !quoted && before == ' ' => break,
                '|' if !quoted => break,
                ' ' if !quoted => words.push(String::new()),
                _ => words.last_mut().unwrap().push(c),
            }
            before = if quoted { '"' } else { c };
        }
        words.retain(|word| !word.is_empty());
        words
    }

    /// All lines of help and of the README that begin as a command does.
    fn examples() -> Vec<String> {
        fn helps(command: &clap::Command, into: &mut String) {
            for text in [command.get_after_long_help(), command.get_after_help()].into_iter().flatten() {
                *into += &format!("{text}\n");
            }
            command.get_subcommands().for_each(|command| helps(command, into));
        }
        let mut text = include_str!("../../../README.md").split("\\\n").map(str::trim_start).collect::<String>();
        text = text.replace("cargo run --release -- ", "sameface ");
        helps(&Cli::command(), &mut text);
        let begins = |line: &&str| line.starts_with("sameface ") && !line.contains("COMMAND");
        text.lines().map(str::trim_start).filter(begins).map(str::to_string).collect()
    }

    #[test]
    fn examples_can_be_given_as_they_stand() {
        let examples = examples();
        assert!(examples.len() > 30, "{examples:#?}");
        for example in examples {
            let words = words(&example);
            if let Err(error) = Cli::try_parse_from(&words) {
                panic!("{example}\n{words:?}\n{error}");
            }
        }
    }

    #[test]
    fn refusals_are_one_line() {
        for (line, said) in [
            (vec!["models", "lst"], "unrecognized subcommand 'lst'; a similar subcommand exists: 'list'"),
            (vec!["models", "pull"], "the following required arguments were not provided: <NAME>"),
            (vec!["paint"], "unrecognized subcommand 'paint'"),
            (vec!["models", "list", "--jsn"], "unexpected argument '--jsn' found; a similar argument exists: '--json'"),
        ] {
            let error = Cli::try_parse_from([vec!["sameface"], line].concat()).unwrap_err();
            let said_now = sentence(&error.to_string(), None);
            assert!(said_now.starts_with(said) && !said_now.contains('\n'), "{said_now}");
        }
    }
}
