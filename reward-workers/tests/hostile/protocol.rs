//! Lies in the protocol, and ends at each of its points.
use crate::attack::{Attack, can_confine, still_grades};

const ASKED: &str = "say(HELLO); hear(); hear()\n";

#[tokio::test]
async fn what_is_no_finite_number_is_no_score() {
    if !can_confine() {
        return;
    }
    for (score, words) in [
        ("NaN", "must be finite"),
        ("Infinity", "must be finite"),
        ("-Infinity", "must be finite"),
        ("1e999", "number out of range|must be finite"),
        ("\"1\"", "no score"),
        ("null", "no score"),
        ("[1]", "no score"),
        ("{\"score\": \"high\"}", "score"),
        ("{\"score\": 1, \"breakdown\": {\"a\": null}}", "a"),
        ("{\"reward\": 1}", "unknown key"),
    ] {
        let answer = format!("{ASKED}say(b'{{\"type\": \"scores\", \"id\": 1, \"scores\": [{score}]}}')\nhear()");
        let outcome = Attack::talk(&answer).grade(|_| {}).await;
        assert!(words.split('|').any(|word| outcome.error().contains(word)), "{score}: {}", outcome.error());
    }
    for body in ["return float('nan')", "return float('-inf')", "return 10 ** 400", "return 'high'", "return None", "return []"] {
        Attack::body(body).grade(|_| {}).await.error();
    }
    still_grades().await;
}

#[tokio::test]
async fn frames_that_never_come_or_lie_about_their_length_end_in_time() {
    if !can_confine() {
        return;
    }
    for (talk, words) in [
        ("time.sleep(300)".to_owned(), "did not say hello within 1s"),
        (format!("{ASKED}time.sleep(300)"), "did not grade a group within 1s"),
        (format!("{ASKED}raw(b'\\xff\\xff\\xff\\xff'); hear()"), "where a frame was expected"),
        (format!("{ASKED}raw(struct.pack('<I', 60 << 20) + b'{{'); hear()"), "did not grade a group within 1s"),
        (
            format!("{ASKED}raw(struct.pack('<I', 1000))\nwhile True: raw(b' '); time.sleep(0.02)"),
            "did not grade a group within 1s",
        ),
        (
            format!("{ASKED}say(b'{{\"type\": \"scores\", \"id\": 2, \"scores\": [1]}}'); hear()"),
            "answered id 2 where 1 was asked",
        ),
        (format!("{ASKED}say(b'{{\"type\": \"scores\", \"id\": 1, \"scores\": []}}'); hear()"), "0 scores for a group of 1"),
    ] {
        // Short only where it is the deadline that must end it.
        let limit = |what: &str| if words.contains(what) { 1.0 } else { 90.0 };
        let outcome = Attack::talk(&talk)
            .grade(|c| (c.timeout_s, c.start_timeout_s) = (limit("grade a group within"), limit("say hello within")))
            .await;
        assert!(outcome.error().contains(words), "{talk}: {}", outcome.error());
    }
    still_grades().await;
}

#[tokio::test]
async fn an_end_at_any_point_is_an_error() {
    if !can_confine() {
        return;
    }
    for (talk, words) in [
        ("sys.exit(0)".to_owned(), "exit status: 0 before its hello"),
        ("os.close(1); time.sleep(300)".to_owned(), "before its hello"),
        ("raw(b'\\x07'); sys.exit(4)".to_owned(), "frame"),
        ("say(HELLO); sys.exit(4)".to_owned(), "exit status: 4"),
        ("say(HELLO); os.close(0); time.sleep(300)".to_owned(), "did not grade a group within 2s"),
        (format!("{ASKED}sys.exit(4)"), "exit status: 4 while it graded a group"),
        (format!("{ASKED}raw(struct.pack('<I', 100) + b'{{'); sys.exit(4)"), "exit status: 4"),
        (format!("{ASKED}os.close(1); os.close(0); time.sleep(300)"), "while it graded a group"),
        (format!("{ASKED}os.kill(os.getpid(), 15)"), "signal: 15 (SIGTERM)"),
    ] {
        let outcome = Attack::talk(&talk).grade(|c| c.timeout_s = if words.contains("within 2s") { 2.0 } else { 90.0 }).await;
        assert!(outcome.error().contains(words), "{talk}: {}", outcome.error());
    }
    still_grades().await;
}
