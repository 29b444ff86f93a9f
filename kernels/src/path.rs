//! Which instructions run, decided once at run time.
//!
//! Invariant **P1**: every path gives the same bits. All of them perform the same correctly rounded operations
//! (`+ - * /`, square root, fused multiply-add) in the same order; a path only chooses how many lanes go at once.
use std::fmt;
use std::sync::OnceLock;

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// 512-bit vectors (x86-64 with AVX-512 F, VL, BW, DQ).
    Avx512,
    /// 256-bit vectors with fused multiply-add (x86-64 with AVX2 and FMA).
    Avx2,
    /// Plain Rust for the compilation's baseline.
    Portable,
}

/// Forces a path: `avx512`, `avx2` or `portable`. A path that this machine lacks is ignored.
pub const PATH_VARIABLE: &str = "COHORT_KERNELS";

impl Path {
    /// The best path of this machine, or the one that [`PATH_VARIABLE`] names. Read once per process.
    #[must_use]
    pub fn detect() -> Self {
        static DETECTED: OnceLock<Path> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            let available = Self::available();
            let forced = std::env::var(PATH_VARIABLE).ok();
            let forced = available.iter().copied().find(|path| forced.as_deref() == Some(path.name()));
            forced.or_else(|| available.first().copied()).unwrap_or(Self::Portable)
        })
    }

    /// Every path of this machine, best first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        [Self::Avx512, Self::Avx2, Self::Portable].into_iter().filter(|path| path.is_supported()).collect()
    }

    /// Whether this machine can run it.
    #[must_use]
    #[cfg(target_arch = "x86_64")]
    pub fn is_supported(self) -> bool {
        match self {
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("fma")
            }
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Portable => true,
        }
    }

    /// Whether this machine can run it.
    #[must_use]
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_supported(self) -> bool {
        self == Self::Portable
    }

    /// The name that [`PATH_VARIABLE`] takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
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
/// vectors. A path that the machine lacks falls back to the portable copy, so that a call is always sound.
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

            debug_assert!(path.is_supported());
            match path {
                // SAFETY: a `Path` of this kind exists only where its instructions were detected (see `Cpu::new`).
                #[cfg(target_arch = "x86_64")]
                $crate::path::Path::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::path::Path::Avx2 => unsafe { avx2($($arg),*) },
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
        assert_eq!(paths.last(), Some(&Path::Portable));
        assert!(paths.contains(&Path::detect()));
    }
}
