//! The identity adapter's tensors: a second pair of key and value projections for each text cross-attention.

use crate::load::Loader;
use crate::{Error, Result};
use tensor::ops::Linear;
use weights::Scope;

/// Decoupled cross-attention's own projections.
pub(crate) struct IdentityAttention {
    pub(crate) to_k_ip: Linear,
    pub(crate) to_v_ip: Linear,
}

/// For each cross-attention in the order in which they run (down, middle, up), its place in the order in which
/// diffusers lists attention processors (down, up, middle).
pub(crate) fn places(down: usize, mid: usize, all: usize) -> Vec<usize> {
    (0..down).chain(all - mid..all).chain(down..all - mid).collect()
}

/// Compares the shapes of the adapter's tensors, of which none is read, with a UNet's: `widths` of its cross-attentions
/// in the order in which they run, `places` as from [`places`].
pub(crate) fn check(scope: &Scope, widths: &[usize], places: &[usize], context: usize) -> Result<()> {
    if scope.is_random() {
        return Ok(());
    }
    // Self-attentions have the even numbers and no tensors.
    let leaf = |place: usize| format!("{}.to_k_ip", 2 * place + 1);
    let refuse = |reason: String| Error::Adapter { file: scope.file().to_owned(), reason };
    let given = scope.children();
    let layers = given.iter().filter(|name| scope.has(&format!("{name}.to_k_ip.weight"))).count();
    let missing = (0..widths.len()).map(leaf).find(|name| !scope.has(&format!("{name}.weight")));
    if layers != widths.len() || missing.is_some() {
        let missing = missing.map_or(String::new(), |name| format!("; `{}.weight` is missing", scope.name(&name)));
        return Err(refuse(format!(
            "it is for {layers} text cross-attentions and the UNet has {}{missing}",
            widths.len()
        )));
    }
    for (&place, &width) in places.iter().zip(widths) {
        for part in ["to_k_ip", "to_v_ip"] {
            scope.get(&format!("{}.{part}.weight", 2 * place + 1), &[width, context])?;
        }
    }
    Ok(())
}

/// As [`check`], then reads the tensors.
pub(crate) fn load(at: &Loader, widths: &[usize], places: &[usize], context: usize) -> Result<Vec<IdentityAttention>> {
    check(&at.scope, widths, places, context)?;
    places
        .iter()
        .zip(widths)
        .map(|(&place, &width)| {
            let at = at.push(2 * place + 1).once();
            Ok(IdentityAttention {
                to_k_ip: at.push("to_k_ip").linear(context, width, false)?,
                to_v_ip: at.push("to_v_ip").linear(context, width, false)?,
            })
        })
        .collect()
}
