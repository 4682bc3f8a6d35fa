//! Weights that wait on the host for their turn, so that networks larger than a GPU's memory run on it. Which weights wait
//! changes no number: the same kernels read the same bits, which only arrive later.

use crate::Device;
use std::cell::Cell;

/// How often a layer's weight is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// In every evaluation of its network.
    Always,
    /// Once for a picture, such as keys and values of a text.
    Once,
}

/// Which weights of a GPU's layers wait on the host; none do on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Parking {
    /// Share of the bytes that are always needed, 0 to 1. They are spread evenly over a network, so that they arrive
    /// while the layers between them work.
    pub share: f64,
    /// Whether all that is needed once waits.
    pub once: bool,
    /// Whether weights keep their size where an algorithm of fewer operations would hold them larger.
    pub plain: bool,
}

/// Smaller weights stay: a copy takes longer to ask for than to make.
const LEAST: usize = 16 << 10;

thread_local! {
    static PARKING: Cell<Parking> = const { Cell::new(Parking { share: 0.0, once: false, plain: false }) };
    /// Bytes that should have been parked by now and were not.
    static OWED: Cell<f64> = const { Cell::new(0.0) };
}

impl Device {
    /// Does work that makes layers in this thread, of whose weights some are to wait on the host.
    pub fn parking<R>(&self, parking: Parking, work: impl FnOnce() -> R) -> R {
        /// Puts back what was, also where the work panics.
        struct Before(Parking);
        impl Drop for Before {
            fn drop(&mut self) {
                PARKING.set(self.0);
            }
        }
        let _before = Before(PARKING.replace(parking));
        OWED.set(0.0);
        work()
    }
}

/// Whether weights keep their size.
pub(crate) fn keeps_plain() -> bool {
    PARKING.get().plain
}

/// Whether the next weight, of so many bytes, waits.
pub(crate) fn waits(turn: Turn, bytes: usize) -> bool {
    let Parking { share, once, .. } = PARKING.get();
    if bytes < LEAST {
        return false;
    }
    if turn == Turn::Once {
        return once;
    }
    let owed = OWED.get() + share * bytes as f64;
    let waits = share > 0.0 && owed >= bytes as f64 / 2.0;
    OWED.set(if waits { owed - bytes as f64 } else { owed });
    waits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_kept_and_spread() {
        let sizes: Vec<usize> = (0..400).map(|i| LEAST << (i * 7 % 5)).collect();
        let all: usize = sizes.iter().sum();
        for share in [0.0, 0.1, 0.37, 0.5, 0.93, 1.0] {
            let parked = Device::Cpu.parking(Parking { share, ..Parking::default() }, || {
                sizes.iter().map(|bytes| if waits(Turn::Always, *bytes) { *bytes } else { 0 }).collect::<Vec<_>>()
            });
            let largest = (LEAST << 4) as f64;
            let mut before = (0.0, 0.0);
            for (size, parked) in sizes.iter().zip(&parked) {
                before = (before.0 + *size as f64, before.1 + *parked as f64);
                assert!((before.0 * share - before.1).abs() <= largest, "{share}: {before:?}");
            }
            let sum: usize = parked.iter().sum();
            assert!((sum as f64 - share * all as f64).abs() <= largest / 2.0, "{share}: {sum} of {all}");
        }
        // Outside of such work nothing waits, and small weights never do.
        assert!(!waits(Turn::Always, 1 << 30) && !waits(Turn::Once, 1 << 30));
        Device::Cpu.parking(Parking { share: 1.0, once: true, plain: true }, || {
            assert!(waits(Turn::Always, LEAST) && waits(Turn::Once, LEAST) && !waits(Turn::Once, LEAST - 1));
        });
    }
}
