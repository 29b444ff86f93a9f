//! One rank: every sum is its own.
use super::{Collective, CollectiveError};
use std::ops::Range;

/// A group of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Solo;

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn check(&self) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn all_reduce(&mut self, _data: &mut [f32]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn broadcast(&mut self, _data: &mut [f32]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn all_gather(&mut self, _data: &mut [f32], _parts: &[Range<usize>]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn gather(&mut self, own: Vec<u8>) -> Result<Vec<Vec<u8>>, CollectiveError> {
        Ok(vec![own])
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn abort(&mut self, _why: &str) {}
}
