//! A kernel whose kind is chosen when the program runs.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;

use model::{Object, Op};

use crate::{Dataplane, Features, KernelError, KernelEvent, Outcome, Scope};

/// A kernel of any kind.
pub struct AnyKernel(Box<dyn Erased>);

impl AnyKernel {
    /// Returns `kernel` as one of any kind.
    pub fn new(kernel: impl Dataplane + 'static) -> AnyKernel {
        AnyKernel(Box::new(kernel))
    }
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// [`Dataplane`], with futures that have the same type for every kernel.
trait Erased {
    fn features(&self) -> Features;
    fn set_scope(&mut self, scope: Scope);
    fn observe<'a>(
        &'a mut self,
        each: &'a mut dyn FnMut(Object),
    ) -> Boxed<'a, Result<(), KernelError>>;
    fn taken_ids(&self) -> BTreeSet<u32>;
    fn apply<'a>(&'a mut self, ops: &'a [Op]) -> Boxed<'a, Vec<Outcome>>;
    fn event(&mut self) -> Boxed<'_, KernelEvent>;
}

impl<D: Dataplane> Erased for D {
    fn features(&self) -> Features {
        Dataplane::features(self)
    }

    fn set_scope(&mut self, scope: Scope) {
        Dataplane::set_scope(self, scope);
    }

    fn observe<'a>(
        &'a mut self,
        each: &'a mut dyn FnMut(Object),
    ) -> Boxed<'a, Result<(), KernelError>> {
        Box::pin(Dataplane::observe(self, each))
    }

    fn taken_ids(&self) -> BTreeSet<u32> {
        Dataplane::taken_ids(self)
    }

    fn apply<'a>(&'a mut self, ops: &'a [Op]) -> Boxed<'a, Vec<Outcome>> {
        Box::pin(Dataplane::apply(self, ops))
    }

    fn event(&mut self) -> Boxed<'_, KernelEvent> {
        Box::pin(Dataplane::event(self))
    }
}

impl Dataplane for AnyKernel {
    fn features(&self) -> Features {
        self.0.features()
    }

    fn set_scope(&mut self, scope: Scope) {
        self.0.set_scope(scope);
    }

    async fn observe(&mut self, each: &mut dyn FnMut(Object)) -> Result<(), KernelError> {
        self.0.observe(each).await
    }

    fn taken_ids(&self) -> BTreeSet<u32> {
        self.0.taken_ids()
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        self.0.apply(ops).await
    }

    async fn event(&mut self) -> KernelEvent {
        self.0.event().await
    }
}
