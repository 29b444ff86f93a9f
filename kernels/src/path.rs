//! Which instructions run, decided once at run time.
//!
//! Invariants
//! - **P1** every path gives the same bits. All of them perform the same correctly rounded operations (`+ - * /`, square
//!   root, fused multiply-add) in the same order; a path only chooses how many lanes go at once.
//! - **P2** a [`Path`] exists only where its instructions do: that makes calling the copies compiled for them sound.
//! - **P3** the dot products of bf16 pairs count as there only where they gave the bits of the definition ([`tile`](crate), C2)
//!   when they were tried, so that another vendor's rounding could not go unnoticed.
use std::fmt;
use std::sync::OnceLock;

/// An instruction set that the kernels are compiled for and this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Path(Set);

/// The instruction sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Set {
    /// 512-bit vectors and dot products of bf16 pairs and of bytes (x86-64 with AVX-512 F, VL, BW, DQ, VNNI, BF16).
    Avx512Bf16,
    /// 512-bit vectors and dot products of bytes (x86-64 with AVX-512 F, VL, BW, DQ, VNNI).
    Avx512Vnni,
    /// 512-bit vectors (x86-64 with AVX-512 F, VL, BW, DQ).
    Avx512,
    /// 256-bit vectors with fused multiply-add (x86-64 with AVX2 and FMA).
    Avx2,
    /// Plain Rust for the compilation's baseline.
    Portable,
}

/// Forces a path: `avx512bf16`, `avx512vnni`, `avx512`, `avx2` or `portable`. A path that this machine lacks is ignored.
pub const PATH_VARIABLE: &str = "COHORT_KERNELS";

impl Path {
    /// Runs on every machine.
    pub const PORTABLE: Self = Self(Set::Portable);

    /// The best path of this machine, or the one that [`PATH_VARIABLE`] names. Read once per process.
    #[must_use]
    pub fn detect() -> Self {
        static DETECTED: OnceLock<Path> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            let forced = std::env::var(PATH_VARIABLE).ok().and_then(|name| Self::named(&name));
            forced.or_else(|| Self::available().first().copied()).unwrap_or(Self::PORTABLE)
        })
    }

    /// Every path of this machine, best first, [`Path::PORTABLE`] last.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let all = [Set::Avx512Bf16, Set::Avx512Vnni, Set::Avx512, Set::Avx2, Set::Portable];
        all.into_iter().filter(|set| set.is_supported()).map(Self).collect()
    }

    /// The path of this [`name`](Self::name), if this machine has it.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::available().into_iter().find(|path| path.name() == name)
    }

    /// The name that [`PATH_VARIABLE`] takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Avx512Bf16 => "avx512bf16",
            Set::Avx512Vnni => "avx512vnni",
            Set::Avx512 => "avx512",
            Set::Avx2 => "avx2",
            Set::Portable => "portable",
        }
    }

    /// Whether its vectors have fewer than 512 bits.
    #[inline(always)]
    pub(crate) fn is_narrow(self) -> bool {
        matches!(self.0, Set::Avx2 | Set::Portable)
    }

    /// What to run.
    #[inline(always)]
    pub(crate) fn set(self) -> Set {
        self.0
    }
}

impl Set {
    #[cfg(target_arch = "x86_64")]
    fn is_supported(self) -> bool {
        match self {
            Self::Avx512Bf16 => {
                is_x86_feature_detected!("avx512bf16") && Self::Avx512Vnni.is_supported() && crate::tile::pairs_agree()
            }
            Self::Avx512Vnni => is_x86_feature_detected!("avx512vnni") && Self::Avx512.is_supported(),
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && Self::Avx2.is_supported()
            }
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_supported(self) -> bool {
        self == Self::Portable
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Defines a function whose one body is compiled for every [`Path`]; the path comes as an extra first argument.
///
/// The body must be made of slices, fixed arrays and `#[inline(always)]` functions for the compiler to use the wider
/// vectors.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[expect(unsafe_code, reason = "calls the copies compiled for instructions that were detected")]
        #[allow(clippy::too_many_arguments, reason = "kernels take plain slices")]
        $vis fn $name(path: $crate::path::Path, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

            match path.set() {
                // SAFETY: the path exists, so the machine has these instructions (P2).
                #[cfg(target_arch = "x86_64")]
                $crate::path::Set::Avx512Bf16 | $crate::path::Set::Avx512Vnni | $crate::path::Set::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::path::Set::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use kernel;

#[cfg(test)]
mod tests {
    use super::Path;

    #[test]
    fn the_portable_path_is_always_last() {
        let paths = Path::available();
        assert_eq!(paths.last(), Some(&Path::PORTABLE));
        assert!(paths.contains(&Path::detect()));
        assert!(paths.iter().all(|path| Path::named(path.name()) == Some(*path)));
        assert_eq!(Path::named("mmx"), None);
    }
}
