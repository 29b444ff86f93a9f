//! The `http` reward against a real server on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use cohort_protocol::{GroupId, LeasePurpose, SampleIx, ScoreOutcome, Turn, TurnRole};
use cohort_reward_workers::rewards::http::{HttpConfig, HttpReward};
use cohort_reward_workers::{Reward, SampleInput, ScoreInput};
use serde_json::{Map, Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// What the server does with its next connection.
enum Answer {
    Say(u16, String),
    Hang,
    Close,
}

/// A server that answers one request after the other, each on its own connection; the requests come out of the channel.
fn serve(answers: Vec<Answer>) -> (String, Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/grade", listener.local_addr().unwrap());
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        let mut hung = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let request = read(&mut stream);
            let _ = sender.send(request);
            match answer {
                Answer::Say(status, body) => {
                    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).unwrap();
                }
                Answer::Hang => hung.push(stream),
                Answer::Close => drop(stream),
            }
        }
    });
    (url, requests)
}

fn read(stream: &mut TcpStream) -> (String, Value) {
    let (mut bytes, mut buffer) = (Vec::new(), [0u8; 4096]);
    loop {
        let n = stream.read(&mut buffer).unwrap();
        bytes.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ").map(|v| v.parse::<usize>().unwrap()));
        if n == 0 || length.is_some_and(|length| body.len() >= length) {
            return (head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null));
        }
    }
}

fn group(samples: u16) -> ScoreInput {
    let samples = (0..samples)
        .map(|i| SampleInput {
            sample: SampleIx(i),
            turns: vec![Turn::text(TurnRole::User, "q"), Turn::text(TurnRole::Assistant, format!("answer {i}"))],
            context: Map::new(),
        })
        .collect();
    let item = json!({"answer": "a"}).as_object().unwrap().clone();
    ScoreInput { purpose: LeasePurpose::Train, group: GroupId(5), seed: 1, item, samples }
}

fn reward(url: &str, change: impl FnOnce(&mut HttpConfig)) -> HttpReward {
    let mut config: HttpConfig = serde_json::from_value(json!({"url": url, "backoff_s": 0.005, "timeout_s": 5})).unwrap();
    change(&mut config);
    HttpReward::new("judge", config).unwrap()
}

fn failure(outcome: &ScoreOutcome) -> (&str, bool) {
    match outcome {
        ScoreOutcome::Failed { error, retryable } => (error, *retryable),
        ScoreOutcome::Scored(score) => panic!("scored {}", score.score),
    }
}

fn score(outcome: &ScoreOutcome) -> f64 {
    match outcome {
        ScoreOutcome::Scored(score) => score.score,
        ScoreOutcome::Failed { error, .. } => panic!("{error}"),
    }
}

fn ok(body: Value) -> Answer {
    Answer::Say(200, body.to_string())
}

#[tokio::test]
async fn posts_the_group_once_and_reads_its_scores() {
    let (url, requests) = serve(vec![ok(json!({"scores": [0.5, {"score": 1, "breakdown": {"style": 0.25}}]}))]);
    let reward = reward(&url, |c| {
        c.headers.insert("X-Team".into(), "desk".into());
    });
    let got = reward.score(&group(2)).await;
    assert_eq!((score(&got[0]), score(&got[1])), (0.5, 1.0));
    let (head, body) = requests.recv().unwrap();
    assert!(head.starts_with("POST /grade HTTP/1.1") && head.to_lowercase().contains("x-team: desk"), "{head}");
    assert_eq!(body["version"], 1);
    assert_eq!((&body["group"], &body["purpose"], &body["item"]["answer"]), (&json!(5), &json!("train"), &json!("a")));
    assert_eq!(body["samples"][1]["turns"][1], json!({"role": "assistant", "content": "answer 1"}));
    assert_eq!(reward.breakers(), [("judge".to_owned(), "closed".to_owned())]);
}

#[tokio::test]
async fn tries_again_after_5xx_and_lost_connections() {
    let answers =
        vec![Answer::Say(503, "busy".into()), Answer::Close, Answer::Say(429, String::new()), ok(json!({"scores": [2]}))];
    let (url, requests) = serve(answers);
    assert_eq!(score(&reward(&url, |_| {}).score(&group(1)).await[0]), 2.0);
    assert_eq!(requests.iter().count(), 4);
}

#[tokio::test]
async fn gives_up_retryable_and_never_as_zero() {
    let (url, requests) = serve((0..3).map(|_| Answer::Say(500, "broken".into())).collect());
    let got = reward(&url, |c| c.attempts = 3).score(&group(2)).await;
    let (why, retryable) = failure(&got[1]);
    assert!(retryable && why.starts_with("reward \"judge\": ") && why.contains("500: broken (tried 3 times)"), "{why}");
    assert_eq!(requests.iter().count(), 3);
    // A port that nobody listens on.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let got = reward(&format!("http://{port}/"), |c| c.attempts = 2).score(&group(1)).await;
    let (why, retryable) = failure(&got[0]);
    assert!(retryable && why.contains("cannot be reached"), "{why}");
}

#[tokio::test]
async fn a_hanging_endpoint_meets_its_deadline() {
    let (url, _requests) = serve(vec![Answer::Hang, Answer::Hang]);
    let begun = Instant::now();
    let got = reward(&url, |c| (c.attempts, c.timeout_s) = (1, 0.2)).score(&group(1)).await;
    let (why, retryable) = failure(&got[0]);
    assert!(retryable && why.contains("did not answer within 200ms"), "{why}");
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn answers_that_mean_nothing_are_errors_without_another_try() {
    for (answer, want) in [
        (Answer::Say(404, "no such page".into()), "answered 404, expected 200: no such page"),
        (Answer::Say(302, String::new()), "answered 302"),
        (ok(json!({"scores": [1]})), "1 scores for a group of 2 samples"),
        (ok(json!([1, 2])), "no list \"scores\""),
        (Answer::Say(200, "<html>".into()), "not JSON"),
        (Answer::Say(200, "{\"scores\": [1, NaN]}".into()), "NaN and Infinity are not JSON"),
        (Answer::Say(200, "{\"scores\": [1, 1e400]}".into()), "not JSON"),
    ] {
        let (url, requests) = serve(vec![answer]);
        let got = reward(&url, |_| {}).score(&group(2)).await;
        let (why, retryable) = failure(&got[0]);
        assert!(!retryable && why.contains(want), "{why}");
        assert_eq!(requests.iter().count(), 1);
    }
}

#[tokio::test]
async fn an_open_breaker_keeps_calls_away() {
    let (url, requests) = serve((0..9).map(|_| Answer::Say(500, String::new())).collect());
    let reward = reward(&url, |c| (c.attempts, c.patience_s) = (5, 0.5));
    let _ = reward.score(&group(1)).await;
    assert_eq!(reward.breakers()[0].1, "open");
    let got = reward.score(&group(1)).await;
    let (why, retryable) = failure(&got[0]);
    assert!(retryable && why.contains("circuit breaker is open"), "{why}");
    assert_eq!(requests.try_iter().count(), 5, "the second call never reached the endpoint");
}

#[test]
fn bad_keys_are_refused() {
    for (config, want) in [
        (json!({"url": "ftp://x"}), "expected http:// or https://"),
        (json!({"url": "http://x", "timeout_s": 0}), "timeout_s = 0"),
        (json!({"url": "http://x", "attempts": 0}), "at least one try"),
        (json!({"url": "http://x", "token_env": "COHORT_NO_SUCH_VARIABLE"}), "no such environment variable"),
    ] {
        let why = HttpReward::new("x", serde_json::from_value(config).unwrap()).err().unwrap();
        assert!(why.contains(want), "{why}");
    }
}
