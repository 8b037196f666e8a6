//! The only door to the kernel: look at what it holds, change it, be told when somebody else did.

mod any;
mod charon;
mod commands;
mod door;
mod failure;
mod kernel;
mod names;
mod netlink;
mod packet_loops;
mod wireguard;
mod xfrm;

pub mod datagram;
pub mod fake;
pub mod guard;
pub mod host;
pub mod leftovers;
pub mod paths;
pub mod rules;

use std::collections::BTreeSet;
use std::future::Future;

use ipnet::IpNet;
use model::{Dual, IfName, Object, Op};

pub use any::AnyKernel;
pub use commands::run as run_command;
pub use kernel::Kernel;
pub use wireguard::is_available as has_wireguard;

/// Which of the kernel's objects concern this daemon; everything else is neither reported nor
/// touched. See ADR 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Our own devices, whether or not they exist at present: all that is on them is ours. So is what an
    /// earlier configuration of this network left: devices with a flannel's name and kind whose mark
    /// names the network, and routes inside the network that carry our protocol number, on any device.
    pub devices: Vec<IfName>,
    /// The host's interface, on which only some routes are ours.
    pub iface: IfName,
    /// The flannel network, per family. A route on `iface` concerns us only inside it.
    pub network: Dual<IpNet>,
    /// This node's subnet, per family. The other nodes' have the same length.
    pub own: Dual<IpNet>,
    /// Another flannel ran on this host before us. What it left carries no mark: its routes on `iface`,
    /// its blackhole routes inside our subnet and its devices. What the first full look shows of that is
    /// ours from then on; what comes later is not.
    pub take_over: bool,
}

/// What became of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It was begun and takes a while. An event says how the object is afterwards, or why it is
    /// not ([`KernelEvent::Refused`]). Asking for the same again is harmless.
    UnderWay,
    /// It is not done.
    Refused(KernelError),
}

impl Outcome {
    /// Returns whether the operation is done.
    pub fn is_done(&self) -> bool {
        *self == Outcome::Done
    }

    /// Returns why the operation is not done, if it was refused.
    pub fn refusal(&self) -> Option<&KernelError> {
        match self {
            Outcome::Refused(error) => Some(error),
            Outcome::Done | Outcome::UnderWay => None,
        }
    }
}

impl From<Result<(), KernelError>> for Outcome {
    fn from(done: Result<(), KernelError>) -> Outcome {
        match done {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Refused(error),
        }
    }
}

/// The kernel's refusal of one operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {reason}")]
pub struct KernelError {
    /// The operation, as text.
    pub op: String,
    /// `errno`, positive.
    pub errno: i32,
    /// The kernel's text: its extended acknowledgement where there is one.
    pub reason: String,
}

/// Something the kernel told without being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// An object in scope is now so.
    Saw(Object),
    /// An object in scope is gone.
    Gone(Object),
    /// An operation that was under way ended without success.
    Refused(Op, KernelError),
    /// More may have changed than events tell (a link went up, down or away; notices were lost):
    /// look at everything again.
    LookAgain,
    /// The host's interface, its addresses or its on-link routes changed: gather [`model::Host`] anew.
    HostChanged,
}

/// What this kernel can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Next-hop objects (kernel ≥ 5.3).
    pub next_hops: bool,
}

/// The kernel, or something that behaves like it.
pub trait Dataplane {
    /// What this kernel can do; probed once.
    fn features(&self) -> Features;

    /// Sets which objects are reported by [`Dataplane::observe`] and [`Dataplane::event`].
    fn set_scope(&mut self, scope: Scope);

    /// Reads every object in scope and hands each to `each`, devices first.
    ///
    /// # Errors
    /// The kernel refused a dump, or its answer could not be read; what was handed out until then
    /// is incomplete.
    fn observe(
        &mut self,
        each: &mut dyn FnMut(Object),
    ) -> impl Future<Output = Result<(), KernelError>>;

    /// Returns the ids that next-hop objects of other programs had at the last full look, of those that
    /// we might give to one.
    fn taken_ids(&self) -> BTreeSet<u32>;

    /// Makes the changes in order, as few system calls as possible; one outcome each. An
    /// operation that fails does not stop the others. `Put` of what is already so, and `Del` of what
    /// is gone, succeed. Where a change of a device or the deletion of an address may have taken other
    /// objects along, [`KernelEvent::LookAgain`] follows.
    fn apply(&mut self, ops: &[Op]) -> impl Future<Output = Vec<Outcome>>;

    /// Waits for the next thing in scope that somebody else changed. Changes made through
    /// [`Dataplane::apply`] are not reported. Cancel-safe.
    fn event(&mut self) -> impl Future<Output = KernelEvent>;
}
