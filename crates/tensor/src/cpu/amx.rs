//! Tiles of Intel's AMX: products of bf16 pairs with f32 accumulation, by inline assembly, since the compiler has
//! neither the registers nor the instructions in its stable part.
//!
//! With the feature `imitated-tiles` loops do the same, so that what is built on tiles can be tested on processors without.
//!
//! A tile register holds 16 rows of 64 bytes. Packed columns (see `micro`) are right-hand tiles as they lie, rows of a
//! matrix are left-hand tiles as they lie. Bound: the tile unit, 16 cycles for each of the four products of a step,
//! beside four tile loads, of twelve beside eight for numbers in two parts.
//!
//! These hide behind the products only while tile registers are free to be written ahead. A core whose other thread is busy has
//! few, so tiles are zeroed as soon as they are read for the last time, which frees theirs, and are loaded so late that few
//! live at once: half as fast again there, and no slower elsewhere.

#[cfg(target_arch = "x86_64")]
mod single;

use super::micro::NR;

/// Rows of a block: two tiles.
pub(crate) const ROWS: usize = 32;
/// Units of depth of one step; operands are padded with zeros to whole steps.
pub(crate) const STEP: usize = 16;

/// Rows of the left-hand side: where two tiles of them begin, and units from one row to the next.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) tiles: [*const u32; 2],
    pub(crate) row: usize,
    /// Units from there to the second part of numbers that are [split](super::split).
    pub(crate) low: usize,
}

impl Left {
    /// Rows packed step after step ([`PACKED`]): rows at large powers of two of each other would share few sets of the
    /// first-level cache.
    pub(crate) fn packed(a: *const u32) -> Left {
        Left { tiles: [a, a.wrapping_add(ROWS / 2 * STEP)], row: STEP, low: ROWS * STEP }
    }
}

/// How both sides of a product come from the second-level cache, columns a step ahead of their use.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Fetch {
    /// Through the first-level cache.
    Near,
    /// Rows past that cache, where columns then stay from one group of rows to the next.
    Past,
}

/// Bytes that a product fetches ahead in each step: of eight groups of rows each, a panel's share.
pub(crate) const AHEAD: usize = 256;

/// Most steps that one product takes.
pub(crate) const MOST_STEPS: usize = 512;

/// Where each step of rows lies, in bytes, that are packed step after step.
pub(crate) static PACKED: [usize; MOST_STEPS] = steps(4 * ROWS * STEP);
/// The same of rows in two parts, [`ROWS`] of the first before those of the second.
pub(crate) static PACKED_SPLIT: [usize; MOST_STEPS] = steps(2 * 4 * ROWS * STEP);
/// The same of rows in three parts.
pub(crate) static PACKED_THIRDS: [usize; MOST_STEPS] = steps(3 * 4 * ROWS * STEP);

const fn steps(bytes: usize) -> [usize; MOST_STEPS] {
    let mut all = [0; MOST_STEPS];
    let mut i = 0;
    while i < MOST_STEPS {
        all[i] = i * bytes;
        i += 1;
    }
    all
}

/// Whether this processor has bf16 tiles, whatever its system lets processes use.
#[cfg(target_arch = "x86_64")]
pub(crate) fn on_chip() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const TILES_AND_BF16: u32 = 1 << 24 | 1 << 22;
    #[allow(unused_unsafe)] // not unsafe in later versions of Rust
    unsafe {
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILES_AND_BF16 == TILES_AND_BF16
    }
}

/// Whether this processor has bf16 tiles and the kernel lets this process use them, for which it is asked.
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(feature = "imitated-tiles")))]
pub(crate) fn available() -> bool {
    const SYS_ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    if !on_chip() {
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

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(feature = "imitated-tiles"))))]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only x86-64 asks"))]
pub(crate) fn available() -> bool {
    cfg!(feature = "imitated-tiles")
}

/// Instructions that do nothing: a core with few tile registers has waited some 20 cycles more where tile instructions lay less
/// than eight instructions apart, others do them for nothing.
#[cfg(all(target_arch = "x86_64", not(feature = "imitated-tiles")))]
macro_rules! gap {
    () => {
        "nop\nnop\nnop\nnop\nnop\nnop\nnop\nnop"
    };
}

/// As [`gap`] with four instructions that fetch lines of the next step's columns, so many bytes from where this one's begin,
/// into the first-level cache.
#[cfg(all(target_arch = "x86_64", not(feature = "imitated-tiles")))]
macro_rules! columns {
    ($($bytes:literal),*) => {
        concat!($("prefetcht0 [{b} + ", $bytes, "]\n",)* "nop\nnop\nnop\nnop")
    };
}

/// The accumulators from memory or, where `$accumulate` is 0, zeros.
#[cfg(all(target_arch = "x86_64", not(feature = "imitated-tiles")))]
macro_rules! load_accumulators {
    ($accumulate:literal) => {
        concat!(
            "test {",
            $accumulate,
            ":e}, {",
            $accumulate,
            ":e}\njz 2f\n",
            "tileloadd tmm0, [{c} + {line}*1]\n",
            gap!(),
            "\n",
            "tileloadd tmm1, [{c} + {line}*1 + 64]\n",
            gap!(),
            "\n",
            "tileloadd tmm2, [{c} + {line}*1 + 2048]\n",
            gap!(),
            "\n",
            "tileloadd tmm3, [{c} + {line}*1 + 2112]\n",
            gap!(),
            "\n",
            "jmp 5f\n2:\n",
            "tilezero tmm0\n",
            gap!(),
            "\ntilezero tmm1\n",
            gap!(),
            "\n",
            "tilezero tmm2\n",
            gap!(),
            "\ntilezero tmm3\n",
            gap!(),
            "\n5:",
        )
    };
}

/// The accumulators to memory.
#[cfg(all(target_arch = "x86_64", not(feature = "imitated-tiles")))]
macro_rules! store_accumulators {
    () => {
        concat!(
            "tilestored [{c} + {line}*1], tmm0\ntilezero tmm0\n",
            gap!(),
            "\ntilestored [{c} + {line}*1 + 64], tmm1\ntilezero tmm1\n",
            gap!(),
            "\ntilestored [{c} + {line}*1 + 2048], tmm2\ntilezero tmm2\n",
            gap!(),
            "\ntilestored [{c} + {line}*1 + 2112], tmm3\ntilezero tmm3",
        )
    };
}

/// The steps of a product, whose rows `$load` loads. At most three tiles of operands live at once.
#[cfg(all(target_arch = "x86_64", not(feature = "imitated-tiles")))]
macro_rules! product_steps {
    ($load:literal) => {
        concat!(
            "3:\n",
            "mov {x}, [{at}]\n",
            "lea {y}, [{a16} + {x}]\n",
            "add {x}, {a}\n",
            $load,
            " tmm4, [{x} + {row}*1]\n",
            columns!(2048, 2112, 2176, 2240),
            "\ntileloadd tmm6, [{b} + {line}*1]\n",
            columns!(2304, 2368, 2432, 2496),
            "\ntdpbf16ps tmm0, tmm4, tmm6\n",
            columns!(2560, 2624, 2688, 2752),
            "\ntileloadd tmm7, [{b} + {line}*1 + 64]\n",
            columns!(2816, 2880, 2944, 3008),
            "\ntdpbf16ps tmm1, tmm4, tmm7\n",
            "tilezero tmm4\n",
            columns!(3072, 3136, 3200, 3264),
            "\n",
            $load,
            " tmm5, [{y} + {row}*1]\n",
            columns!(3328, 3392, 3456, 3520),
            "\ntdpbf16ps tmm3, tmm5, tmm7\n",
            "tilezero tmm7\n",
            columns!(3584, 3648, 3712, 3776),
            "\ntdpbf16ps tmm2, tmm5, tmm6\n",
            "tilezero tmm5\n",
            "tilezero tmm6\n",
            columns!(3840, 3904, 3968, 4032),
            "\nprefetcht1 [{ahead}]\n",
            "prefetcht1 [{ahead} + 64]\n",
            "prefetcht1 [{ahead} + 128]\n",
            "prefetcht1 [{ahead} + 192]\n",
            "add {ahead}, 256\n",
            "add {b}, 2048\n",
            "add {at}, 8\n",
            "dec {steps}\n",
            "jnz 3b",
        )
    };
}

/// The tile registers of this thread, configured while this lives.
pub(crate) struct Tiles(());

#[cfg(all(target_arch = "x86_64", not(feature = "imitated-tiles")))]
impl Tiles {
    /// Configures the tile registers of this thread.
    ///
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

    /// `c[r][j] (+)= sum over units of a[r][unit] * b[unit][j]` for [`ROWS`] rows and [`NR`] columns, both `c` and `b` row
    /// after row, over a step of [`STEP`] units for each of `steps`, which say where it lies in the rows. What lies from
    /// `ahead` on is fetched into the second-level cache, [`AHEAD`] bytes a step.
    ///
    /// # Safety
    /// All of that but `ahead` lies in memory, and there is a step.
    pub(crate) unsafe fn product(
        &self,
        steps: &[usize],
        a: Left,
        b: *const u32,
        c: *mut f32,
        accumulate: bool,
        ahead: *const u32,
        fetch: Fetch,
    ) {
        macro_rules! product {
            ($load:literal) => {
                std::arch::asm!(
                    load_accumulators!("accumulate"),
                    product_steps!($load),
                    store_accumulators!(),
                    accumulate = in(reg) u32::from(accumulate),
                    steps = inout(reg) steps.len() => _,
                    at = inout(reg) steps.as_ptr() => _,
                    x = out(reg) _,
                    y = out(reg) _,
                    ahead = inout(reg) ahead => _,
                    a = in(reg) a.tiles[0],
                    a16 = in(reg) a.tiles[1],
                    row = in(reg) a.row * 4,
                    b = inout(reg) b => _,
                    c = in(reg) c,
                    line = in(reg) NR * 4,
                    options(nostack)
                )
            };
        }
        // SAFETY: reads and writes what the caller promised.
        unsafe {
            match fetch {
                Fetch::Near => product!("tileloadd"),
                Fetch::Past => product!("tileloaddt1"),
            }
        }
    }

    /// As [`Tiles::product`] of numbers in two parts: the sum of the first part of `a` times the second of `b`, the first
    /// times the first, and the second times the first. Each step of columns is [`STEP`] rows of their first parts before
    /// as many of their second; twice [`AHEAD`] bytes are fetched ahead in each.
    ///
    /// Eight loads serve twelve products, where [`Tiles::product`] has four for four.
    ///
    /// # Safety
    /// As [`Tiles::product`].
    pub(crate) unsafe fn product_split(
        &self,
        steps: &[usize],
        a: Left,
        b: *const u32,
        c: *mut f32,
        accumulate: bool,
        ahead: *const u32,
    ) {
        // SAFETY: reads and writes what the caller promised.
        unsafe {
            std::arch::asm!(
                load_accumulators!("x"),
                "3:",
                "mov {x}, [{at}]",
                "lea {y}, [{a16} + {x}]",
                "add {x}, {a}",
                // The first part of the rows with the second of the columns,
                "tileloadd tmm4, [{x} + {row}*1]",
                columns!(4096, 4160, 4224, 4288),
                "tileloadd tmm6, [{b} + {line}*1 + 2048]",
                columns!(4352, 4416, 4480, 4544),
                "tdpbf16ps tmm0, tmm4, tmm6",
                columns!(4608, 4672, 4736, 4800),
                "tileloadd tmm5, [{y} + {row}*1]",
                columns!(4864, 4928, 4992, 5056),
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tilezero tmm6",
                columns!(5120, 5184, 5248, 5312),
                "tileloadd tmm7, [{b} + {line}*1 + 2112]",
                columns!(5376, 5440, 5504, 5568),
                "tdpbf16ps tmm1, tmm4, tmm7",
                columns!(5632, 5696, 5760, 5824),
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tilezero tmm7",
                columns!(5888, 5952, 6016, 6080),
                // with their first,
                "tileloadd tmm6, [{b} + {line}*1]",
                columns!(6144, 6208, 6272, 6336),
                "tdpbf16ps tmm0, tmm4, tmm6",
                columns!(6400, 6464, 6528, 6592),
                "tdpbf16ps tmm2, tmm5, tmm6",
                columns!(6656, 6720, 6784, 6848),
                "tileloadd tmm7, [{b} + {line}*1 + 64]",
                columns!(6912, 6976, 7040, 7104),
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tilezero tmm4",
                columns!(7168, 7232, 7296, 7360),
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tilezero tmm5",
                columns!(7424, 7488, 7552, 7616),
                "add {x}, {low}",
                "add {y}, {low}",
                // and the second part of the rows with that.
                "tileloadd tmm4, [{x} + {row}*1]",
                columns!(7680, 7744, 7808, 7872),
                "tdpbf16ps tmm0, tmm4, tmm6",
                columns!(7936, 8000, 8064, 8128),
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tilezero tmm4",
                "prefetcht1 [{ahead}]",
                "prefetcht1 [{ahead} + 64]",
                "prefetcht1 [{ahead} + 128]",
                "prefetcht1 [{ahead} + 192]",
                "nop\nnop\nnop\nnop",
                "tileloadd tmm5, [{y} + {row}*1]",
                "prefetcht1 [{ahead} + 256]",
                "prefetcht1 [{ahead} + 320]",
                "prefetcht1 [{ahead} + 384]",
                "prefetcht1 [{ahead} + 448]",
                "nop\nnop\nnop\nnop",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tilezero tmm6",
                gap!(),
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tilezero tmm5",
                "tilezero tmm7",
                "add {ahead}, 512",
                "add {b}, 4096",
                "add {at}, 8",
                "dec {steps}",
                "jnz 3b",
                store_accumulators!(),
                steps = inout(reg) steps.len() => _,
                at = inout(reg) steps.as_ptr() => _,
                x = inout(reg) usize::from(accumulate) => _,
                y = out(reg) _,
                ahead = inout(reg) ahead => _,
                a = in(reg) a.tiles[0],
                a16 = in(reg) a.tiles[1],
                row = in(reg) a.row * 4,
                low = in(reg) a.low * 4,
                b = inout(reg) b => _,
                c = in(reg) c,
                line = in(reg) NR * 4,
                options(nostack)
            );
        }
    }

    /// As [`Tiles::product_split`] of numbers in three parts: all products of parts but those that a f32 has no room for.
    ///
    /// Fourteen loads serve 24 products.
    ///
    /// # Safety
    /// As [`Tiles::product`].
    pub(crate) unsafe fn product_thirds(
        &self,
        steps: &[usize],
        a: Left,
        b: *const u32,
        c: *mut f32,
        accumulate: bool,
        ahead: *const u32,
    ) {
        // SAFETY: reads and writes what the caller promised.
        unsafe {
            std::arch::asm!(
                load_accumulators!("x"),
                "3:",
                "mov {x}, [{at}]",
                "lea {y}, [{a16} + {x}]",
                "add {x}, {a}",
                // The first part of the rows with the third of the columns,
                "tileloadd tmm4, [{x} + {row}*1]",
                columns!(6144, 6208, 6272, 6336),
                "tileloadd tmm6, [{b} + {line}*1 + 4096]",
                columns!(6400, 6464, 6528, 6592),
                "tdpbf16ps tmm0, tmm4, tmm6",
                columns!(6656, 6720, 6784, 6848),
                "tileloadd tmm5, [{y} + {row}*1]",
                columns!(6912, 6976, 7040, 7104),
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tilezero tmm6",
                columns!(7168, 7232, 7296, 7360),
                "tileloadd tmm7, [{b} + {line}*1 + 4160]",
                columns!(7424, 7488, 7552, 7616),
                "tdpbf16ps tmm1, tmm4, tmm7",
                columns!(7680, 7744, 7808, 7872),
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tilezero tmm7",
                columns!(7936, 8000, 8064, 8128),
                // with their second,
                "tileloadd tmm6, [{b} + {line}*1 + 2048]",
                columns!(8192, 8256, 8320, 8384),
                "tdpbf16ps tmm0, tmm4, tmm6",
                columns!(8448, 8512, 8576, 8640),
                "tdpbf16ps tmm2, tmm5, tmm6",
                columns!(8704, 8768, 8832, 8896),
                "tileloadd tmm7, [{b} + {line}*1 + 2112]",
                columns!(8960, 9024, 9088, 9152),
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tilezero tmm4",
                columns!(9216, 9280, 9344, 9408),
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tilezero tmm5",
                columns!(9472, 9536, 9600, 9664),
                "add {x}, {low}",
                "add {y}, {low}",
                // the second with that,
                "tileloadd tmm4, [{x} + {row}*1]",
                columns!(9728, 9792, 9856, 9920),
                "tdpbf16ps tmm0, tmm4, tmm6",
                columns!(9984, 10048, 10112, 10176),
                "tdpbf16ps tmm1, tmm4, tmm7",
                columns!(10240, 10304, 10368, 10432),
                "tileloadd tmm5, [{y} + {row}*1]",
                columns!(10496, 10560, 10624, 10688),
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tilezero tmm6",
                columns!(10752, 10816, 10880, 10944),
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tilezero tmm7",
                columns!(11008, 11072, 11136, 11200),
                // and with the first,
                "tileloadd tmm6, [{b} + {line}*1]",
                columns!(11264, 11328, 11392, 11456),
                "tdpbf16ps tmm0, tmm4, tmm6",
                columns!(11520, 11584, 11648, 11712),
                "tdpbf16ps tmm2, tmm5, tmm6",
                columns!(11776, 11840, 11904, 11968),
                "tileloadd tmm7, [{b} + {line}*1 + 64]",
                columns!(12032, 12096, 12160, 12224),
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tilezero tmm4",
                gap!(),
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tilezero tmm5",
                gap!(),
                "sub {x}, {low}",
                "sub {y}, {low}",
                // the first with that
                "tileloadd tmm4, [{x} + {row}*1]",
                gap!(),
                "tdpbf16ps tmm0, tmm4, tmm6",
                gap!(),
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tilezero tmm4",
                gap!(),
                "tileloadd tmm5, [{y} + {row}*1]",
                gap!(),
                "tdpbf16ps tmm2, tmm5, tmm6",
                gap!(),
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tilezero tmm5",
                gap!(),
                "lea {x}, [{x} + {low}*2]",
                "lea {y}, [{y} + {low}*2]",
                // and the third with it.
                "tileloadd tmm4, [{x} + {row}*1]",
                gap!(),
                "tdpbf16ps tmm0, tmm4, tmm6",
                gap!(),
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tilezero tmm4",
                gap!(),
                "tileloadd tmm5, [{y} + {row}*1]",
                gap!(),
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tilezero tmm6",
                gap!(),
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tilezero tmm5",
                "tilezero tmm7",
                gap!(),
                "prefetcht1 [{ahead}]",
                "prefetcht1 [{ahead} + 64]",
                "prefetcht1 [{ahead} + 128]",
                "prefetcht1 [{ahead} + 192]",
                "prefetcht1 [{ahead} + 256]",
                "prefetcht1 [{ahead} + 320]",
                "prefetcht1 [{ahead} + 384]",
                "prefetcht1 [{ahead} + 448]",
                "prefetcht1 [{ahead} + 512]",
                "prefetcht1 [{ahead} + 576]",
                "prefetcht1 [{ahead} + 640]",
                "prefetcht1 [{ahead} + 704]",
                "add {ahead}, 768",
                "add {b}, 6144",
                "add {at}, 8",
                "dec {steps}",
                "jnz 3b",
                store_accumulators!(),
                steps = inout(reg) steps.len() => _,
                at = inout(reg) steps.as_ptr() => _,
                x = inout(reg) usize::from(accumulate) => _,
                y = out(reg) _,
                ahead = inout(reg) ahead => _,
                a = in(reg) a.tiles[0],
                a16 = in(reg) a.tiles[1],
                row = in(reg) a.row * 4,
                low = in(reg) a.low * 4,
                b = inout(reg) b => _,
                c = in(reg) c,
                line = in(reg) NR * 4,
                options(nostack)
            );
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(feature = "imitated-tiles")))]
impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: only configured tiles make this value. Released, they need not be saved at every change of thread.
        unsafe { std::arch::asm!("tilerelease", options(nostack, nomem)) };
    }
}

#[cfg(not(all(target_arch = "x86_64", not(feature = "imitated-tiles"))))]
impl Tiles {
    /// There is nothing to configure.
    pub(crate) unsafe fn configure() -> Tiles {
        Tiles(())
    }

    /// The same product as loops.
    ///
    /// # Safety
    /// As with the instructions.
    pub(crate) unsafe fn product(
        &self,
        steps: &[usize],
        a: Left,
        b: *const u32,
        c: *mut f32,
        accumulate: bool,
        _ahead: *const u32,
        _fetch: Fetch,
    ) {
        // SAFETY: as the caller promised.
        unsafe { imitate(steps, a, b, c, accumulate, &[(0, 0)]) };
    }

    /// The same product as loops.
    ///
    /// # Safety
    /// As with the instructions.
    pub(crate) unsafe fn product_split(
        &self,
        steps: &[usize],
        a: Left,
        b: *const u32,
        c: *mut f32,
        accumulate: bool,
        _ahead: *const u32,
    ) {
        // SAFETY: as the caller promised.
        unsafe { imitate(steps, a, b, c, accumulate, &[(0, 1), (0, 0), (1, 0)]) };
    }

    /// The same product as loops.
    ///
    /// # Safety
    /// As with the instructions.
    pub(crate) unsafe fn product_thirds(
        &self,
        steps: &[usize],
        a: Left,
        b: *const u32,
        c: *mut f32,
        accumulate: bool,
        _ahead: *const u32,
    ) {
        let parts = [(0, 2), (0, 1), (1, 1), (1, 0), (0, 0), (2, 0)];
        // SAFETY: as the caller promised.
        unsafe { imitate(steps, a, b, c, accumulate, &parts) };
    }
}

/// The products of these parts of both sides; as many parts of a step of columns lie there as the greatest of them says.
///
/// # Safety
/// As [`Tiles::product`].
#[cfg(not(all(target_arch = "x86_64", not(feature = "imitated-tiles"))))]
unsafe fn imitate(steps: &[usize], a: Left, b: *const u32, c: *mut f32, accumulate: bool, parts: &[(usize, usize)]) {
    let [low, high] = [|x: u32| f32::from_bits(x << 16), |x: u32| f32::from_bits(x & 0xffff_0000)];
    let most = parts.iter().fold(0, |most, part| most.max(part.1)) + 1;
    // SAFETY: the caller promised a block.
    let c = unsafe { std::slice::from_raw_parts_mut(c, ROWS * NR) };
    for (r, row) in c.chunks_exact_mut(NR).enumerate() {
        if !accumulate {
            row.fill(0.0);
        }
        for (step, at) in steps.iter().enumerate() {
            for &(of_a, of_b) in parts {
                for unit in 0..STEP {
                    // SAFETY: the caller promised these units.
                    let (x, b) = unsafe {
                        let x = a.tiles[r / (ROWS / 2)].add(at / 4 + r % (ROWS / 2) * a.row + of_a * a.low + unit);
                        let b = b.add(((step * most + of_b) * STEP + unit) * NR);
                        (*x, std::slice::from_raw_parts(b, NR))
                    };
                    row.iter_mut().zip(b).for_each(|(o, b)| *o += low(x) * low(*b) + high(x) * high(*b));
                }
            }
        }
    }
}
