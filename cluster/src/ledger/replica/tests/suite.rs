//! openraft's tests of log and state machine, a new ledger for each. Those that ask for a snapshot are left out:
//! there are none (K5).
use super::super::Types;
use super::super::log::LogStore;
use super::super::machine::Machine;
use crate::ledger::place::RunPaths;
use crate::ledger::store::Ledger;
use crate::ledger::tests::meta;
use openraft::testing::{StoreBuilder, Suite};
use openraft::{StorageError, StorageIOError};
use tempfile::TempDir;

struct New;

impl StoreBuilder<Types, LogStore, Machine, TempDir> for New {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<u64>> {
        let made = || {
            let dir = tempfile::tempdir().unwrap();
            let paths = RunPaths::new(dir.path());
            drop(Ledger::create(&paths, &meta())?);
            let log = LogStore::open(&dir.path().join("keeper.sqlite"), 0)?;
            Ok((dir, log, Machine::open(&paths)?.0))
        };
        made().map_err(|error: crate::ledger::LedgerError| StorageIOError::write(&error).into())
    }
}

macro_rules! storage_tests {
    ($($test:ident),+ $(,)?) => {
        $(#[tokio::test]
        async fn $test() {
            let (_dir, log, machine) = New.build().await.unwrap();
            Suite::<Types, LogStore, Machine, New, TempDir>::$test(log, machine).await.unwrap();
        })+
    };
}

storage_tests!(
    last_membership_in_log_initial,
    last_membership_in_log,
    last_membership_in_log_multi_step,
    get_membership_initial,
    get_membership_from_log_and_empty_sm,
    get_membership_from_empty_log_and_sm,
    get_membership_from_log_le_sm_last_applied,
    get_membership_from_log_gt_sm_last_applied_1,
    get_membership_from_log_gt_sm_last_applied_2,
    get_initial_state_without_init,
    get_initial_state_with_state,
    get_initial_state_last_log_gt_sm,
    get_initial_state_re_apply_committed,
    save_vote,
    get_log_entries,
    limited_get_log_entries,
    try_get_log_entry,
    initial_logs,
    get_log_state,
    get_log_id,
    last_id_in_log,
    last_applied_state,
    purge_logs_upto_0,
    purge_logs_upto_5,
    purge_logs_upto_20,
    delete_logs_since_11,
    delete_logs_since_0,
    append_to_log,
    apply_single,
    apply_multiple,
);
