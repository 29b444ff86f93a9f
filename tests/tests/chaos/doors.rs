//! What comes in at a run's doors that is not of the run: bytes without sense at every port, recorded datagrams sent again, a
//! second launch on the same directory. Who is let in with which certificate: `actors/tests/doors.rs`.
use super::bench;
use super::figures::keep;
use super::remote::{Head, PORTS};
use anyhow::{Result, ensure};
use cohort_tests::launch::finish;
use cohort_tests::relay::Weather;
use serde_json::json;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Datagrams a port gets.
const EACH: u64 = 4000;

/// The nth datagram: of any length, some of them with the first byte of a QUIC long header and its version.
fn nonsense(n: u64) -> Vec<u8> {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let length = [0, 1, 7, 21, 600, 1200, 1452][(next() % 7) as usize];
    let mut bytes: Vec<u8> = (0..length).map(|_| next().to_le_bytes()[0]).collect();
    if n % 2 == 0 && bytes.len() > 20 {
        bytes[0] |= 0xc0;
        bytes[1..6].copy_from_slice(&[0, 0, 0, 1, 20]);
    }
    bytes
}

#[test]
fn nonsense_at_every_port_changes_nothing() -> Result<()> {
    let (_folder, bench) = bench()?;
    let mut head = Head::start(&bench, "beset", &[])?;
    // Recorded: every datagram of this host is sent many times over.
    let remote = head.join("second", "rollout=1", 3, Weather { duplicate: 0.9, corrupt: 0.05, ..Weather::default() })?;
    head.workers(2)?;
    let begun = Instant::now();
    let stranger = UdpSocket::bind(SocketAddr::new(head.at, 0))?;
    for n in 0..EACH {
        for port in PORTS {
            stranger.send_to(&nonsense(n), (head.at, port))?;
        }
        if n % 64 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let took = begun.elapsed();
    head.run.progress(5, Duration::from_secs(20))?;
    head.workers(2)?;
    let second = [bench.launch("beset", &[]), bench.launch("beset", &["--clean"]), bench.resume("beset", &[])];
    for (number, mut launch) in second.into_iter().enumerate() {
        let refused = finish(&mut launch)?;
        let named = number == 0 || refused.stderr.contains(&head.run.pid().to_string());
        ensure!(refused.code == Some(5) && named, "{refused:?}");
    }
    let [.., corrupted, _] = remote.relay.fates().counts();
    let steps = head.end_as_if_undisturbed(vec![remote])?;
    keep(
        "doors",
        &json!({ "nonsense": EACH * 3, "seconds": took.as_secs_f64(), "corrupted": corrupted, "refused_launches": 3, "steps": steps }),
    )
}
