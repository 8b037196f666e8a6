//! The machine that a node runs on: its kernel, and what the host's interfaces are like.
//!
//! A program that embeds nodes may give them machines of its own: that is how whole nodes are simulated.

use std::collections::BTreeMap;
use std::net::IpAddr;

use dataplane::host::{self, DefaultRoute, Interface, LinkRoutes, Path, Standing};
use dataplane::{AnyKernel, Kernel, KernelError};
use ipnet::IpNet;
use model::{Dual, IfName};

use crate::options::Options;
use crate::subnet_file;

/// A machine. The queries are those of [`dataplane::host`].
pub trait Machine: Send + Sync {
    /// Opens the kernel, with what the settings say about it.
    ///
    /// # Errors
    /// The kernel refuses.
    fn open_kernel(&self, options: &Options) -> Result<AnyKernel, KernelError>;

    /// See [`host::interfaces`].
    ///
    /// # Errors
    /// The kernel refuses.
    fn interfaces(&self) -> Result<Vec<Interface>, KernelError>;

    /// See [`host::link_routes`].
    ///
    /// # Errors
    /// The kernel refuses.
    fn link_routes(&self, index: u32) -> Result<LinkRoutes, KernelError>;

    /// See [`host::default_routes`].
    ///
    /// # Errors
    /// The kernel refuses.
    fn default_routes(&self) -> Result<Vec<DefaultRoute>, KernelError>;

    /// See [`host::route_to`].
    ///
    /// # Errors
    /// The kernel refuses.
    fn route_to(&self, ip: IpAddr) -> Result<Option<Path>, KernelError>;

    /// See [`host::connected`].
    ///
    /// # Errors
    /// The kernel refuses.
    fn connected(&self, within: &Dual<IpNet>) -> Result<BTreeMap<IpNet, IfName>, KernelError>;

    /// See [`host::standing`].
    ///
    /// # Errors
    /// The kernel refuses.
    fn standing(&self, name: &IfName) -> Result<Option<Standing>, KernelError>;

    /// Returns whether the machine is this host. On another one no packet filter is written, no setting of the kernel
    /// is read, and no other daemon of the same network is looked for.
    fn is_this_host(&self) -> bool;
}

/// The host that this program runs on, as its network namespace shows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisHost;

impl Machine for ThisHost {
    fn open_kernel(&self, options: &Options) -> Result<AnyKernel, KernelError> {
        let file = &options.subnet_file;
        let kernel = Kernel::open(options.plain_routes)?
            .with_journals(subnet_file::command_journals(file))
            .with_charon(
                options.charon_vici.clone(),
                file.with_file_name("charon.pid"),
            );
        Ok(AnyKernel::new(kernel))
    }

    fn interfaces(&self) -> Result<Vec<Interface>, KernelError> {
        host::interfaces()
    }

    fn link_routes(&self, index: u32) -> Result<LinkRoutes, KernelError> {
        host::link_routes(index)
    }

    fn default_routes(&self) -> Result<Vec<DefaultRoute>, KernelError> {
        host::default_routes()
    }

    fn route_to(&self, ip: IpAddr) -> Result<Option<Path>, KernelError> {
        host::route_to(ip)
    }

    fn connected(&self, within: &Dual<IpNet>) -> Result<BTreeMap<IpNet, IfName>, KernelError> {
        host::connected(within)
    }

    fn standing(&self, name: &IfName) -> Result<Option<Standing>, KernelError> {
        host::standing(name)
    }

    fn is_this_host(&self) -> bool {
        true
    }
}
