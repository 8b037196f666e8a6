//! One change to the kernel. Its text is the `ip` or `bridge` command that would make the same
//! change: the log line, the golden file and the dry run.

use std::fmt;

use crate::kernel::{Link, LinkKind, NextHop, Object, Route, RouteKey, RouteTo};

/// One change to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make it so, whether or not something stands there already.
    Put(Object),
    /// Take it away. Holds what was observed, which the kernel may want named.
    Del(Object),
}

impl Op {
    /// The object concerned.
    pub fn object(&self) -> &Object {
        match self {
            Op::Put(object) | Op::Del(object) => object,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Put(object) => put(f, object),
            Op::Del(object) => del(f, object),
        }
    }
}

fn put(f: &mut fmt::Formatter<'_>, object: &Object) -> fmt::Result {
    match object {
        Object::Link(name, link) => put_link(f, name.as_str(), link),
        Object::Addr(a) => write!(f, "ip address replace {} dev {}", a.net, a.dev),
        Object::Neigh(n, mac) => {
            write!(
                f,
                "ip neigh replace {} lladdr {mac} dev {} nud permanent",
                n.ip, n.dev
            )
        }
        Object::Fdb(e, dst) => {
            write!(
                f,
                "bridge fdb replace {} dev {} dst {dst} self permanent",
                e.mac, e.dev
            )
        }
        Object::NextHop(id, hop) => {
            write!(
                f,
                "ip nexthop replace id {id} {} protocol {}",
                Hop(hop),
                crate::kernel::ROUTE_PROTOCOL
            )
        }
        Object::Route(key, route) => {
            write!(f, "ip route replace {}{}", Dst(key, route), To(route))?;
            write!(f, " proto {}{}", route.protocol, Metric(key))
        }
    }
}

fn del(f: &mut fmt::Formatter<'_>, object: &Object) -> fmt::Result {
    match object {
        Object::Link(name, _) => write!(f, "ip link del {name}"),
        Object::Addr(a) => write!(f, "ip address del {} dev {}", a.net, a.dev),
        Object::Neigh(n, _) => write!(f, "ip neigh del {} dev {}", n.ip, n.dev),
        Object::Fdb(e, dst) => write!(f, "bridge fdb del {} dev {} dst {dst} self", e.mac, e.dev),
        Object::NextHop(id, _) => write!(f, "ip nexthop del id {id}"),
        Object::Route(key, route) => {
            write!(
                f,
                "ip route del {}{}{}",
                Dst(key, route),
                To(route),
                Metric(key)
            )
        }
    }
}

fn put_link(f: &mut fmt::Formatter<'_>, name: &str, link: &Link) -> fmt::Result {
    write!(f, "ip link add {name}")?;
    if let Some(mac) = link.mac {
        write!(f, " address {mac}")?;
    }
    write!(f, " mtu {}", link.mtu)?;
    match &link.kind {
        LinkKind::Vxlan(v) => {
            write!(
                f,
                " type vxlan id {} dev {} local {} dstport {}",
                v.vni, v.dev, v.local, v.port
            )?;
            f.write_str(if v.learning {
                " learning"
            } else {
                " nolearning"
            })?;
            f.write_str(if v.gbp { " gbp" } else { "" })?;
        }
        LinkKind::Foreign(kind) => write!(f, " type {kind}")?,
    }
    if let Some(on) = link.tx_checksum {
        write!(
            f,
            " && ethtool -K {name} tx {}",
            if on { "on" } else { "off" }
        )?;
    }
    match link.up {
        true => write!(f, " && ip link set {name} up"),
        false => Ok(()),
    }
}

struct Hop<'a>(&'a NextHop);
struct Dst<'a>(&'a RouteKey, &'a Route);
struct To<'a>(&'a Route);
struct Metric<'a>(&'a RouteKey);

impl fmt::Display for Hop<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "via {} dev {}", self.0.via, self.0.dev)?;
        f.write_str(if self.0.onlink { " onlink" } else { "" })
    }
}

impl fmt::Display for Dst<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1.to {
            RouteTo::Blackhole => write!(f, "blackhole {}", self.0.dst),
            _ => write!(f, "{}", self.0.dst),
        }
    }
}

impl fmt::Display for To<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.to {
            RouteTo::Gateway(hop) => write!(f, " {}", Hop(hop)),
            RouteTo::NextHopId(id) => write!(f, " nhid {id}"),
            RouteTo::Dev(dev) => write!(f, " dev {dev} scope link"),
            RouteTo::Foreign(dev) => write!(f, " dev {dev}"),
            RouteTo::Blackhole => Ok(()),
        }
    }
}

impl fmt::Display for Metric<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.metric {
            m if m == crate::kernel::default_metric(&self.0.dst) => Ok(()),
            m => write!(f, " metric {m}"),
        }
    }
}
