//! Moving values between GPUs by NCCL: the calls that a sum over ranks needs, none of which waits.
//!
//! Invariants
//! - **C1** the communicator is non-blocking: a call queues, [`Communicator::has_settled`] says whether NCCL has done so and what it
//!   has heard of the other ranks.
//! - **C2** dropped, it is aborted (`ncclCommAbort`): its kernels on the device end, whatever other ranks do.
#![expect(unsafe_code, reason = "NCCL takes addresses of the device")]
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use cudarc::nccl::result::{self, NcclError, NcclStatus};
use cudarc::nccl::sys;
use std::fmt;
use std::mem::size_of;
use std::ptr::null_mut;
use std::sync::Arc;

/// Of a configuration that NCCL has not seen, and of a value in it that is NCCL's to choose (nccl.h).
const MAGIC: u32 = 0xcafe_beef;
const UNDEFINED: i32 = i32::MIN;
/// The version whose configuration cudarc declares, as nccl.h writes it: 10,000 major + 100 minor + patch.
const CONFIG_VERSION: u32 = 23_000;

/// What NCCL says went wrong, such as `ncclRemoteError`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NcclFailure(sys::ncclResult_t);

impl fmt::Display for NcclFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for NcclFailure {}

impl From<NcclError> for NcclFailure {
    fn from(NcclError(code): NcclError) -> Self {
        Self(code)
    }
}

/// By what the ranks of a communicator find each other.
///
/// # Errors
/// NCCL finds no network.
pub fn unique_id() -> Result<[u8; 128], NcclFailure> {
    Ok(result::get_uniqueid()?.internal.map(|byte| byte.cast_unsigned()))
}

/// One rank's end.
pub struct Communicator {
    comm: sys::ncclComm_t,
    stream: Arc<CudaStream>,
    world: usize,
}

// SAFETY: NCCL lets any one thread at a time use a communicator; this one is used by its owner alone.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Begins to connect with the other ranks of `id`; [`Self::has_settled`] says when that is done. What is queued later runs on
    /// `stream`, whose device must be this thread's.
    ///
    /// # Errors
    /// What NCCL refuses at once.
    pub fn connect(stream: Arc<CudaStream>, id: [u8; 128], rank: usize, world: usize) -> Result<Self, NcclFailure> {
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
        let id = sys::ncclUniqueId { internal: id.map(|byte| byte.cast_signed()) };
        let mut comm: sys::ncclComm_t = null_mut();
        // SAFETY: both addresses are of values that live through the call.
        let begun = unsafe { result::comm_init_rank_config(&raw mut comm, number(world), id, number(rank), &raw mut config) };
        // Owned before the result is looked at: whatever NCCL made is aborted.
        let made = Self { comm, stream, world };
        begun?;
        Ok(made)
    }

    /// Whether what was asked for has been queued, or still is on its way there.
    ///
    /// # Errors
    /// What NCCL has heard since.
    pub fn has_settled(&self) -> Result<bool, NcclFailure> {
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is NCCL's, and the address that of a value that lives through the call.
        unsafe { sys::ncclCommGetAsyncError(self.comm, &raw mut state) }.result()?;
        Ok(state.result()? != NcclStatus::InProgress)
    }

    /// Queues: part p of `values` to rank p, and from every rank r its part for this rank, as part r of `parts`. Both hold one
    /// part of `part` values for each rank, or more.
    ///
    /// # Errors
    /// What NCCL refuses at once.
    ///
    /// # Panics
    /// When a memory is shorter.
    pub fn exchange(&self, values: &CudaSlice<f32>, parts: &mut CudaSlice<f32>, part: usize) -> Result<(), NcclFailure> {
        assert!(values.len() >= part * self.world && parts.len() >= part * self.world);
        let (values, _values) = values.device_ptr(&self.stream);
        let (parts, _parts) = parts.device_ptr_mut(&self.stream);
        let (stream, float) = (self.stream.cu_stream() as sys::cudaStream_t, sys::ncclDataType_t::ncclFloat32);
        result::group_start()?;
        for peer in 0..self.world {
            let offset = (peer * part * size_of::<f32>()) as u64;
            // SAFETY: both memories hold `world` parts, and their owner uses them on this stream alone.
            let queued = unsafe {
                result::send((values + offset) as *const _, part, float, number(peer), self.comm, stream)
                    .and_then(|_| result::recv((parts + offset) as *mut _, part, float, number(peer), self.comm, stream))
            };
            if let Err(error) = queued {
                // The first error says more than that of ending the group.
                let _ = result::group_end();
                return Err(error.into());
            }
        }
        result::group_end()?;
        Ok(())
    }

    /// Queues: the first `part` values of `own` to every rank, and those of every rank r as part r of `all`.
    ///
    /// # Errors
    /// What NCCL refuses at once.
    ///
    /// # Panics
    /// When a memory is shorter.
    pub fn gather(&self, own: &CudaSlice<f32>, all: &mut CudaSlice<f32>, part: usize) -> Result<(), NcclFailure> {
        assert!(own.len() >= part && all.len() >= part * self.world);
        let (own, _own) = own.device_ptr(&self.stream);
        let (all, _all) = all.device_ptr_mut(&self.stream);
        let (stream, float) = (self.stream.cu_stream() as sys::cudaStream_t, sys::ncclDataType_t::ncclFloat32);
        // SAFETY: as in `exchange`.
        unsafe { result::all_gather(own as *const _, all as *mut _, part, float, self.comm, stream) }?;
        Ok(())
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.comm.is_null() {
            // SAFETY: made by NCCL, and not used after this. One that cannot be aborted is left to the end of the process.
            let _ = unsafe { result::comm_abort(self.comm) };
        }
    }
}

/// Ranks, which a configuration keeps far below 2^31.
fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
