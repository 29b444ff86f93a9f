//! What a plug-in wrote: a frame that is read, written and read again is the same one; anything else is refused.
#![no_main]
use cohort_reward_workers::rewards::process::frame::{read, write};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let Ok(message) = read(&mut &data[..]).await else { return };
        let mut written = Vec::new();
        write(&mut written, &message).await.expect("what was read fits a frame");
        assert_eq!(read(&mut written.as_slice()).await.expect("what was written can be read"), message);
    });
});
