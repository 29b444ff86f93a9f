//! Models from the hub, through hf-hub and its cache.
//!
//! Invariant: no call waits for ever. A hub that makes no progress for a minute is given up.
use crate::ModelError;
use crate::hf::unsupported;
use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// Longest silence of the hub.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is fetched beside the weights: the files that [`crate::hf`] reads.
const FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

enum Event {
    Progress,
    Done(Result<PathBuf, String>),
}

/// Fetches `org/name` or `org/name@revision` into the hub's cache and returns its directory there. What is in the cache
/// already is used when the hub cannot be reached.
pub(crate) fn fetch(id: &str) -> Result<PathBuf, ModelError> {
    let fail = |problem: String| ModelError::Hub { id: id.to_owned(), problem };
    if id.to_lowercase().contains("gpt-oss") {
        return Err(unsupported("gpt-oss", &format!("hf://{id}")));
    }
    let (name, revision) = id.split_once('@').unwrap_or((id, "main"));
    let parts: Vec<&str> = name.split('/').collect();
    let plain = |part: &&str| part.starts_with(|c: char| c.is_ascii_alphanumeric()) && !part.contains("..");
    if parts.len() != 2 || !parts.iter().all(plain) {
        return Err(fail("an id has the form org/name or org/name@revision".into()));
    }
    let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
    let (events, inbox) = sync_channel(64);
    let worker = move || {
        let outcome = download(&repo, &events);
        // The receiver is gone only after it has given up.
        let _ = events.send(Event::Done(outcome));
    };
    std::thread::Builder::new().name("hub".into()).spawn(worker).map_err(|e| fail(e.to_string()))?;
    loop {
        match inbox.recv_timeout(PATIENCE) {
            Ok(Event::Progress) => {}
            Ok(Event::Done(outcome)) => return outcome.map_err(fail),
            Err(RecvTimeoutError::Timeout) => return Err(fail(format!("no progress for {} s", PATIENCE.as_secs()))),
            Err(RecvTimeoutError::Disconnected) => return Err(fail("the download died".into())),
        }
    }
}

fn download(repo: &Repo, events: &SyncSender<Event>) -> Result<PathBuf, String> {
    let online = || -> Result<PathBuf, ApiError> {
        let api = ApiBuilder::from_env().with_progress(false).build()?.repo(repo.clone());
        let cache = Cache::from_env().repo(repo.clone());
        let is_weights = |name: &str| name.starts_with("model") && name.ends_with(".safetensors") && !name.contains('/');
        let names = api.info()?.siblings.into_iter().map(|file| file.rfilename);
        for name in names.filter(|name| FILES.contains(&name.as_str()) || is_weights(name)) {
            if cache.get(&name).is_none() {
                api.download_with_progress(&name, Pulse(events.clone()))?;
            }
            // A full queue means that progress is known already.
            let _ = events.try_send(Event::Progress);
        }
        api.get("config.json")
    };
    let config = online().or_else(|error| {
        let cached = Cache::from_env().repo(repo.clone()).get("config.json");
        cached.ok_or_else(|| whole_chain(&error))
    })?;
    config.parent().map(std::path::Path::to_path_buf).ok_or_else(|| "the cache has no directory for it".to_owned())
}

/// An error with its causes: the outermost of a network error says little.
fn whole_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

struct Pulse(SyncSender<Event>);

impl Progress for Pulse {
    fn init(&mut self, _size: usize, _file: &str) {}

    fn update(&mut self, _size: usize) {
        // A full queue means that progress is known already.
        let _ = self.0.try_send(Event::Progress);
    }

    fn finish(&mut self) {}
}
