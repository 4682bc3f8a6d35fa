//! What a person sees of a panic: nothing, where the libraries catch it, as they do around decoders of untrusted
//! pictures; else one sentence, as for every other fault.

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook};
use std::sync::{Mutex, PoisonError};

use crate::fault::Fault;

/// What the last panic said, and where.
static LAST: Mutex<String> = Mutex::new(String::new());

/// Runs the program's work.
pub(crate) fn contained(work: impl FnOnce() -> Result<(), Fault>) -> Result<(), Fault> {
    set_hook(Box::new(remember));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        Err(Fault::Here(format!("sameface itself failed, which is a fault in the program worth reporting: {last}")))
    })
}

fn remember(info: &PanicHookInfo) {
    let payload = info.payload();
    let said = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("no reason given").split_whitespace().collect::<Vec<_>>().join(" ");
    let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = format!("{said}{place}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_one_sentence() {
        let fault = contained(|| panic!("two\nlines")).unwrap_err();
        assert_eq!(fault.status(), 1);
        let said = fault.to_string();
        assert!(said.contains("two lines (") && said.contains("panics.rs") && !said.contains('\n'), "{said}");
        assert!(contained(|| Ok(())).is_ok());
        // Other tests' panics shall be seen.
        drop(std::panic::take_hook());
    }
}
