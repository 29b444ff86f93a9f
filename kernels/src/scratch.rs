//! Per-thread working memory that is kept between calls.
use crate::Buffer;
use std::cell::RefCell;

thread_local! {
    static KEPT: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// Lends `len` values of unspecified content; nested uses get memory of their own.
pub(crate) fn with<R>(len: usize, job: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = KEPT.with_borrow_mut(Vec::pop).unwrap_or_default();
    buffer.reserve(len);
    let result = job(&mut buffer[..len]);
    KEPT.with_borrow_mut(|kept| kept.push(buffer));
    result
}
