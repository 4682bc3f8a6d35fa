//! The one run-time choice of instruction set.

use crate::{Error, Result};
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

impl Isa {
    /// All of them, poorest first.
    const ALL: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];

    /// As `SAMEFACE_ISA` names it.
    fn name(self) -> &'static str {
        ["portable", "avx2", "avx512", "avx512bf16", "amx"][self as usize]
    }

    fn named(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }
}

/// The best instruction set here, or the poorer one that `SAMEFACE_ISA` names (`avx512bf16`, `avx512`, `avx2`,
/// `portable`), which lets tests cover each path on one machine.
pub(crate) fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let wish = std::env::var(VARIABLE).ok().and_then(|name| Isa::named(&name));
        wish.map_or(best(), |wish| wish.min(best()))
    })
}

const VARIABLE: &str = "SAMEFACE_ISA";

/// The name of the instruction set that operators on the CPU use: the best one here, or the one that `SAMEFACE_ISA` names.
///
/// # Errors
/// A name that is none, or of what this processor does not have; operators then use the best they have at most.
pub fn instructions() -> Result<&'static str> {
    let wish = std::env::var_os(VARIABLE);
    chosen(wish.as_ref().map(|wish| wish.to_string_lossy()).as_deref(), best()).map(Isa::name)
}

/// What a wish chooses on a processor whose best is `best`.
fn chosen(wish: Option<&str>, best: Isa) -> Result<Isa> {
    let Some(wish) = wish else { return Ok(best) };
    if let Some(isa) = Isa::named(wish).filter(|isa| *isa <= best) {
        return Ok(isa);
    }
    let why = match Isa::named(wish) {
        Some(_) => ", which this processor or its system does not have",
        None => "",
    };
    let valid: Vec<&str> = Isa::ALL.into_iter().filter(|isa| *isa <= best).map(Isa::name).collect();
    Err(Error::argument(
        VARIABLE,
        format!("it is {wish:?}{why}; valid here are {}, or leave it unset", valid.join(", ")),
    ))
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

#[cfg(test)]
mod tests {
    use super::{Isa, chosen};

    #[test]
    fn wishes_are_met_or_refused_by_name() {
        assert_eq!(chosen(None, Isa::Avx2).unwrap(), Isa::Avx2);
        assert_eq!(chosen(Some("avx2"), Isa::Amx).unwrap(), Isa::Avx2);
        for (wish, best, said) in [
            (
                "amx",
                Isa::Avx2,
                "\"amx\", which this processor or its system does not have; valid here are portable, avx2,",
            ),
            ("AVX2", Isa::Avx2, "\"AVX2\"; valid here are portable, avx2, or leave it unset"),
            ("", Isa::Portable, "\"\"; valid here are portable, or leave it unset"),
        ] {
            let sentence = chosen(Some(wish), best).unwrap_err().to_string();
            assert!(sentence.starts_with("SAMEFACE_ISA: it is ") && sentence.contains(said), "{sentence}");
        }
    }
}
