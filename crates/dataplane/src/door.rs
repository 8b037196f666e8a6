//! One way to the kernel's objects, or to what stands for such objects: a netlink family, a program.
//!
//! To add a door: a file that implements [`Door`], and a line in the list of `kernel.rs`, which says
//! what kinds of object are behind it.

use std::future::Future;

use model::{Object, Op};

use crate::{KernelError, KernelEvent, Outcome, Scope};

/// A door. All methods are as those of [`crate::Dataplane`], for the kinds of object that are behind
/// this door.
pub(crate) trait Door {
    /// Sets which objects are reported from now on.
    fn set_scope(&mut self, scope: &Scope);

    /// Hands every object in scope to `each`.
    ///
    /// # Errors
    /// Not all could be read.
    fn observe(
        &mut self,
        each: &mut dyn FnMut(Object),
    ) -> impl Future<Output = Result<(), KernelError>>;

    /// Makes the changes in order; one outcome each.
    fn apply(&mut self, ops: &[Op]) -> impl Future<Output = Vec<Outcome>>;

    /// Waits for the next thing in scope that somebody else changed, or that ended after it was under way.
    /// Cancel-safe.
    fn event(&mut self) -> impl Future<Output = KernelEvent>;
}
