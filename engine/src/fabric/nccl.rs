//! Sums between GPUs by NCCL. Its own all-reduce adds in an order that depends on the number of ranks and on what it finds
//! of the machine; here it only moves values, and the additions are those of the tree:
//!
//! ```text
//! rank r: parts 0 .. R-1 of its values -- part p to rank p -->  R times part r  --tree-->  the sum's part r  -- to all -->  the sum
//! ```
//!
//! A rank sends and takes 2 (R - 1) / R times the values, as in a ring. No call of NCCL waits; this thread looks up between
//! them, and an error that NCCL has heard, or being told to end, aborts the communicator.
//!
//! Unproven: this has been compiled, and never run on a GPU.
use super::{Fabric, FabricError, Fabrics, Keep};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaSlice};
use cohort_kernels::cuda::Gpu;
use cohort_kernels::cuda::nccl::{Communicator, unique_id};
use cohort_kernels::tree;
use std::fmt;
use std::time::Duration;

/// Values that are on their way at a time: 16 MiB.
const PIECE: usize = 1 << 22;
/// Between two looks at what goes on.
const POLL: Duration = Duration::from_micros(20);

/// NCCL over the first GPU that this process sees.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nccl;

impl Fabrics for Nccl {
    fn kind(&self) -> &'static str {
        "nccl"
    }

    fn invite(&self) -> Result<Vec<u8>, String> {
        unique_id().map(|id| id.to_vec()).map_err(|error| error.to_string())
    }

    fn join(&self, invitation: &[u8], rank: usize, world: usize) -> Result<Box<dyn Fabric>, String> {
        let id = invitation.try_into().map_err(|_| format!("an invitation of {} bytes is none of NCCL's", invitation.len()))?;
        let stream = CudaContext::new(0).and_then(|context| context.new_stream()).map_err(|error| format!("{error:?}"))?;
        let (gpu, room) = (Gpu::new(stream), PIECE.next_multiple_of(world));
        let memory = || gpu.unfilled(room).map_err(|error| error.to_string());
        let (values, parts) = (memory()?, memory()?);
        Ok(Box::new(End { id, rank, world, comm: None, broken: None, values, parts, gpu }))
    }
}

/// One rank's end.
struct End {
    id: [u8; 128],
    rank: usize,
    world: usize,
    comm: Option<Communicator>,
    /// Why it is of no more use (B2).
    broken: Option<FabricError>,
    /// A piece of the values, then of the sum.
    values: CudaSlice<f32>,
    /// This rank's part of the piece, from every rank.
    parts: CudaSlice<f32>,
    gpu: Gpu,
}

impl Fabric for End {
    fn all_reduce(&mut self, data: &mut [f32], keep: &mut Keep<'_>) -> Result<(), FabricError> {
        if let Some(why) = &self.broken {
            return Err(FabricError::Broken(why.to_string()));
        }
        let done = self.reduce(data, keep);
        if let Err(error) = &done {
            (self.broken, self.comm) = (Some(error.clone()), None);
        }
        done
    }
}

impl End {
    fn reduce(&mut self, data: &mut [f32], keep: &mut Keep<'_>) -> Result<(), FabricError> {
        self.gpu.stream().context().bind_to_thread().map_err(broken)?;
        let comm = match self.comm.take() {
            Some(comm) => comm,
            None => {
                let comm = Communicator::connect(self.gpu.stream().clone(), self.id, self.rank, self.world).map_err(said)?;
                settle(&comm, keep)?;
                look(keep, true)?;
                comm
            }
        };
        for piece in data.chunks_mut(PIECE) {
            self.piece(&comm, piece, keep)?;
            look(keep, true)?;
        }
        self.comm = Some(comm);
        Ok(())
    }

    /// One piece of at most [`PIECE`] values.
    fn piece(&mut self, comm: &Communicator, data: &mut [f32], keep: &mut Keep<'_>) -> Result<(), FabricError> {
        let part = data.len().div_ceil(self.world);
        self.gpu.stream().memcpy_htod(data, &mut self.values).map_err(broken)?;
        comm.exchange(&self.values, &mut self.parts, part).map_err(said)?;
        settle(comm, keep)?;
        tree::cuda::sum(&self.gpu, &mut self.parts.slice_mut(..part * self.world), self.world).map_err(said)?;
        comm.gather(&self.parts, &mut self.values, part).map_err(said)?;
        settle(comm, keep)?;
        self.drain(comm, keep)?;
        self.gpu.stream().memcpy_dtoh(&self.values.slice(..data.len()), data).map_err(broken)?;
        self.gpu.stream().synchronize().map_err(broken)
    }

    /// Until the device has done what is queued: NCCL's kernels never end by themselves when another rank is gone.
    fn drain(&self, comm: &Communicator, keep: &mut Keep<'_>) -> Result<(), FabricError> {
        let queued = self.gpu.stream().record_event(None).map_err(broken)?;
        while !queued.is_complete() {
            comm.has_settled().map_err(said)?;
            look(keep, false)?;
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

/// Until NCCL has queued what it was asked for.
fn settle(comm: &Communicator, keep: &mut Keep<'_>) -> Result<(), FabricError> {
    while !comm.has_settled().map_err(said)? {
        look(keep, false)?;
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn look(keep: &mut Keep<'_>, moved: bool) -> Result<(), FabricError> {
    if keep(moved).is_break() { Err(FabricError::Ended) } else { Ok(()) }
}

fn said(error: impl fmt::Display) -> FabricError {
    FabricError::Broken(error.to_string())
}

fn broken(error: impl fmt::Debug) -> FabricError {
    FabricError::Broken(format!("{error:?}"))
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = self.comm.is_some();
        f.debug_struct("Nccl").field("rank", &self.rank).field("world", &self.world).field("connected", &connected).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::ops::ControlFlow;
    use std::time::Instant;

    /// Whether there is a GPU; said loudly where there is none, and a failure where COHORT_REQUIRE_GPU asks for one.
    fn gpu() -> bool {
        let found = CudaContext::device_count();
        if found.as_ref().is_ok_and(|count| *count > 0) {
            return true;
        }
        assert!(std::env::var_os("COHORT_REQUIRE_GPU").is_none(), "COHORT_REQUIRE_GPU is set and there is no GPU: {found:?}");
        std::io::stderr().write_all(format!("SKIPPED: NCCL did not run: {found:?}\n").as_bytes()).unwrap();
        false
    }

    #[test]
    fn one_rank_alone_gets_its_own_values_and_a_second_group_works_after_an_abort() {
        if !gpu() {
            return;
        }
        let alone = || Nccl.join(&Nccl.invite().unwrap(), 0, 1).unwrap();
        let go_on = &mut |_: bool| ControlFlow::Continue(());
        let mut data: Vec<f32> = (0..PIECE + 77).map(|i| i as f32).collect();
        let want = data.clone();
        alone().all_reduce(&mut data, go_on).unwrap();
        assert!(data == want);
        // The other of two ranks never comes: what looks up ends the call, within moments.
        let mut waiting = Nccl.join(&Nccl.invite().unwrap(), 0, 2).unwrap();
        let begun = Instant::now();
        let mut a_second = |_: bool| {
            if begun.elapsed() < Duration::from_secs(1) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        assert_eq!(waiting.all_reduce(&mut data, &mut a_second), Err(FabricError::Ended));
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert!(matches!(waiting.all_reduce(&mut data, go_on), Err(FabricError::Broken(_))), "B2");
        alone().all_reduce(&mut data, go_on).unwrap();
    }
}
