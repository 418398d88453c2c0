//! From an [`Isa`] to the proof of it, and to code that is compiled for it.

use super::Isa;
#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512, avx512bf16::Avx512Bf16, avx512vnni::Avx512Vnni};

/// Evaluates an expression with `$simd` bound to the proof that the function `$proof` gives, compiled for it.
macro_rules! compiled {
    ($proof:ident, $simd:ident => $body:expr) => {{
        use $crate::cpu::simd::Simd as _;
        let $simd = $crate::cpu::simd::$proof();
        $simd.vectorize(
            #[inline(always)]
            || $body,
        )
    }};
}
pub(crate) use compiled;

/// Evaluates an expression with `$simd` bound to the proof of `$isa`, compiled for it.
macro_rules! dispatch {
    ($isa:expr, $simd:ident => $body:expr) => {{
        use $crate::cpu::simd::{self, Isa};
        match $isa {
            Isa::Scalar => simd::compiled!(scalar, $simd => $body),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => simd::compiled!(avx2, $simd => $body),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => simd::compiled!(avx512, $simd => $body),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => simd::compiled!(avx512vnni, $simd => $body),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Amx => simd::compiled!(avx512bf16, $simd => $body),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => simd::compiled!(neon, $simd => $body),
        }
    }};
}
pub(crate) use dispatch;

/// The same for instruction sets with [`IntegerProducts`]; for others `$none`.
macro_rules! dispatch_integers {
    ($isa:expr, $simd:ident => $body:expr, $none:expr) => {{
        use $crate::cpu::simd;
        match $isa {
            #[cfg(target_arch = "x86_64")]
            simd::Isa::Avx2 => simd::compiled!(avx2, $simd => $body),
            #[cfg(target_arch = "x86_64")]
            simd::Isa::Avx512 => simd::compiled!(avx512, $simd => $body),
            #[cfg(target_arch = "x86_64")]
            simd::Isa::Avx512Vnni => simd::compiled!(avx512vnni, $simd => $body),
            #[cfg(target_arch = "x86_64")]
            simd::Isa::Avx512Bf16 | simd::Isa::Amx => simd::compiled!(avx512bf16, $simd => $body),
            _ => {
                // Never; but compiled, and so checked, on every machine.
                if false {
                    let _ = simd::compiled!(scalar, $simd => $body);
                }
                $none
            }
        }
    }};
}
pub(crate) use dispatch_integers;

pub(crate) fn scalar() -> Scalar {
    Scalar
}

/// # Panics
/// Without AVX2. An [`Isa`] comes from [`Isa::available`], or was built by hand.
#[cfg(target_arch = "x86_64")]
pub(crate) fn avx2() -> Avx2 {
    Avx2::detect().expect("Isa::Avx2 on a CPU without it: take an Isa from Isa::available()")
}

/// # Panics
/// Without AVX-512, likewise.
#[cfg(target_arch = "x86_64")]
pub(crate) fn avx512() -> Avx512 {
    Avx512::detect().expect("Isa::Avx512 on a CPU without it: take an Isa from Isa::available()")
}

/// # Panics
/// Without AVX-512 VNNI, likewise.
#[cfg(target_arch = "x86_64")]
pub(crate) fn avx512vnni() -> Avx512Vnni {
    Avx512Vnni::detect().expect("Isa::Avx512Vnni on a CPU without it: take an Isa from Isa::available()")
}

/// # Panics
/// Without AVX-512 BF16, likewise.
#[cfg(target_arch = "x86_64")]
pub(crate) fn avx512bf16() -> Avx512Bf16 {
    Avx512Bf16::detect().expect("Isa::Avx512Bf16 on a CPU without it: take an Isa from Isa::available()")
}

#[cfg(target_arch = "aarch64")]
pub(crate) fn neon() -> Neon {
    Neon::detect()
}

cfg_select! {
    target_arch = "x86_64" => {
        /// The instruction set's lanes of 16 bits, where they are faster than those of 32.
        pub(crate) fn words(isa: Isa) -> Option<Avx512> {
            match isa {
                Isa::Scalar | Isa::Avx2 => None,
                Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 | Isa::Amx => Some(avx512()),
            }
        }
    }
    _ => {
        /// None.
        pub(crate) fn words(_: Isa) -> Option<Scalar> {
            None
        }
    }
}
