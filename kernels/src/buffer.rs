//! Large, aligned, zeroed memory for parameters, activations and keys.
//!
//! Pages are mapped zero and cost memory only once touched; big buffers ask for huge pages, which halves the cost of
//! streaming weights.
#![expect(unsafe_code, reason = "owns raw, aligned memory behind slices")]
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const ALIGN: usize = 64;
const HUGE: usize = 2 << 20;

/// A fixed number of `f32`, zero at first, aligned to a cache line (to a huge page when large).
pub struct Buffer {
    start: NonNull<f32>,
    len: usize,
    source: Source,
}

/// Who gave the memory.
#[derive(Clone, Copy)]
enum Source {
    Nobody,
    Heap(Layout),
    /// Start and size of a mapping.
    #[cfg(target_os = "linux")]
    Map(*mut libc::c_void, usize),
}

// SAFETY: the buffer owns its memory alone and hands it out only through `&self` / `&mut self`.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zeros. Aborts as `Vec` does when the system has no memory.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let size = len.saturating_mul(size_of::<f32>());
        let Ok(layout) = Layout::from_size_align(size, ALIGN) else {
            handle_alloc_error(Layout::new::<f32>());
        };
        if size == 0 {
            return Self { start: NonNull::dangling(), len: 0, source: Source::Nobody };
        }
        #[cfg(target_os = "linux")]
        if size >= HUGE {
            return Self::mapped(len, layout);
        }
        // SAFETY: the layout has a size above zero.
        let raw = unsafe { alloc_zeroed(layout) }.cast::<f32>();
        let Some(start) = NonNull::new(raw) else { handle_alloc_error(layout) };
        Self { start, len, source: Source::Heap(layout) }
    }

    /// A private mapping with its start at a huge page's border.
    #[cfg(target_os = "linux")]
    fn mapped(len: usize, layout: Layout) -> Self {
        let size = layout.size() + HUGE;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping touches no existing memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            handle_alloc_error(layout);
        }
        let skip = base.align_offset(HUGE).min(HUGE);
        // SAFETY: `skip` is at most the slack that was mapped in addition.
        let aligned = unsafe { base.byte_add(skip) };
        // SAFETY: inside the mapping; the advice changes no content, and its failure is harmless.
        unsafe { libc::madvise(aligned, layout.size(), libc::MADV_HUGEPAGE) };
        let Some(start) = NonNull::new(aligned.cast::<f32>()) else { handle_alloc_error(layout) };
        Self { start, len, source: Source::Map(base, size) }
    }

    /// Makes room for at least `len` values. When it has to grow, the old content is lost and all is zero.
    pub fn reserve(&mut self, len: usize) {
        if self.len < len {
            *self = Self::zeroed(0); // the old memory goes first, so that both never stand side by side
            *self = Self::zeroed(len);
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `start` points at `len` initialised values (or dangles with length zero), owned by `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.source {
            Source::Nobody => {}
            // SAFETY: allocated by `zeroed` with this layout.
            Source::Heap(layout) => unsafe { dealloc(self.start.as_ptr().cast(), layout) },
            // SAFETY: mapped by `mapped` with this start and size; no slice outlives `self`.
            #[cfg(target_os = "linux")]
            Source::Map(base, size) => unsafe {
                libc::munmap(base, size);
            },
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} f32)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::Buffer;

    #[test]
    fn buffers_are_zero_aligned_and_grow() {
        let mut buffer = Buffer::zeroed(3);
        assert_eq!(&buffer[..], &[0.0; 3]);
        assert_eq!(buffer.as_ptr() as usize % 64, 0);
        buffer[2] = 1.0;
        buffer.reserve(2);
        assert_eq!(buffer[2], 1.0);
        buffer.reserve(1 << 20);
        assert_eq!(buffer.len(), 1 << 20);
        assert!(buffer.iter().all(|x| *x == 0.0));
        assert!(Buffer::default().is_empty());
    }
}
