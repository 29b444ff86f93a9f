//! Sums between GPUs by NCCL. Its own all-reduce adds in an order that depends on the number of ranks and on what it finds
//! of the machine; here it only moves values, and the additions are those of the tree:
//!
//! ```text
//! rank r: parts 0 .. R-1 of its values -- part p to rank p -->  R times part r  --tree-->  the sum's part r  -- to all -->  the sum
//! ```
//!
//! A rank sends and takes 2 (R - 1) / R times the values, as in a ring.
//!
//! The communicator is non-blocking: no call of NCCL waits, this thread looks up between them, and an error heard then, of NCCL
//! or of a line, aborts it (`ncclCommAbort`), which ends its kernels on the device. The next one is made in the same process.
//!
//! Unproven: this has been compiled, and never run on a GPU.
#![expect(unsafe_code, reason = "NCCL takes addresses of the device")]
use super::fabric::{Fabric, FabricError, Fabrics, Keep};
use cohort_kernels::cuda::{Gpu, GpuError};
use cohort_kernels::tree;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError};
use cudarc::nccl::result::{self, NcclError, NcclStatus};
use cudarc::nccl::sys;
use std::fmt;
use std::mem::size_of;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

/// Values that are on their way at a time: 16 MiB.
const PIECE: usize = 1 << 22;
/// Between two looks at what goes on.
const POLL: Duration = Duration::from_micros(20);
/// Of a configuration that NCCL has not seen, and of a value in it that is NCCL's to choose (nccl.h).
const MAGIC: u32 = 0xcafe_beef;
const UNDEFINED: i32 = i32::MIN;
/// The version whose configuration cudarc declares, as nccl.h writes it: 10,000 major + 100 minor + patch.
const CONFIG_VERSION: u32 = 23_000;

/// NCCL over the first GPU that this process sees.
#[derive(Debug, Clone, Copy)]
pub struct Nccl;

impl Fabrics for Nccl {
    fn kind(&self) -> &'static str {
        "nccl"
    }

    fn invite(&self) -> Result<Vec<u8>, String> {
        let id = result::get_uniqueid().map_err(|error| said(&error))?;
        Ok(id.internal.iter().map(|&byte| byte.cast_unsigned()).collect())
    }

    fn join(&self, invitation: &[u8], rank: usize, world: usize) -> Result<Box<dyn Fabric>, String> {
        let id: [u8; 128] =
            invitation.try_into().map_err(|_| format!("an invitation of {} bytes is none of NCCL's", invitation.len()))?;
        let id = sys::ncclUniqueId { internal: id.map(|byte| byte.cast_signed()) };
        let driver = |error: DriverError| format!("{error:?}");
        let stream = CudaContext::new(0).and_then(|context| context.new_stream()).map_err(driver)?;
        let gpu = Gpu::new(stream.clone());
        let room = PIECE.next_multiple_of(world);
        let (values, parts) = (gpu.unfilled(room), gpu.unfilled(room));
        let memory = |memory: Result<CudaSlice<f32>, GpuError>| memory.map_err(|error| error.to_string());
        Ok(Box::new(End {
            id,
            rank,
            world,
            comm: None,
            broken: None,
            values: memory(values)?,
            parts: memory(parts)?,
            gpu,
            stream,
        }))
    }
}

/// A communicator of NCCL. Aborted when dropped.
struct Communicator(sys::ncclComm_t);

// SAFETY: NCCL lets any one thread at a time use a communicator; this one is used by its owner alone.
unsafe impl Send for Communicator {}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: made by NCCL, and not used after this.
        let ended = unsafe { result::comm_abort(self.0) };
        if let Err(error) = ended {
            tracing::debug!(target: "cohort::learner", error = said(&error), "communicator_not_aborted");
        }
    }
}

/// One rank's end.
struct End {
    id: sys::ncclUniqueId,
    rank: usize,
    world: usize,
    comm: Option<Communicator>,
    /// Why it is of no more use (B2).
    broken: Option<String>,
    /// A piece of the values, then of the sum.
    values: CudaSlice<f32>,
    /// This rank's part of the piece, from every rank.
    parts: CudaSlice<f32>,
    gpu: Gpu,
    stream: Arc<CudaStream>,
}

impl Fabric for End {
    fn all_reduce(&mut self, data: &mut [f32], keep: &mut Keep<'_>) -> Result<(), FabricError> {
        if let Some(why) = &self.broken {
            return Err(FabricError::Broken(why.clone()));
        }
        let done = self.reduce(data, keep);
        if let Err(error) = &done {
            self.broken = Some(match error {
                FabricError::Ended(why) => why.to_string(),
                FabricError::Broken(why) => why.clone(),
            });
            self.comm = None;
        }
        done
    }
}

impl End {
    fn reduce(&mut self, data: &mut [f32], keep: &mut Keep<'_>) -> Result<(), FabricError> {
        self.stream.context().bind_to_thread().map_err(driver)?;
        if self.comm.is_none() {
            self.connect(keep)?;
            keep(true).map_err(FabricError::Ended)?;
        }
        for piece in data.chunks_mut(PIECE) {
            self.piece(piece, keep)?;
            keep(true).map_err(FabricError::Ended)?;
        }
        Ok(())
    }

    /// Waits for all ranks.
    fn connect(&mut self, keep: &mut Keep<'_>) -> Result<(), FabricError> {
        let mut config = sys::ncclConfig_t {
            size: size_of::<sys::ncclConfig_t>(),
            magic: MAGIC,
            version: CONFIG_VERSION,
            blocking: 0,
            cgaClusterSize: UNDEFINED,
            minCTAs: UNDEFINED,
            maxCTAs: UNDEFINED,
            netName: std::ptr::null(),
            splitShare: UNDEFINED,
            trafficClass: UNDEFINED,
            commName: std::ptr::null(),
            collnetEnable: UNDEFINED,
            CTAPolicy: UNDEFINED,
            shrinkShare: UNDEFINED,
            nvlsCTAs: UNDEFINED,
            nChannelsPerNetPeer: UNDEFINED,
            nvlinkCentricSched: UNDEFINED,
            graphUsageMode: UNDEFINED,
            numRmaCtx: UNDEFINED,
            maxP2pPeers: UNDEFINED,
        };
        let mut comm: sys::ncclComm_t = null_mut();
        // SAFETY: both addresses are of values that live through the call.
        let begun = unsafe {
            result::comm_init_rank_config(&raw mut comm, number(self.world), self.id, number(self.rank), &raw mut config)
        };
        if !comm.is_null() {
            self.comm = Some(Communicator(comm));
        }
        begun.map_err(nccl)?;
        self.settle(keep)
    }

    /// One piece of at most [`PIECE`] values.
    fn piece(&mut self, data: &mut [f32], keep: &mut Keep<'_>) -> Result<(), FabricError> {
        let part = data.len().div_ceil(self.world);
        self.stream.memcpy_htod(data, &mut self.values).map_err(driver)?;
        self.queue_exchange(part)?;
        self.settle(keep)?;
        let mut rows = self.parts.slice_mut(..part * self.world);
        tree::cuda::sum(&self.gpu, &mut rows, self.world).map_err(|error| FabricError::Broken(error.to_string()))?;
        self.queue_gather(part)?;
        self.settle(keep)?;
        self.drain(keep)?;
        self.stream.memcpy_dtoh(&self.values.slice(..data.len()), data).map_err(driver)?;
        self.stream.synchronize().map_err(driver)
    }

    /// Part p of the values to rank p; from every rank its values of this rank's part.
    fn queue_exchange(&mut self, part: usize) -> Result<(), FabricError> {
        let comm = self.comm()?;
        let (values, _values) = self.values.device_ptr(&self.stream);
        let (parts, _parts) = self.parts.device_ptr_mut(&self.stream);
        let (stream, float) = (self.stream.cu_stream() as sys::cudaStream_t, sys::ncclDataType_t::ncclFloat32);
        result::group_start().map_err(nccl)?;
        for peer in 0..self.world {
            let offset = (peer * part * size_of::<f32>()) as u64;
            // SAFETY: both memories hold `world` parts, live as long as the communicator, and are used on this stream alone.
            let queued = unsafe {
                result::send((values + offset) as *const _, part, float, number(peer), comm, stream)
                    .and_then(|_| result::recv((parts + offset) as *mut _, part, float, number(peer), comm, stream))
            };
            if let Err(error) = queued {
                // The first error says more than that of ending the group.
                let _ = result::group_end();
                return Err(nccl(error));
            }
        }
        result::group_end().map(|_| ()).map_err(nccl)
    }

    /// This rank's part of the sum to every rank.
    fn queue_gather(&mut self, part: usize) -> Result<(), FabricError> {
        let comm = self.comm()?;
        let (parts, _parts) = self.parts.device_ptr(&self.stream);
        let (values, _values) = self.values.device_ptr_mut(&self.stream);
        let (stream, float) = (self.stream.cu_stream() as sys::cudaStream_t, sys::ncclDataType_t::ncclFloat32);
        // SAFETY: as in `queue_exchange`; the sum is the first part.
        let queued = unsafe { result::all_gather(parts as *const _, values as *mut _, part, float, comm, stream) };
        queued.map(|_| ()).map_err(nccl)
    }

    fn comm(&self) -> Result<sys::ncclComm_t, FabricError> {
        let comm = self.comm.as_ref().map(|comm| comm.0);
        comm.ok_or_else(|| FabricError::Broken("there is no communicator".to_owned()))
    }

    /// Until NCCL has queued what it was asked for.
    fn settle(&self, keep: &mut Keep<'_>) -> Result<(), FabricError> {
        while self.state()? == NcclStatus::InProgress {
            keep(false).map_err(FabricError::Ended)?;
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Until the device has done what is queued.
    fn drain(&self, keep: &mut Keep<'_>) -> Result<(), FabricError> {
        let queued = self.stream.record_event(None).map_err(driver)?;
        while !queued.is_complete() {
            // NCCL's kernels never end when another rank is gone; NCCL may know why.
            self.state()?;
            keep(false).map_err(FabricError::Ended)?;
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// What NCCL says of the communicator.
    fn state(&self) -> Result<NcclStatus, FabricError> {
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is NCCL's, and the address that of a value that lives through the call.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.comm()?, &raw mut state) };
        asked.result().and_then(|_| state.result()).map_err(nccl)
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = self.comm.is_some();
        f.debug_struct("Nccl").field("rank", &self.rank).field("world", &self.world).field("connected", &connected).finish()
    }
}

/// Ranks, which a configuration keeps far below 2^31.
fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn said(NcclError(code): &NcclError) -> String {
    format!("{code:?}")
}

fn nccl(error: NcclError) -> FabricError {
    FabricError::Broken(said(&error))
}

fn driver(error: DriverError) -> FabricError {
    FabricError::Broken(format!("{error:?}"))
}

#[cfg(test)]
mod tests {
    use super::super::CollectiveError;
    use super::*;
    use std::io::Write;
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
        let mut data: Vec<f32> = (0..PIECE + 77).map(|i| i as f32).collect();
        let want = data.clone();
        alone().all_reduce(&mut data, &mut |_| Ok(())).unwrap();
        assert!(data == want);
        // The other of two ranks never comes: what looks up ends the call, within moments.
        let mut waiting = Nccl.join(&Nccl.invite().unwrap(), 0, 2).unwrap();
        let begun = Instant::now();
        let why = CollectiveError::Stuck { rank: "nccl".into(), during: "a test", after: Duration::from_secs(1) };
        let mut keep = |_| if begun.elapsed() < Duration::from_secs(1) { Ok(()) } else { Err(why.clone()) };
        let ended = waiting.all_reduce(&mut data, &mut keep).unwrap_err();
        assert!(matches!(ended, FabricError::Ended(CollectiveError::Stuck { .. })), "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert!(matches!(waiting.all_reduce(&mut data, &mut |_| Ok(())), Err(FabricError::Broken(_))), "B2");
        alone().all_reduce(&mut data, &mut |_| Ok(())).unwrap();
    }
}
