//! Routes of the main table.

use std::fmt;

use ipnet::IpNet;

use super::{Kind, NextHop};
use crate::IfName;

/// `rtm_protocol` of our routes and next-hop objects. Not registered by anyone in
/// `/etc/iproute2/rt_protos`; see ADR 1.
pub const ROUTE_PROTOCOL: u8 = 241;

/// `rtm_protocol` of routes that the kernel writes by itself.
pub const KERNEL_PROTOCOL: u8 = 2;

/// `rtm_protocol` of routes whose author names none: upstream's flannel, or `ip` without `proto`.
pub const BOOT_PROTOCOL: u8 = 3;

/// Returns the route priority ("metric") that the kernel gives when none is asked for.
pub fn default_metric(dst: &IpNet) -> u32 {
    match dst {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => 1024,
    }
}

/// A route in the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Destination.
    pub dst: IpNet,
    /// Priority; see [`default_metric`].
    pub metric: u32,
    /// Type of service (IPv4), a part of the key in the kernel. Zero in every route of ours.
    pub tos: u8,
}

impl RouteKey {
    /// Returns the key of the route to `dst` at the family's default priority.
    pub fn to(dst: IpNet) -> RouteKey {
        RouteKey {
            dst,
            metric: default_metric(&dst),
            tos: 0,
        }
    }

    /// Returns the key of the route to `dst` at this priority.
    pub fn with_metric(dst: IpNet, metric: u32) -> RouteKey {
        RouteKey {
            metric,
            ..RouteKey::to(dst)
        }
    }
}

/// Where a route leads, and who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub to: RouteTo,
    /// Who wrote it (`rtm_protocol`); [`ROUTE_PROTOCOL`] for ours.
    pub protocol: u8,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteTo {
    /// Through a gateway, written into the route itself.
    Gateway(NextHop),
    /// Through a next-hop object, by its id.
    NextHopId(u32),
    /// Straight out of a device (`scope link`).
    Dev(IfName),
    /// Nowhere.
    Blackhole,
    /// Observed only: a form that we never write, on this device.
    Foreign(IfName),
}

impl Route {
    /// Returns a route of ours.
    pub fn ours(to: RouteTo) -> Route {
        Route {
            to,
            protocol: ROUTE_PROTOCOL,
        }
    }
}

/// Routes of the main table.
pub struct Routes;

impl Kind for Routes {
    type Key = RouteKey;
    type Value = Route;
    const NAME: &'static str = "route";

    fn device(_: &RouteKey, route: &Route) -> Option<IfName> {
        match route.to {
            RouteTo::Gateway(hop) => Some(hop.dev),
            RouteTo::Dev(dev) | RouteTo::Foreign(dev) => Some(dev),
            RouteTo::NextHopId(_) | RouteTo::Blackhole => None,
        }
    }

    fn put(f: &mut fmt::Formatter<'_>, key: &RouteKey, route: &Route) -> fmt::Result {
        let (to, metric) = (route.to, Metric(key));
        let kind = kind(&to);
        write!(
            f,
            "ip route replace {kind}{}{}{to} proto {}{metric}",
            key.dst,
            Tos(key),
            route.protocol
        )
    }

    fn del(f: &mut fmt::Formatter<'_>, key: &RouteKey, route: &Route) -> fmt::Result {
        let (to, metric) = (route.to, Metric(key));
        write!(
            f,
            "ip route del {}{}{}{to}{metric}",
            kind(&to),
            key.dst,
            Tos(key)
        )
    }
}

fn kind(to: &RouteTo) -> &'static str {
    match to {
        RouteTo::Blackhole => "blackhole ",
        RouteTo::Gateway(_) | RouteTo::NextHopId(_) | RouteTo::Dev(_) | RouteTo::Foreign(_) => "",
    }
}

impl fmt::Display for RouteTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteTo::Gateway(hop) => write!(f, " {hop}"),
            RouteTo::NextHopId(id) => write!(f, " nhid {id}"),
            RouteTo::Dev(dev) => write!(f, " dev {dev} scope link"),
            RouteTo::Foreign(dev) => write!(f, " dev {dev}"),
            RouteTo::Blackhole => Ok(()),
        }
    }
}

struct Tos<'a>(&'a RouteKey);
struct Metric<'a>(&'a RouteKey);

impl fmt::Display for Tos<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.tos {
            0 => Ok(()),
            tos => write!(f, " tos {tos:#x}"),
        }
    }
}

impl fmt::Display for Metric<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.metric {
            m if m == default_metric(&self.0.dst) => Ok(()),
            m => write!(f, " metric {m}"),
        }
    }
}
