//! Protocol versions and their negotiation.

/// The newest version this build speaks.
pub const PROTOCOL: u16 = 6;
/// The oldest version this build still understands.
pub const PROTOCOL_MIN: u16 = 2;

/// From this version on rollout workers hand in what they have of a group before it is complete, and take such over.
pub const PARTIAL_GROUPS: u16 = 4;

/// From this version on a lead may have sums travel on a fabric between the devices of its ranks.
pub const RANK_FABRIC: u16 = 5;

/// From this version on ranks may keep the optimizer's state in parts.
pub const RANK_PARTS: u16 = 6;

/// From this version on hosts and keepers are told whose certificates were taken away.
pub const REVOCATIONS: u16 = 6;

/// From this version on a host takes a chunk of weights as what changed since a version that it has.
pub const WEIGHT_DELTAS: u16 = 6;

/// From this version on the hashes of a version's chunks come in parts, while the version is being hashed.
pub const HASHES_IN_PARTS: u16 = 6;

/// The version two builds share: the newest both know, or `None`.
#[must_use]
pub fn negotiate(peer_min: u16, peer_max: u16) -> Option<u16> {
    let newest = peer_max.min(PROTOCOL);
    (newest >= peer_min.max(PROTOCOL_MIN) && peer_min <= peer_max).then_some(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_the_newest_or_nothing() {
        assert_eq!(negotiate(PROTOCOL_MIN, PROTOCOL), Some(PROTOCOL));
        assert_eq!(negotiate(PROTOCOL, PROTOCOL + 5), Some(PROTOCOL));
        assert_eq!(negotiate(PROTOCOL + 1, PROTOCOL + 5), None);
        assert_eq!(negotiate(PROTOCOL + 1, PROTOCOL), None);
    }
}
