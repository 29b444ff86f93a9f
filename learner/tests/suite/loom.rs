//! A fabric within one process: ranks lay their values down on a table and take up the sum when all have.
use cohort_engine::fabric::{Fabric, FabricError, Fabrics, Keep};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Makes them; counts what became of them.
#[derive(Debug, Default)]
pub(crate) struct Loom {
    pub(crate) tables: Mutex<HashMap<u8, Arc<Table>>>,
    /// Groups made.
    pub(crate) made: AtomicU32,
    /// Sums that came about, by rank 0.
    pub(crate) sums: AtomicU32,
    /// So many ends break in their first call.
    pub(crate) breaks: AtomicU32,
    /// Whether ranks besides the lead have none.
    pub(crate) lead_only: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    /// By call, what each rank has laid down.
    laid: Mutex<HashMap<u64, Vec<Option<Vec<f32>>>>>,
    changed: Condvar,
}

#[derive(Debug)]
struct End {
    loom: Arc<Loom>,
    table: Arc<Table>,
    rank: usize,
    world: usize,
    calls: u64,
}

/// The trait is the handle's, so that ends can count at their loom.
#[derive(Debug, Clone)]
pub(crate) struct OfLoom(pub(crate) Arc<Loom>);

impl Fabrics for OfLoom {
    fn kind(&self) -> &'static str {
        "loom"
    }

    fn invite(&self) -> Result<Vec<u8>, String> {
        let made = self.0.made.fetch_add(1, Ordering::Relaxed) as u8;
        self.0.tables.lock().unwrap().insert(made, Arc::default());
        Ok(vec![made])
    }

    fn join(&self, invitation: &[u8], rank: usize, world: usize) -> Result<Box<dyn Fabric>, String> {
        if self.0.lead_only && rank > 0 {
            return Err("no loom here".into());
        }
        let table = self.0.tables.lock().unwrap()[&invitation[0]].clone();
        Ok(Box::new(End { loom: self.0.clone(), table, rank, world, calls: 0 }))
    }
}

impl Fabric for End {
    fn all_reduce(&mut self, data: &mut [f32], keep: &mut Keep<'_>) -> Result<(), FabricError> {
        let breaks = self.loom.breaks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if breaks.is_ok() {
            return Err(FabricError::Broken("a thread is torn".into()));
        }
        let mut laid = self.table.laid.lock().unwrap();
        laid.entry(self.calls).or_insert_with(|| vec![None; self.world])[self.rank] = Some(data.to_vec());
        self.table.changed.notify_all();
        loop {
            let all = &laid[&self.calls];
            if all.iter().all(Option::is_some) {
                let mut parts: Vec<Vec<f32>> = all.iter().flatten().cloned().collect();
                cohort_kernels::tree::sum(&mut parts.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
                data.copy_from_slice(&parts[0]);
                self.calls += 1;
                if self.rank == 0 {
                    self.loom.sums.fetch_add(1, Ordering::Relaxed);
                }
                return Ok(());
            }
            laid = self.table.changed.wait_timeout(laid, Duration::from_millis(5)).unwrap().0;
            if keep(false).is_break() {
                return Err(FabricError::Ended);
            }
        }
    }
}
