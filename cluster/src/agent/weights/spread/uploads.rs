//! How many chunks are under way, from whom.
use super::Source;

/// Chunks under way.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    /// By [`Uploads::place`].
    from: Vec<usize>,
    all: usize,
}

impl Uploads {
    fn place(source: Source) -> usize {
        match source {
            Source::Head => 0,
            Source::Host(host) => usize::from(host) + 1,
        }
    }

    /// From one source.
    pub(super) fn of(&self, source: Source) -> usize {
        self.from.get(Self::place(source)).copied().unwrap_or_default()
    }

    /// One more.
    pub(super) fn begun(&mut self, source: Source) {
        let place = Self::place(source);
        if place >= self.from.len() {
            self.from.resize(place + 1, 0);
        }
        self.from[place] += 1;
        self.all += 1;
    }

    /// One fewer.
    pub(super) fn ended(&mut self, source: Source) {
        if let Some(count) = self.from.get_mut(Self::place(source)).filter(|count| **count > 0) {
            *count -= 1;
            self.all -= 1;
        }
    }

    /// Whether nothing at all is under way.
    pub(super) fn none(&self) -> bool {
        self.all == 0
    }
}
