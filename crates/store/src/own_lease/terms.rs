//! Events, actions, and the values in them.

use std::net::IpAddr;
use std::time::Duration;

use model::{Dual, Lease, LeaseAttrs, SubnetKey};

/// A time: since an origin that the driver chooses. It counts while the machine sleeps.
pub type Time = Duration;

/// Identifies one run of a daemon; the lower one is older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriterId(pub u64);

/// Who wrote a value, and as what: a JSON key of the value that other programs ignore. Only
/// questions and their answers are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signature {
    /// A newcomer asks whether the lease's holder is running.
    Claimant(WriterId),
    /// The holder answers that it does.
    Holder(WriterId),
}

/// A value to write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Value {
    /// What peers read.
    pub attrs: LeaseAttrs,
    /// What other daemons of this kind read.
    pub signature: Option<Signature>,
}

/// How long a key lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    /// It does not expire, and must not begin to.
    Reserved,
    /// It ends at `ends` unless it is renewed; that is to be done at `renew`.
    Until {
        /// No later than when the store ends it.
        ends: Time,
        /// When to renew it.
        renew: Time,
    },
    /// It expires, and this node does not renew it yet.
    Foreign,
}

/// A key of the store in one observed state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry<M> {
    /// The subnet.
    pub key: SubnetKey,
    /// The owner; `None` if the value cannot be read.
    pub attrs: Option<LeaseAttrs>,
    /// Who wrote it.
    pub signature: Option<Signature>,
    /// How long it lives.
    pub life: Life,
    /// See [`Lease::seniority`].
    pub seniority: u64,
    /// The network configuration allows it.
    pub fits: bool,
    /// What the store needs to change it only if it is still as seen: equal if nothing was written.
    pub mark: M,
}

impl<M> Entry<M> {
    /// Whether the store holds exactly this value.
    pub(super) fn says(&self, value: &Value) -> bool {
        self.attrs.as_ref() == Some(&value.attrs) && self.signature == value.signature
    }

    /// Whether a person wrote it, and no daemon: a reservation that says no more than an address.
    pub(super) fn is_made_by_hand(&self) -> bool {
        let bare = |attrs: &LeaseAttrs| attrs.backend_type.is_none() && attrs.data.is_empty();
        self.life == Life::Reserved && self.attrs.as_ref().is_some_and(bare)
    }
}

/// Why a key does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Somebody deleted it.
    Deleted,
    /// The store lost it: restored from a backup, or its data are gone.
    Lost,
}

/// What reading one key shows.
#[allow(
    clippy::large_enum_variant,
    reason = "one at a time, and mostly the large one"
)]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Look<M> {
    /// It is there.
    There(Entry<M>),
    /// It is not.
    Gone(Cause),
}

/// One piece of work for the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request<M> {
    /// Read some more keys; `anew`: from the beginning.
    Read {
        /// Forget what was read.
        anew: bool,
    },
    /// Choose a free subnet. `lost`: how many times another node was faster.
    Pick {
        /// Widens the choice.
        lost: u32,
    },
    /// Write `value` under `key`, if the key is still in the state `over` (`None`: it does not exist).
    Write {
        /// Where.
        key: SubnetKey,
        /// What.
        value: Value,
        /// The state that is replaced.
        over: Option<M>,
        /// It is not to expire.
        reserved: bool,
    },
    /// Delete `key`, if it is still in the state `over`.
    Delete {
        /// Which.
        key: SubnetKey,
        /// The state that is deleted.
        over: M,
    },
    /// Read `key`.
    Look {
        /// Which.
        key: SubnetKey,
    },
    /// Extend the life of the own key.
    Renew,
}

/// How a [`Request`] ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer<M> {
    /// Some keys were read; whether all are.
    Read {
        /// There are no more.
        all: bool,
    },
    /// A free subnet, or why there is none.
    Picked(Result<SubnetKey, String>),
    /// It was written. `rival`: an older key whose subnet overlaps.
    Written {
        /// As it is now.
        entry: Entry<M>,
        /// Who was there first.
        rival: Option<SubnetKey>,
    },
    /// It was not written or deleted: the key is in this state.
    Differs(Option<Entry<M>>),
    /// It was deleted, or did not exist.
    Deleted,
    /// The key is in this state. `rival`: as in [`Answer::Written`].
    Looked {
        /// What is there.
        look: Look<M>,
        /// Who was there first.
        rival: Option<SubnetKey>,
    },
    /// The own key now lives so long.
    Renewed(Life),
    /// There is nothing to renew: the key is gone, or about to expire.
    LifeOver,
}

/// What a store reports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event<M> {
    /// All keys are read from the beginning: what was read before does not count.
    ListingBegan,
    /// A key that may be this node's.
    Entry(Entry<M>),
    /// A request was answered.
    Answer(Answer<M>),
    /// A request was not answered, or was refused. It may have been carried out. Nothing more is
    /// asked for before [`Event::Retry`].
    Failed,
    /// The node wants a subnet, to publish this under it.
    Want(LeaseAttrs),
    /// The node wants this published.
    Publish(LeaseAttrs),
    /// The own key is in this state now.
    Observed(Look<M>),
    /// The store has lost data, or is another one.
    HistoryLost,
    /// The subnet that was assigned to the node no longer is: why.
    Reassigned(String),
    /// Failed requests may be tried again.
    Retry,
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action<M> {
    /// Work for the store.
    Do(Request<M>),
    /// The node has this lease.
    Acquired(Lease),
    /// The store now shows the node's lease as desired.
    Changed(Lease),
    /// There is no free subnet.
    Full(String),
    /// The lease is lost, or there is none for this node; nothing follows.
    Revoked(Revocation),
    /// For the log.
    Say(Notice),
    /// Send [`Event::Tick`] then, unless another event leads to another time.
    WakeAt(Time),
}

/// Why a node has no lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Revocation {
    /// Somebody deleted the key.
    Deleted(SubnetKey),
    /// The key belongs to the node with these addresses.
    Taken(SubnetKey, Dual<IpAddr>),
    /// A living node publishes the same address and holds the key.
    Outranked(SubnetKey, Dual<IpAddr>),
    /// A living node with the same address took a subnet at the same moment, and was the first.
    Twin {
        /// The own key, which was deleted.
        own: SubnetKey,
        /// The other node's.
        other: SubnetKey,
        /// The address.
        ours: Dual<IpAddr>,
    },
    /// The subnet is no longer assigned to the node: why.
    Reassigned(SubnetKey, String),
}

impl std::fmt::Display for Revocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Revocation::Deleted(key) => write!(f, "{key} was deleted from the store"),
            Revocation::Taken(key, owner) => {
                write!(f, "{key} belongs to {} now", addresses(owner))
            }
            Revocation::Outranked(key, ours)
            | Revocation::Twin {
                other: key, ours, ..
            } => write!(
                f,
                "another living node publishes our public address {} and holds {key}: give one of the two another \
                 address (--public-ip)",
                addresses(ours)
            ),
            Revocation::Reassigned(_, why) => f.write_str(why),
        }
    }
}

/// Something for the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// A lease from an earlier run is used again.
    Adopted {
        /// Which.
        key: SubnetKey,
        /// It does not expire.
        reserved: bool,
    },
    /// A lease from an earlier run is about to be used if no living node holds it.
    Asking(SubnetKey),
    /// A new lease.
    Created(SubnetKey),
    /// A lease from an earlier run does not fit the configuration and is deleted.
    Discarded(SubnetKey),
    /// A second lease of this node, from a request that arrived late, was deleted.
    Second(SubnetKey),
    /// Somebody else wrote the own key of the node with these addresses; it is written again.
    Overwritten(SubnetKey, Dual<IpAddr>),
    /// Another node asked whether this one, with these addresses, lives.
    Asked(SubnetKey, Dual<IpAddr>),
    /// The own key had been lost and was written again.
    Restored(SubnetKey),
}

/// How a node recognises its lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Who {
    /// Its public addresses.
    pub public_ip: Dual<IpAddr>,
    /// The subnet that an old `subnet.env` names.
    pub previous: Option<SubnetKey>,
    /// Texts in the backend data that name one of its devices: a MAC, a public key.
    pub devices: Vec<String>,
    /// Such texts that this program makes from its public addresses: they tell nothing about which machine
    /// it is, but that the lease was written by this program.
    pub made: Vec<String>,
}

/// By what a lease was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Likeness {
    /// The public address.
    Address,
    /// A device in the backend data; the address is another one.
    Device,
}

impl Who {
    /// Whether a lease with these attributes may be this node's.
    pub fn likeness(&self, attrs: &LeaseAttrs) -> Option<Likeness> {
        if same_node(attrs, &self.public_ip) {
            return Some(Likeness::Address);
        }
        self.names_device(attrs).then_some(Likeness::Device)
    }

    /// Whether the backend data name a device of this node.
    pub fn names_device(&self, attrs: &LeaseAttrs) -> bool {
        names_one(attrs, &self.devices)
    }

    /// Whether this program wrote the backend data for these addresses.
    pub(super) fn is_made(&self, attrs: &LeaseAttrs) -> bool {
        names_one(attrs, &self.made)
    }
}

fn names_one(attrs: &LeaseAttrs, texts: &[String]) -> bool {
    let names = |data: &str| texts.iter().any(|text| named_in(data, text));
    attrs.data.iter().any(|(_, data)| names(data.get()))
}

/// Whether `device` is one of the strings in the JSON `data`, whatever its case.
fn named_in(data: &str, device: &str) -> bool {
    !device.is_empty()
        && data
            .split('"')
            .any(|text| text.eq_ignore_ascii_case(device))
}

/// Whether a lease was published by a node with these public addresses. The IPv4 address decides
/// where both have one.
pub fn same_node(attrs: &LeaseAttrs, ours: &Dual<IpAddr>) -> bool {
    match (attrs.public_ip.v4, ours.v4) {
        (Some(theirs), Some(ours)) => theirs == ours,
        _ => attrs.public_ip.v6.is_some() && attrs.public_ip.v6 == ours.v6,
    }
}

/// Addresses for a message: `10.0.0.1`, or `10.0.0.1 and fd00::1`.
pub(crate) fn addresses(ips: &Dual<IpAddr>) -> String {
    let all: Vec<String> = ips.iter().map(|(_, ip)| ip.to_string()).collect();
    if all.is_empty() {
        "another node".into()
    } else {
        all.join(" and ")
    }
}
