//! The one run-time choice of instruction set.

use std::sync::OnceLock;

/// Instruction sets with code of their own, poorest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    /// Whatever the compiler's baseline has.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX-512 with bf16 products.
    Avx512Bf16,
    /// The same and AMX tiles of bf16.
    Amx,
}

/// Whether `SAMEFACE_ISA=amx` asks for every use of AMX by name.
pub(crate) fn amx_by_name() -> bool {
    static NAMED: OnceLock<bool> = OnceLock::new();
    *NAMED.get_or_init(|| std::env::var("SAMEFACE_ISA").is_ok_and(|wish| wish == "amx"))
}

/// The best instruction set here, or the poorer one that `SAMEFACE_ISA` (`avx512bf16`, `avx512`, `avx2`,
/// `portable`) names, which lets tests cover each path on one machine. `amx` is the best one with attention in tiles.
pub(crate) fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let wish = match std::env::var("SAMEFACE_ISA").as_deref() {
            Ok("portable") => Isa::Portable,
            Ok("avx2") => Isa::Avx2,
            Ok("avx512") => Isa::Avx512,
            Ok("avx512bf16") => Isa::Avx512Bf16,
            _ => Isa::Amx,
        };
        wish.min(best())
    })
}

#[cfg(target_arch = "x86_64")]
fn best() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512, avx512 && is_x86_feature_detected!("avx512bf16")) {
        (_, _, true) if super::amx::available() => Isa::Amx,
        (_, _, true) => Isa::Avx512Bf16,
        (_, true, _) => Isa::Avx512,
        (true, _, _) => Isa::Avx2,
        _ => Isa::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn best() -> Isa {
    Isa::Portable
}

/// Compiles a function once for each instruction set and picks one at run time. The body is plain Rust
/// that the compiler vectorises; it must not depend on the instruction set for its result.
macro_rules! simd {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$T:ident : $B:path>)? ($($a:ident : $t:ty),* $(,)?) $(-> $r:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<$T: $B>)? ($($a: $t),*) $(-> $r)? {
            #[inline(always)]
            fn body $(<$T: $B>)? ($($a: $t),*) $(-> $r)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                unsafe fn avx512 $(<$T: $B>)? ($($a: $t),*) $(-> $r)? {
                    body $(::<$T>)? ($($a),*)
                }
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2 $(<$T: $B>)? ($($a: $t),*) $(-> $r)? {
                    body $(::<$T>)? ($($a),*)
                }
                use $crate::cpu::isa::{Isa, isa};
                // SAFETY: `isa` reports only what this processor has.
                match isa() {
                    Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => return unsafe { avx512 $(::<$T>)? ($($a),*) },
                    Isa::Avx2 => return unsafe { avx2 $(::<$T>)? ($($a),*) },
                    Isa::Portable => {}
                }
            }
            body $(::<$T>)? ($($a),*)
        }
    };
}
pub(crate) use simd;
