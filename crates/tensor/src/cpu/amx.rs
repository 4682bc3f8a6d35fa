//! Tiles of Intel's AMX: products of bf16 pairs with f32 accumulation, by inline assembly, since the compiler has
//! neither the registers nor the instructions in its stable part.
//!
//! A tile register holds 16 rows of 64 bytes. Packed columns (see `micro`) are right-hand tiles as they lie, rows of a
//! matrix are left-hand tiles as they lie. Bound: the tile unit, 16 cycles for each of the four products of a step,
//! beside four tile loads.

#[cfg(target_arch = "x86_64")]
use super::micro::NR;

/// Rows of a block: two tiles.
pub(crate) const ROWS: usize = 32;
/// Units of depth of one step; operands are padded with zeros to whole steps.
pub(crate) const STEP: usize = 16;

/// Whether this processor has bf16 tiles and the kernel lets this process use them, for which it is asked.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) fn available() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const TILES_AND_BF16: u32 = 1 << 24 | 1 << 22;
    const SYS_ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    #[allow(unused_unsafe)] // not unsafe in later versions of Rust
    let has = unsafe { __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILES_AND_BF16 == TILES_AND_BF16 };
    if !has {
        return false;
    }
    let mut result = SYS_ARCH_PRCTL;
    // SAFETY: the call takes two numbers and no memory; the kernel overwrites rcx and r11.
    unsafe {
        std::arch::asm!(
            "syscall",
            inout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only x86-64 asks"))]
pub(crate) fn available() -> bool {
    false
}

/// The tile registers of this thread, configured while this lives.
pub(crate) struct Tiles(());

#[cfg(target_arch = "x86_64")]
impl Tiles {
    /// # Safety
    /// [`available`] said yes.
    pub(crate) unsafe fn configure() -> Tiles {
        #[repr(align(64))]
        struct Config([u8; 64]);
        let mut config = Config([0; 64]);
        config.0[0] = 1; // palette
        for tile in 0..8 {
            config.0[16 + 2 * tile] = 64; // bytes of a row
            config.0[48 + tile] = 16; // rows
        }
        // SAFETY: as promised; the configuration is valid.
        unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) config.0.as_ptr(), options(nostack, readonly)) };
        Tiles(())
    }

    /// `c[r * ldc + j] (+)= sum over units of a[r * lda + unit] * b[unit * NR + j]` for [`ROWS`] rows and [`NR`]
    /// columns, over `steps` times [`STEP`] units.
    ///
    /// # Safety
    /// All of that lies in memory, and `steps` is not 0.
    pub(crate) unsafe fn product(
        &self,
        steps: usize,
        a: *const u32,
        lda: usize,
        b: *const u32,
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
    ) {
        // SAFETY: reads and writes what the caller promised.
        unsafe {
            std::arch::asm!(
                "test {accumulate:e}, {accumulate:e}",
                "jz 2f",
                "tileloadd tmm0, [{c} + {ldc}*1]",
                "tileloadd tmm1, [{c} + {ldc}*1 + 64]",
                "tileloadd tmm2, [{c16} + {ldc}*1]",
                "tileloadd tmm3, [{c16} + {ldc}*1 + 64]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "tileloadd tmm4, [{a} + {lda}*1]",
                "tileloadd tmm6, [{b} + {ldb}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a16} + {lda}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{b} + {ldb}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 64",
                "add {a16}, 64",
                "add {b}, 2048",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{c} + {ldc}*1], tmm0",
                "tilestored [{c} + {ldc}*1 + 64], tmm1",
                "tilestored [{c16} + {ldc}*1], tmm2",
                "tilestored [{c16} + {ldc}*1 + 64], tmm3",
                accumulate = in(reg) u32::from(accumulate),
                steps = inout(reg) steps => _,
                a = inout(reg) a => _,
                a16 = inout(reg) a.add(16 * lda) => _,
                lda = in(reg) lda * 4,
                b = inout(reg) b => _,
                ldb = in(reg) NR * 4,
                c = in(reg) c,
                c16 = in(reg) c.add(16 * ldc),
                ldc = in(reg) ldc * 4,
                options(nostack)
            );
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: only configured tiles make this value. Released, they need not be saved at every change of thread.
        unsafe { std::arch::asm!("tilerelease", options(nostack, nomem)) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Tiles {
    /// Never called: [`available`] says no.
    pub(crate) unsafe fn configure() -> Tiles {
        Tiles(())
    }

    /// Never called.
    pub(crate) unsafe fn product(
        &self,
        _: usize,
        _: *const u32,
        _: usize,
        _: *const u32,
        _: *mut f32,
        _: usize,
        _: bool,
    ) {
    }
}
