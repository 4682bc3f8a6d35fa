//! What is printed: text and JSON on stdout, progress on stderr while a person watches.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::fault::Fault;

/// Prints a line on stdout. A reader that has gone away, as `head` does, ends the program quietly.
pub(crate) fn line(text: &str) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Fault::Closed),
        Err(error) => Err(Fault::Here(format!("stdout could not be written: {error}"))),
    }
}

/// Prints one machine-readable object.
pub(crate) fn json(value: &Value) -> Result<(), Fault> {
    line(&value.to_string())
}

/// Says something to the person, beside the results. A closed stderr is no reason to stop.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

const BYTES: &str = "{wide_msg} {decimal_bytes:>9} of {decimal_total_bytes} {prefix:>15} [{bar:20}]";
const STEPS: &str = "{wide_msg} {pos:>4} of {len} {prefix:>15} [{bar:20}]";

/// A bar on stderr, drawn only on a terminal, that counts bytes or steps up to `length`.
pub(crate) fn bar(length: u64, bytes: bool) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = if bytes { BYTES } else { STEPS };
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(8));
    // A test reads both templates; without one the bar would have its plain look.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar
}

/// A time left as people say it.
pub(crate) fn time_left(seconds: f64) -> String {
    let left = Duration::try_from_secs_f64(seconds.clamp(0.0, 360_000.0)).unwrap_or_default().as_secs();
    match left {
        0..60 => format!("{left} s left"),
        60..3600 => format!("{} min {:02} s left", left / 60, left % 60),
        _ => format!("{} h {:02} min left", left / 3600, left / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_can_be_read() {
        for template in [BYTES, STEPS] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn times_are_said_briefly() {
        assert_eq!(time_left(9.7), "9 s left");
        assert_eq!(time_left(125.0), "2 min 05 s left");
        assert_eq!(time_left(f64::INFINITY), "100 h 00 min left");
        assert_eq!(time_left(3_700.0), "1 h 01 min left");
    }
}
