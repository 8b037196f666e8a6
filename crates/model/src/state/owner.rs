//! Who wants kernel objects.

/// Who wants an object. Of two owners that want the same key the one listed first has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// This node: its devices and their addresses.
    Node,
    /// A backend in use, while the network changes from one to another there are several: its devices and
    /// their addresses.
    Generation(Slot),
    /// The network as a whole: routes that lead nowhere.
    Network,
    /// One peer.
    Peer(PeerId),
}

/// Names a backend in use for as long as it is: a small number, reused later.
pub type Slot = u8;

/// How many backends can be in use at once.
pub const SLOTS: Slot = 8;

/// Names a peer for as long as it exists; the roster's position of its lease.
pub type PeerId = u32;

/// The owners' numbers begin with this node and the network.
const FIRST_SLOT: u32 = 2;
const FIRST_PEER: u32 = FIRST_SLOT + SLOTS as u32;

impl Owner {
    /// Returns the number by which tables know the owner.
    pub(super) fn number(self) -> u32 {
        match self {
            Owner::Node => 0,
            Owner::Network => 1,
            Owner::Generation(slot) => FIRST_SLOT + u32::from(slot % SLOTS),
            Owner::Peer(id) => id.saturating_add(FIRST_PEER),
        }
    }

    /// Returns the owner of this number.
    pub(super) fn from_number(number: u32) -> Owner {
        match number {
            0 => Owner::Node,
            1 => Owner::Network,
            slot @ FIRST_SLOT..FIRST_PEER => Owner::Generation((slot - FIRST_SLOT) as Slot % SLOTS),
            peer => Owner::Peer(peer - FIRST_PEER),
        }
    }
}
