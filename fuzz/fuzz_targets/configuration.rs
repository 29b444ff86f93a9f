//! A configuration file: read or refused; what is read is printed, and reads back as the same configuration.
#![no_main]
use cohort_cluster::config::origin::Source;
use cohort_cluster::config::{Inputs, Resolved};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let read = |text: &str| {
        let source = Source { name: "fuzz.toml".into(), text: text.to_owned(), folder: None };
        // Whoever says nothing means the folder of work, which a printed configuration names.
        let inputs = Inputs { sets: vec!["cluster.run_root=/runs".into()], ..Inputs::default() };
        Resolved::from_sources(vec![source], &inputs)
    };
    let Ok(resolved) = read(text) else { return };
    let printed = resolved.to_toml().expect("what was read can be printed");
    let again = read(&printed).expect("what was printed can be read");
    assert_eq!(again.config, resolved.config);
});
