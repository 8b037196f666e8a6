//! The kernel as the reconciler sees it: one value, with a door for each kind of object.

use std::collections::BTreeSet;
use std::path::PathBuf;

use model::{Object, Op};

use crate::charon::Charon;
use crate::commands::Commands;
use crate::door::Door;
use crate::netlink::Rtnetlink;
use crate::packet_loops::PacketLoops;
use crate::wireguard::KernelWireguard;
use crate::xfrm::XfrmPolicies;
use crate::{Dataplane, Features, KernelError, KernelEvent, Outcome, Scope};

/// Lists the doors, in the order in which they are looked through. For each: its field, its type, and the
/// kinds of object behind it. A kind that is behind no door does not compile.
macro_rules! doors {
    ($($(#[$doc:meta])* $field:ident: $door:ident for $first:ident $(| $kind:ident)*;)*) => {
        /// The kernel of the network namespace in which it was opened.
        pub struct Kernel {
            $($(#[$doc])* $field: $door,)*
        }

        #[derive(Clone, Copy, PartialEq, Eq)]
        enum Way {
            $($door,)*
        }

        /// Returns the door to an object.
        fn way(object: &Object) -> Way {
            match object {
                $(Object::$first(..) $(| Object::$kind(..))* => Way::$door,)*
            }
        }

        impl Kernel {
            fn set_scope_of_all(&mut self, scope: &Scope) {
                $(self.$field.set_scope(scope);)*
            }

            async fn observe_all(&mut self, each: &mut dyn FnMut(Object)) -> Result<(), KernelError> {
                $(self.$field.observe(each).await?;)*
                Ok(())
            }

            async fn apply_to(&mut self, way: Way, ops: &[Op]) -> Vec<Outcome> {
                match way {
                    $(Way::$door => self.$field.apply(ops).await,)*
                }
            }

            async fn next_event(&mut self) -> KernelEvent {
                tokio::select! {
                    biased;
                    $(event = self.$field.event() => event,)*
                }
            }
        }
    };
}

doors! {
    /// Devices, addresses, neighbours and routes.
    rtnetlink: Rtnetlink for Link | Addr | Neigh | Fdb | NextHop | Route;
    /// Tunnels in user space.
    packet_loops: PacketLoops for PacketLoop | TunnelRoute | TunnelPeer;
    /// WireGuard in the kernel.
    wireguard: KernelWireguard for WgDevice | WgPeer;
    /// What the kernel encrypts.
    xfrm: XfrmPolicies for XfrmPolicy;
    /// Who agrees on the keys for it.
    charon: Charon for IkeDaemon | IkeConnection;
    /// Commands of the network configuration.
    commands: Commands for PostStartup | PeerCommand;
}

impl Kernel {
    /// Opens the kernel, on the current tokio runtime. `plain_routes` does without next-hop objects
    /// even where the kernel has them.
    ///
    /// # Errors
    /// No netlink socket can be opened.
    pub fn open(plain_routes: bool) -> Result<Kernel, KernelError> {
        Ok(Kernel {
            rtnetlink: Rtnetlink::open(plain_routes)?,
            packet_loops: PacketLoops::default(),
            wireguard: KernelWireguard::default(),
            xfrm: XfrmPolicies::default(),
            charon: Charon::new(None, None),
            commands: Commands::new(None),
        })
    }

    /// Talks to the charon that listens at `socket`, and starts none; without it, starts one if nobody
    /// listens where charon does by default, and keeps in `pid_file` which one.
    pub fn with_charon(self, socket: Option<PathBuf>, pid_file: PathBuf) -> Kernel {
        Kernel {
            charon: Charon::new(socket, Some(pid_file)),
            ..self
        }
    }

    /// Keeps journals in `dir` of the commands that are run for peers, so that the next run of the daemon
    /// knows of them.
    pub fn with_journals(self, dir: PathBuf) -> Kernel {
        Kernel {
            commands: Commands::new(Some(dir)),
            ..self
        }
    }
}

impl Dataplane for Kernel {
    fn features(&self) -> Features {
        self.rtnetlink.features()
    }

    fn set_scope(&mut self, scope: Scope) {
        self.set_scope_of_all(&scope);
    }

    async fn observe(&mut self, each: &mut dyn FnMut(Object)) -> Result<(), KernelError> {
        self.observe_all(each).await
    }

    fn taken_ids(&self) -> BTreeSet<u32> {
        self.rtnetlink.taken_ids()
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(ops.len());
        for run in ops.chunk_by(|a, b| way(a.object()) == way(b.object())) {
            let Some(first) = run.first() else { continue };
            outcomes.extend(self.apply_to(way(first.object()), run).await);
        }
        outcomes
    }

    async fn event(&mut self) -> KernelEvent {
        self.next_event().await
    }
}
