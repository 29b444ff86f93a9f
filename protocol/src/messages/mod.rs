//! The message tables, one a direction. A table gives each message its explicit tag; tags are never reused.
pub mod handshake;
pub mod keepers;
pub mod learner;
pub mod node;
pub mod ranks;
pub mod reward;
pub mod rollout;
pub mod seeking;
pub mod weights;

use crate::{Frame, codec::CodecError};

/// Which table a frame's tag belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// [`handshake::Handshake`], both ways.
    Handshake = 1,
    /// [`rollout::RolloutToCoordinator`].
    RolloutToCoordinator = 2,
    /// [`rollout::CoordinatorToRollout`].
    CoordinatorToRollout = 3,
    /// [`reward::RewardToCoordinator`].
    RewardToCoordinator = 4,
    /// [`reward::CoordinatorToReward`].
    CoordinatorToReward = 5,
    /// [`learner::LearnerToCoordinator`].
    LearnerToCoordinator = 6,
    /// [`learner::CoordinatorToLearner`].
    CoordinatorToLearner = 7,
    /// [`node::NodeToHead`].
    NodeToHead = 8,
    /// [`node::HeadToNode`].
    HeadToNode = 9,
    /// [`weights::FetcherToHolder`].
    FetcherToHolder = 10,
    /// [`weights::HolderToFetcher`].
    HolderToFetcher = 11,
    /// [`ranks::BetweenRanks`], both ways.
    BetweenRanks = 12,
    /// [`keepers::AskerToKeeper`].
    AskerToKeeper = 13,
    /// [`keepers::KeeperToAsker`].
    KeeperToAsker = 14,
    /// [`seeking::NodeToKeeper`].
    NodeToKeeper = 15,
    /// [`seeking::KeeperToNode`].
    KeeperToNode = 16,
}

/// A table of messages.
pub trait WireMessage: Sized {
    /// Its direction.
    const DIRECTION: Direction;
    /// Encodes into a frame.
    fn to_frame(&self) -> Result<Frame, CodecError>;
    /// Decodes a frame of this direction; unknown tags and other directions are errors.
    fn from_frame(frame: &Frame) -> Result<Self, CodecError>;
}

macro_rules! wire_messages {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $tag:literal => $variant:ident($body:ty)),+ $(,)? } removed [$($removed:literal),*]) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        #[allow(clippy::large_enum_variant, reason = "moved once from decoder to handler")]
        pub enum $name { $($(#[$vdoc])* $variant($body)),+ }

        impl crate::messages::WireMessage for $name {
            const DIRECTION: crate::messages::Direction = crate::messages::Direction::$name;
            fn to_frame(&self) -> Result<crate::Frame, crate::codec::CodecError> {
                let (tag, body) = match self { $(Self::$variant(b) => ($tag, crate::codec::encode(b)?.into())),+ };
                Ok(crate::Frame { direction: Self::DIRECTION as u8, tag, body })
            }
            fn from_frame(frame: &crate::Frame) -> Result<Self, crate::codec::CodecError> {
                use crate::codec::{CodecError, decode_shared};
                if frame.direction != Self::DIRECTION as u8 {
                    return Err(CodecError::WrongDirection { got: frame.direction, want: Self::DIRECTION as u8 });
                }
                match frame.tag {
                    $($tag => Ok(Self::$variant(decode_shared(&frame.body)?)),)+
                    tag => Err(CodecError::UnknownTag { direction: stringify!($name), tag }),
                }
            }
        }

        impl $name {
            /// Tags in use.
            pub const TAGS: &'static [u8] = &[$($tag),+];
            /// Tags once used, never to be given again.
            pub const REMOVED_TAGS: &'static [u8] = &[$($removed),*];
        }
    };
}
pub(crate) use wire_messages;
