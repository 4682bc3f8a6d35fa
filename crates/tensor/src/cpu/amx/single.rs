//! Single instructions on the tile registers, for code that has work of its own to put between them, eight instructions or
//! more. `T`, `C`, `A` and `B` are numbers of registers, from 0 to 7.

#[cfg(feature = "imitated-tiles")]
use super::STEP;
use super::Tiles;

#[cfg(not(feature = "imitated-tiles"))]
impl Tiles {
    /// Makes register `T` zero.
    ///
    /// # Safety
    /// What else uses the registers expects that.
    #[inline(always)]
    pub(crate) unsafe fn zero<const T: usize>(&self) {
        // SAFETY: the registers are configured while `self` lives.
        unsafe { std::arch::asm!("tilezero tmm{t}", t = const T, options(nostack)) };
    }

    /// Loads 16 rows of 64 bytes, `row` bytes from each other.
    ///
    /// # Safety
    /// They lie in memory; what else uses the registers expects that.
    #[inline(always)]
    pub(crate) unsafe fn load<const T: usize>(&self, from: *const u32, row: usize) {
        // SAFETY: as promised.
        unsafe {
            std::arch::asm!("tileloadd tmm{t}, [{from} + {row}*1]", t = const T, from = in(reg) from, row = in(reg) row,
                options(nostack));
        };
    }

    /// As [`Tiles::load`], past the first-level cache.
    #[inline(always)]
    pub(crate) unsafe fn load_past<const T: usize>(&self, from: *const u32, row: usize) {
        // SAFETY: as promised.
        unsafe {
            std::arch::asm!("tileloaddt1 tmm{t}, [{from} + {row}*1]", t = const T, from = in(reg) from, row = in(reg) row,
                options(nostack));
        };
    }

    /// Stores what [`Tiles::load`] loads.
    ///
    /// # Safety
    /// The rows lie in memory that nobody else uses.
    #[inline(always)]
    pub(crate) unsafe fn store<const T: usize>(&self, to: *mut f32, row: usize) {
        // SAFETY: as promised.
        unsafe {
            std::arch::asm!("tilestored [{to} + {row}*1], tmm{t}", t = const T, to = in(reg) to, row = in(reg) row,
                options(nostack));
        };
    }

    /// `C += A B`.
    ///
    /// # Safety
    /// What else uses the registers expects that.
    #[inline(always)]
    pub(crate) unsafe fn multiply<const C: usize, const A: usize, const B: usize>(&self) {
        // SAFETY: the registers are configured while `self` lives.
        unsafe {
            std::arch::asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nostack));
        };
    }
}

#[cfg(feature = "imitated-tiles")]
thread_local! {
    static REGISTERS: std::cell::RefCell<[[u32; 256]; 8]> = const { std::cell::RefCell::new([[0; 256]; 8]) };
}

/// The same as loops.
#[cfg(feature = "imitated-tiles")]
impl Tiles {
    pub(crate) unsafe fn zero<const T: usize>(&self) {
        REGISTERS.with_borrow_mut(|all| all[T].fill(0));
    }

    pub(crate) unsafe fn load<const T: usize>(&self, from: *const u32, row: usize) {
        REGISTERS.with_borrow_mut(|all| {
            for (i, out) in all[T].chunks_exact_mut(STEP).enumerate() {
                // SAFETY: as with the instruction.
                out.copy_from_slice(unsafe { std::slice::from_raw_parts(from.wrapping_byte_add(i * row), STEP) });
            }
        });
    }

    pub(crate) unsafe fn load_past<const T: usize>(&self, from: *const u32, row: usize) {
        unsafe { self.load::<T>(from, row) }
    }

    pub(crate) unsafe fn store<const T: usize>(&self, to: *mut f32, row: usize) {
        REGISTERS.with_borrow_mut(|all| {
            for (i, line) in all[T].chunks_exact(STEP).enumerate() {
                // SAFETY: as with the instruction.
                unsafe { to.cast::<u32>().wrapping_byte_add(i * row).copy_from_nonoverlapping(line.as_ptr(), STEP) };
            }
        });
    }

    pub(crate) unsafe fn multiply<const C: usize, const A: usize, const B: usize>(&self) {
        let half = |x: u32, odd: bool| f32::from_bits(if odd { x & 0xffff_0000 } else { x << 16 });
        REGISTERS.with_borrow_mut(|all| {
            for r in 0..16 {
                for unit in 0..STEP {
                    let a = all[A][r * STEP + unit];
                    for j in 0..16 {
                        let (b, c) = (all[B][unit * 16 + j], &mut all[C][r * 16 + j]);
                        let terms = [false, true].map(|odd| half(a, odd) * half(b, odd));
                        *c = (f32::from_bits(*c) + terms[0] + terms[1]).to_bits();
                    }
                }
            }
        });
    }
}
