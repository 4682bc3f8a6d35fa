//! `--threads`: how many threads the CPU's work is spread over.

use crate::fault::Fault;

/// Must come before the first computation; without a number there is a thread for each core.
pub(crate) fn limit(threads: Option<u16>) -> Result<(), Fault> {
    let Some(threads) = threads else { return Ok(()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(usize::from(threads));
    pool.build_global().map_err(|error| Fault::Here(format!("{threads} threads could not be started: {error}")))
}
