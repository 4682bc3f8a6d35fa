//! The identity adapter's tensors: a second pair of key and value projections for each text cross-attention.

use crate::load::Loader;
use crate::{Error, Result};
use tensor::ops::Linear;

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

/// `widths` of the cross-attentions in the order in which they run, `places` as from [`places`].
pub(crate) fn load(at: &Loader, widths: &[usize], places: &[usize], context: usize) -> Result<Vec<IdentityAttention>> {
    // Self-attentions have the even numbers and no tensors.
    let leaf = |place: usize| format!("{}.to_k_ip", 2 * place + 1);
    let refuse = |reason: String| Error::Adapter { file: at.scope.file().to_owned(), reason };
    let given = at.scope.children();
    let layers = given.iter().filter(|name| at.scope.has(&format!("{name}.to_k_ip.weight"))).count();
    let missing = (0..widths.len()).map(leaf).find(|name| !at.scope.has(&format!("{name}.weight")));
    if !at.scope.is_random() && (layers != widths.len() || missing.is_some()) {
        let missing = missing.map_or(String::new(), |name| format!("; `{}.weight` is missing", at.scope.name(&name)));
        return Err(refuse(format!(
            "it is for {layers} text cross-attentions and the UNet has {}{missing}",
            widths.len()
        )));
    }
    places
        .iter()
        .zip(widths)
        .map(|(&place, &width)| {
            let at = at.push(2 * place + 1);
            Ok(IdentityAttention {
                to_k_ip: at.push("to_k_ip").linear(context, width, false)?,
                to_v_ip: at.push("to_v_ip").linear(context, width, false)?,
            })
        })
        .collect()
}
