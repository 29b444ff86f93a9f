//! Tokens of one generation as they are sampled.
//!
//! Invariants
//! - **T1** a stream gives exactly the completion's tokens, in order, each once.
//! - **T2** it is bounded by the generation's own budget: it has a place for every token that may come. So it never overflows,
//!   its reader never holds the engine up, and a reader that is late loses nothing.
//! - **T3** dropping a stream before its end cancels the generation and closes its session: what it held is free before the
//!   next step.
use crate::{Completion, EngineError, Session};
use tokio::sync::{mpsc, oneshot};

/// A token that was sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// log-softmax(logits / temperature) over the whole vocabulary, natural log.
    pub logp: f32,
    /// Under the distribution really drawn from.
    pub logp_sampled: f32,
    /// Policy version of the weights.
    pub version: u64,
    /// Whether the log-probs are that version's own to the bit, see [`Span::exact`](crate::Span).
    pub exact: bool,
}

/// A generation under way.
#[derive(Debug)]
pub struct TokenStream<'a> {
    session: &'a mut Session,
    tokens: mpsc::Receiver<Sampled>,
    answer: oneshot::Receiver<Result<Completion, EngineError>>,
}

impl Session {
    /// As [`Session::generate`]; every token goes into `sink` too as it is sampled, as far as there are places in it. Whoever
    /// reads it may do so whenever it likes.
    ///
    /// Errors: those of [`Session::generate`].
    pub async fn generate_into(
        &mut self,
        tokens: &[u32],
        decoding: crate::Decoding,
        sink: mpsc::Sender<Sampled>,
    ) -> Result<Completion, EngineError> {
        let answer = self.begin(tokens, decoding, Some(sink)).await?;
        self.end(answer).await
    }

    /// As [`Session::generate`], token by token.
    ///
    /// Waits for a place among the engine's generations, not for a token. Errors of the generation itself come from
    /// [`TokenStream::finish`].
    pub async fn stream(&mut self, tokens: &[u32], decoding: crate::Decoding) -> Result<TokenStream<'_>, EngineError> {
        let most = self.engine().spec().max_context.min(decoding.max_new_tokens as usize);
        let (sink, stream) = mpsc::channel(most.max(1));
        let answer = self.begin(tokens, decoding, Some(sink)).await?;
        Ok(TokenStream { session: self, tokens: stream, answer })
    }
}

impl TokenStream<'_> {
    /// The next token; `None` when the generation has ended, well or not.
    pub async fn next(&mut self) -> Option<Sampled> {
        self.tokens.recv().await
    }

    /// Waits for the end.
    ///
    /// Errors: those of [`Session::generate`].
    pub async fn finish(self) -> Result<Completion, EngineError> {
        self.session.end(self.answer).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stub::{Script, StubBackend};
    use crate::{Backend, Decoding, DrawKey, EngineHandle, EngineOptions, KvId};
    use cohort_model::ModelFiles;

    /// Says token 7 for ever.
    fn engine() -> EngineHandle {
        let files = ModelFiles::open("random://tiny").unwrap();
        let (spec, weights) = (files.spec.clone(), files.weights().unwrap());
        let script = Script { replies: vec![vec![7; 5000]], opening: vec![99], end: 0 };
        let make = move || Ok(Box::new(StubBackend::new(spec, script, weights)?) as Box<dyn Backend>);
        EngineHandle::start(make, EngineOptions::default()).unwrap()
    }

    fn decoding(budget: u32) -> Decoding {
        Decoding::plain(1.0, budget, DrawKey::default())
    }

    #[tokio::test]
    async fn a_stream_gives_the_completion_to_early_and_late_readers() {
        let engine = engine();
        let (mut early, mut late) = (engine.session(), engine.session());
        let whole = engine.session().generate(&[1, 2], decoding(50)).await.unwrap();
        let mut unread = late.stream(&[1, 2], decoding(50)).await.unwrap();
        let mut reading = early.stream(&[1, 2], decoding(50)).await.unwrap();
        let mut seen = Vec::new();
        while let Some(sampled) = reading.next().await {
            seen.push(sampled);
        }
        assert_eq!(reading.finish().await.unwrap(), whole);
        let of = |i: usize| (whole.tokens[i], whole.logp[i], whole.logp_sampled[i], 0);
        let got: Vec<_> = seen.iter().map(|s| (s.token, s.logp, s.logp_sampled, s.version)).collect();
        assert_eq!(got, (0..50).map(of).collect::<Vec<_>>());
        // Nobody has read this one, and it has ended long ago.
        let mut read = Vec::new();
        while let Some(sampled) = unread.next().await {
            read.push(sampled);
        }
        assert_eq!(read, seen);
        drop(unread);
        // A session goes on after a stream that was read to its end, and not after one that was dropped.
        assert_eq!(early.generate(&[3], decoding(2)).await.unwrap().tokens.len(), 2);
        assert!(late.generate(&[3], decoding(2)).await.is_err());
    }

    #[tokio::test]
    async fn dropping_a_stream_frees_its_memory_before_the_next_step() {
        let engine = engine();
        let mut session = engine.session();
        // The engine's thread waits at the third token until the command below is in its queue.
        let (reached, at_third) = oneshot::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel();
        let (mut reached, mut seen) = (Some(reached), 0);
        let watch = move |_token: u32| {
            seen += 1;
            if seen == 3 {
                reached.take().unwrap().send(()).unwrap();
                may_go_on.recv().unwrap();
            }
            false
        };
        let watched = Decoding { watch: Some(Box::new(watch)), ..decoding(900) };
        let mut stream = session.stream(&[1, 2], watched).await.unwrap();
        stream.next().await.unwrap();
        at_third.await.unwrap();
        // It stands still between two steps while the stream goes.
        let (entered, standing) = oneshot::channel();
        let (go, gone) = std::sync::mpsc::channel();
        let pause = engine.with_backend(move |backend| {
            entered.send(backend.kv_len(KvId(1))).unwrap();
            gone.recv().unwrap();
        });
        tokio::pin!(pause);
        assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(pause.as_mut().poll(cx))).await.is_pending());
        go_on.send(()).unwrap();
        let held = standing.await;
        assert!(held.unwrap() >= 2);
        let before = engine.tokens_sampled();
        drop(stream);
        go.send(()).unwrap();
        let other = engine.session().generate(&[5, 6], decoding(3)).await.unwrap();
        assert_eq!(engine.tokens_sampled() - before, other.tokens.len() as u64, "no further token was sampled for it");
        assert_eq!(engine.with_backend(|backend| backend.kv_len(KvId(1))).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_refused_generation_says_why_at_its_end() {
        let engine = engine();
        let mut session = engine.session();
        let mut stream = session.stream(&[1_000_000], decoding(5)).await.unwrap();
        assert_eq!(stream.next().await, None);
        assert!(stream.finish().await.unwrap_err().to_string().contains("1000000"));
    }
}
