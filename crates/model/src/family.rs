//! Address families as data.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(ip: &IpAddr) -> Family {
        match ip {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The family of a network.
    pub fn of_net(net: &IpNet) -> Family {
        match net {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }

    /// Bits in an address: 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// Something that exists once for each address family that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dual<T> {
    /// The IPv4 one.
    pub v4: Option<T>,
    /// The IPv6 one.
    pub v6: Option<T>,
}

impl<T> Default for Dual<T> {
    fn default() -> Self {
        Dual { v4: None, v6: None }
    }
}

impl<T> Dual<T> {
    /// The one of `family`.
    pub fn get(&self, family: Family) -> Option<&T> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// Sets or clears the one of `family`.
    pub fn set(&mut self, family: Family, value: Option<T>) {
        match family {
            Family::V4 => self.v4 = value,
            Family::V6 => self.v6 = value,
        }
    }

    /// The ones that are there, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::ALL
            .into_iter()
            .filter_map(|f| self.get(f).map(|v| (f, v)))
    }

    /// Neither is there.
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    /// Builds each family's value by `f`.
    pub fn from_fn(mut f: impl FnMut(Family) -> Option<T>) -> Self {
        Dual {
            v4: f(Family::V4),
            v6: f(Family::V6),
        }
    }

    /// Both values through `f`.
    pub fn map<U>(&self, mut f: impl FnMut(Family, &T) -> U) -> Dual<U> {
        Dual {
            v4: self.v4.as_ref().map(|v| f(Family::V4, v)),
            v6: self.v6.as_ref().map(|v| f(Family::V6, v)),
        }
    }
}
