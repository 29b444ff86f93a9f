//! More output than anybody wants.
use crate::attack::{Attack, can_confine, still_grades};

#[tokio::test]
async fn floods_end_at_the_deadline_or_at_once() {
    if !can_confine() {
        return;
    }
    let outcome = Attack::body("while True: os.write(2, b'x' * 60 + b'\\n')").grade(|c| c.timeout_s = 1.5).await;
    assert!(outcome.error().contains("did not grade a group within 1.5s"), "{}", outcome.error());
    assert!(outcome.error().len() < 4_000, "sixteen lines of it at most: {} bytes", outcome.error().len());
    let outcome = Attack::body("while True: os.write(2, b'x' * 65536)").grade(|c| c.timeout_s = 1.5).await;
    assert!(outcome.error().contains("did not grade") && outcome.error().len() < 4_000, "{}", outcome.error().len());
    let outcome = Attack::talk("say(HELLO); hear(); hear()\nwhile True: raw(b'A' * 65536)").grade(|_| {}).await;
    assert!(outcome.error().contains("where a frame was expected"), "{}", outcome.error());
    still_grades().await;
}

#[tokio::test]
async fn an_answer_that_would_fill_the_hosts_memory_is_refused_unread() {
    if !can_confine() {
        return;
    }
    // A fiftieth of the memory that its values would take.
    let bomb =
        "say(HELLO); hear(); hear()\nsay(b'{\"type\": \"scores\", \"id\": 1, \"scores\": [' + b'1,' * 4000000 + b'1]}')\nhear()";
    let outcome = Attack::talk(bomb).grade(|_| {}).await;
    assert!(outcome.error().contains("values, at most"), "{}", outcome.error());
    let deep = "say(HELLO); hear(); hear()\nsay(b'[' * 1000000)\nhear()";
    let outcome = Attack::talk(deep).grade(|_| {}).await;
    assert!(outcome.error().contains("not JSON"), "{}", outcome.error());
    still_grades().await;
}
