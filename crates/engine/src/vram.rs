//! What of the networks stays in a GPU's memory and what waits on the host, so that large networks make large pictures on
//! small cards. Planning is arithmetic on sizes; where weights wait changes no picture, but for the rounding of convolutions
//! that have no room for weights in tiles.

use crate::memory::human;
use crate::{DeviceChoice, Error, Result};
use tensor::Parking;

/// Bytes that the driver and NVIDIA's libraries take for themselves: context, kernels, handles, scratch memory, a recording;
/// 990 to 1040 MiB on an H200, by what `nvidia-smi` says of the process.
pub(crate) const OVERHEAD: u64 = 1088 << 20;
/// Of memory that is free now, what is left to others and to chance.
const MARGIN: u64 = 256 << 20;
/// What blocks take beyond what is in them, as a share: sizes are rounded up so that blocks can be used again.
const ROUNDING: f64 = 0.06;
/// Shares are multiples of one over this, so that little more or less of free memory changes no arrangement.
const PARTS: u64 = 64;

/// Sizes in bytes, on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Needs {
    /// Weights of UNet and IdentityNet that every step needs.
    pub(crate) always: u64,
    /// What convolutions of these take more where an algorithm of fewer operations holds them larger.
    pub(crate) transformed: u64,
    /// Their weights that are needed once for a picture: keys and values of text and identity.
    pub(crate) once: u64,
    /// What a step works in.
    pub(crate) step: u64,
    /// The decoder's weights, and what it works in.
    pub(crate) vae: u64,
    pub(crate) decode: u64,
    /// Whether pictures are decoded while the denoising networks stay.
    pub(crate) decodes_beside: bool,
    /// What a text encoder takes that is built layer by layer: the largest one's tables, and a layer.
    pub(crate) text: u64,
    /// Text encoders and Resampler, where they stay for later requests: their weights, and of these the tables.
    pub(crate) kept: u64,
    pub(crate) tables: u64,
}

/// What waits where.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Arrangement {
    /// Of the denoising networks.
    pub(crate) nets: Parking,
    /// Of all others.
    pub(crate) others: Parking,
    /// Bytes that wait on the host.
    pub(crate) waiting: u64,
    /// Of these, what passes through the card in every step.
    pub(crate) passing: u64,
}

/// Refuses a cap that says nothing.
pub(crate) fn check(cap: Option<u64>, device: DeviceChoice) -> Result<()> {
    match cap {
        Some(_) if device == DeviceChoice::Cpu => {
            Error::refused("--vram caps the memory of a GPU, and --device is cpu; leave one of them out")
        }
        Some(_) if matches!(device, DeviceChoice::Halves(..)) => {
            Error::refused("--vram lets networks wait for one GPU, and --device names two; leave one of them out")
        }
        Some(cap) if within(cap).is_none() => Error::refused(format!(
            "--vram is {}M; the driver and NVIDIA's libraries alone take {}M, so it must be more, such as 8G",
            cap.div_ceil(1 << 20),
            OVERHEAD >> 20
        )),
        _ => Ok(()),
    }
}

/// Bytes for tensors when a process may take `cap` of a card; none where the driver alone takes more.
pub(crate) fn within(cap: u64) -> Option<u64> {
    cap.checked_sub(OVERHEAD).filter(|left| *left > 0)
}

/// The smallest cap that leaves so many bytes for tensors, in whole MiB.
pub(crate) fn cap_for(bytes: u64) -> u64 {
    (bytes + OVERHEAD).next_multiple_of(1 << 20)
}

/// Bytes for tensors in what is `free` now and what this process `holds` already.
pub(crate) fn beside_others(free: u64, holds: u64) -> u64 {
    (free + holds).saturating_sub(MARGIN)
}

impl Needs {
    /// The first arrangement that fits into `there`, of those that cost more and more time.
    ///
    /// # Errors
    /// None fits; how many bytes would do.
    pub(crate) fn arrange(&self, there: u64) -> std::result::Result<Arrangement, u64> {
        let parked = |nets, others, waiting, passing| Arrangement { nets, others, waiting, passing };
        let none = Parking::default();
        if self.peak(self.kept, self.once, self.always + self.transformed, 0) <= there {
            return Ok(parked(none, none, 0, 0));
        }
        let none = Parking { plain: true, ..none };
        if self.peak(self.kept, self.once, self.always, 0) <= there {
            return Ok(parked(none, none, 0, 0));
        }
        let all = Parking { share: 1.0, once: true, plain: true };
        // Networks that work once for a picture wait first: they are not missed between the steps.
        let others = if self.kept > 0 { all } else { none };
        let resting = self.kept - self.tables;
        let once = Parking { once: true, ..none };
        let passing = |parts: u64| self.always * parts / PARTS;
        let waiting = |parts: u64| resting + self.once + passing(parts);
        let peak = |parts| {
            self.peak(self.tables, 0, self.always - passing(parts), tensor::ring(waiting(parts) as usize) as u64)
        };
        match (0..=PARTS).find(|parts| peak(*parts) <= there) {
            None => Err(peak(PARTS)),
            Some(0) => Ok(parked(once, others, waiting(0), 0)),
            Some(parts) => {
                let nets = Parking { share: parts as f64 / PARTS as f64, ..all };
                Ok(parked(nets, others, waiting(parts), passing(parts)))
            }
        }
    }

    /// The most that is taken at once.
    fn peak(&self, kept: u64, once: u64, always: u64, ring: u64) -> u64 {
        let decoding = self.vae + self.decode;
        // A recorded step keeps its memory meanwhile.
        let beside = if self.decodes_beside { self.decode } else { 0 };
        let weights = ((kept + once + always + self.vae) as f64 * (1.0 + ROUNDING)) as u64;
        let text = (self.text as f64 * (1.0 + ROUNDING)) as u64;
        (weights + ring + self.step + beside).max(decoding).max(text)
    }
}

impl Arrangement {
    /// What waits where, in a sentence; none where nothing does. `weights` of the denoising networks are all of them.
    pub(crate) fn sentence(&self, there: u64, weights: u64) -> Option<String> {
        if self.waiting == 0 {
            return None;
        }
        let rest = human(weights.saturating_sub(self.waiting));
        let passing = match self.passing {
            0 => "what a picture needs once".to_string(),
            passing => format!("{} pass through it in every step", human(passing)),
        };
        Some(format!(
            "of the card's memory {} are used: {rest} of UNet and IdentityNet stay there, {} wait in the machine's memory ({passing})",
            human(there),
            human(self.waiting)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    /// A cap is told in the unit in which it is given.
    #[test]
    fn a_cap_that_says_nothing_is_refused() {
        let said = |cap, device| check(Some(cap), device).unwrap_err().to_string();
        let small = said(500 << 20, DeviceChoice::Cuda(0));
        assert!(small.contains("--vram is 500M") && small.contains("1088M"), "{small}");
        assert!(said(8 << 30, DeviceChoice::Cpu).contains("--device is cpu"));
        assert!(check(Some(8 << 30), DeviceChoice::Auto).is_ok());
    }

    /// About what SDXL with InstantID takes at 1024x1024 in f16.
    fn sdxl() -> Needs {
        Needs {
            always: 6_500_000_000,
            transformed: 1_000_000_000,
            once: 1_700_000_000,
            step: 900_000_000,
            vae: 170_000_000,
            decode: 1_500_000_000,
            text: 500_000_000,
            ..Needs::default()
        }
    }

    #[test]
    fn what_costs_nothing_waits_first() {
        let at = |there| sdxl().arrange(there);
        assert_eq!(at(80 * GB), Ok(Arrangement::default()));
        let most = at(9 * GB).unwrap();
        assert_eq!((most.nets, most.passing), (Parking { share: 0.0, once: true, plain: true }, 0));
        // Before anything waits, convolutions keep their weights as they are.
        let plain = Arrangement { nets: Parking { plain: true, ..Parking::default() }, ..Arrangement::default() };
        assert_eq!(at(10 * GB).map(|plain| (plain.nets, plain.waiting)), Ok((plain.nets, 0)));
        // More and more waits as less and less is there, and what stays fits.
        let mut before = 0;
        for there in (19..90).rev().map(|tenth| tenth * GB / 10) {
            let Ok(arrangement) = at(there) else { panic!("{there}") };
            assert!(arrangement.waiting >= before, "{there}: {arrangement:?}");
            let stays = sdxl().always + sdxl().once + sdxl().vae - arrangement.waiting;
            assert!(
                stays + sdxl().step + tensor::ring(arrangement.waiting as usize) as u64 <= there,
                "{there}: {arrangement:?}"
            );
            before = arrangement.waiting;
        }
        // What would do does, and less does not.
        let least = at(GB).unwrap_err();
        assert!(at(least).is_ok() && at(least - 1).is_err());
        assert!(least < 2 * GB, "{least}");
    }

    #[test]
    fn pictures_in_a_row_and_kept_networks_take_more() {
        let row = Needs { decodes_beside: true, ..sdxl() };
        let kept = Needs { kept: 3_600_000_000, tables: 420_000_000, ..sdxl() };
        for more in [row, kept] {
            let (one, several) = (sdxl().arrange(7 * GB).unwrap(), more.arrange(7 * GB).unwrap());
            assert!(several.waiting > one.waiting);
            assert!(more.arrange(GB).unwrap_err() > sdxl().arrange(GB).unwrap_err());
        }
        assert_eq!(kept.arrange(7 * GB).unwrap().others.share, 1.0);
        // What a small network needs is not more because it could wait.
        let small = Needs { always: 1000, once: 100, step: 500, ..Needs::default() };
        assert!(small.arrange(1670).is_ok_and(|all| all.waiting == 0));
    }

    #[test]
    fn a_card_of_8_gb_is_enough() {
        let there = within(8 << 30).unwrap();
        let share = sdxl().arrange(there).unwrap().nets.share;
        assert!(share < 0.15, "{share}");
        assert_eq!(within(OVERHEAD), None);
        assert_eq!(beside_others(MARGIN / 2, 0), 0);
    }
}
