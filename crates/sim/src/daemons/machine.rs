//! A simulated machine: a fake kernel, and the host's interface in it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};

use dataplane::fake::FakeKernel;
use dataplane::host::{DefaultRoute, Interface, LinkRoutes, Path, Standing};
use dataplane::{AnyKernel, KernelError};
use flanneld::machine::Machine;
use flanneld::options::Options;
use ipnet::{IpNet, Ipv4Net};
use model::object::{AddrKey, BOOT_PROTOCOL, NextHop, Route, RouteKey, RouteTo};
use model::{Dual, IfName, Object, Op};

/// The index of the host's interface.
const INDEX: u32 = 2;

/// A machine.
pub struct SimMachine {
    /// The kernel as everybody but the daemon uses it.
    kernel: FakeKernel,
    iface: IfName,
    address: Mutex<Ipv4Addr>,
    /// The kernel as the present daemon uses it.
    daemons: Mutex<Option<FakeKernel>>,
}

impl SimMachine {
    /// Returns a machine with one interface, with this address and a default route.
    pub fn new(iface: IfName, address: Ipv4Addr, next_hops: bool) -> SimMachine {
        let kernel = FakeKernel::new(next_hops);
        kernel.add_iface(iface, INDEX, 1500, &[]);
        let machine = SimMachine {
            kernel,
            iface,
            address: Mutex::new(address),
            daemons: Mutex::default(),
        };
        machine.add_address(address);
        machine
    }

    /// Returns the kernel as everybody but the daemon uses it.
    pub fn kernel(&self) -> &FakeKernel {
        &self.kernel
    }

    /// Returns the kernel as the present daemon uses it: for its faults.
    pub fn daemons_kernel(&self) -> Option<FakeKernel> {
        let daemons = self.daemons.lock().unwrap_or_else(PoisonError::into_inner);
        daemons.clone()
    }

    /// Returns the host's interface.
    pub fn iface(&self) -> IfName {
        self.iface
    }

    /// Returns the host's address.
    pub fn address(&self) -> Ipv4Addr {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the host another address instead of its own.
    pub fn readdress(&self, address: Ipv4Addr) {
        let before = self.address();
        self.kernel.outside(&Op::Del(self.addr(before)));
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
        self.add_address(address);
    }

    /// Sets the interface down and up again: its routes go, and the default route comes back.
    pub fn flap(&self) {
        self.kernel.set_up(&self.iface, false);
        self.kernel.set_up(&self.iface, true);
        self.add_address(self.address());
    }

    fn addr(&self, address: Ipv4Addr) -> Object {
        let net = Ipv4Net::new_assert(address, 24);
        let key = AddrKey {
            dev: self.iface,
            net: IpNet::V4(net),
        };
        Object::Addr(key, ())
    }

    fn add_address(&self, address: Ipv4Addr) {
        self.kernel.outside(&Op::Put(self.addr(address)));
        let [a, b, c, _] = address.octets();
        let everywhere = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
        let route = Route {
            to: RouteTo::Gateway(NextHop {
                via: Ipv4Addr::new(a, b, c, 254).into(),
                dev: self.iface,
                onlink: false,
            }),
            protocol: BOOT_PROTOCOL,
        };
        let route = Object::Route(RouteKey::to(everywhere), route);
        self.kernel.outside(&Op::Put(route));
    }
}

impl Machine for SimMachine {
    fn open_kernel(&self, _: &Options) -> Result<AnyKernel, KernelError> {
        let kernel = self.kernel.another();
        let mut daemons = self.daemons.lock().unwrap_or_else(PoisonError::into_inner);
        *daemons = Some(kernel.clone());
        Ok(AnyKernel::new(kernel))
    }

    fn interfaces(&self) -> Result<Vec<Interface>, KernelError> {
        Ok(self.kernel.interfaces())
    }

    fn link_routes(&self, index: u32) -> Result<LinkRoutes, KernelError> {
        Ok(self.kernel.link_routes(index))
    }

    fn default_routes(&self) -> Result<Vec<DefaultRoute>, KernelError> {
        Ok(self.kernel.default_routes())
    }

    fn route_to(&self, ip: IpAddr) -> Result<Option<Path>, KernelError> {
        Ok(self.kernel.route_to(ip))
    }

    fn connected(&self, within: &Dual<IpNet>) -> Result<BTreeMap<IpNet, IfName>, KernelError> {
        Ok(self.kernel.connected(within))
    }

    fn standing(&self, name: &IfName) -> Result<Option<Standing>, KernelError> {
        Ok(self.kernel.standing(name))
    }

    fn is_this_host(&self) -> bool {
        false
    }
}
