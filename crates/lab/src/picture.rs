//! What a kernel holds, as lines that read like `ip`'s: for comparing before with after.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

use crate::Error;
use crate::netlink::{Asker, attr, ip, u16_at, u32_at};

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const RTM_GETNEXTHOP: u16 = 106;
const NEWS_OF_LINK: u16 = 16;
const NEWS_OF_ADDR: u16 = 20;
const NEWS_OF_ROUTE: u16 = 24;
const NEWS_OF_NEIGH: u16 = 28;
const NEWS_OF_NEXTHOP: u16 = 104;
const AF_BRIDGE: u8 = 7;
const NUD_PERMANENT: u16 = 0x80;
const MAIN_TABLE: u32 = 254;

/// Links, addresses, routes of the main table, permanent neighbours, forwarding entries of
/// tunnels, and next-hop objects. What the kernel makes by itself (link-local addresses, learnt
/// neighbours) is left out, and so are numbers that change when an object is made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture(BTreeMap<String, usize>);

impl Picture {
    /// Looks at the network namespace of the calling thread.
    pub(crate) fn take() -> Result<Picture, Error> {
        Picture::take_with(&mut Names::default())
    }

    /// The same; `names` learns the devices.
    pub(crate) fn take_with(names: &mut Names) -> Result<Picture, Error> {
        let asker = Asker::open()?;
        let mut lines = Vec::new();
        asker.dump(RTM_GETLINK, &[0; 16], |m| lines.extend(link(m, names)))?;
        let names = &*names;
        asker.dump(RTM_GETADDR, &[0; 8], |m| lines.extend(address(m, names)))?;
        // A kernel before 5.3 has no next-hop objects and refuses the question.
        let _ = asker.dump(RTM_GETNEXTHOP, &[0; 8], |m| {
            lines.extend(next_hop(m, names))
        });
        asker.dump(RTM_GETROUTE, &[0; 12], |m| lines.extend(route(m, names)))?;
        asker.dump(RTM_GETNEIGH, &[0; 12], |m| {
            lines.extend(neighbour(m, names))
        })?;
        let mut bridge = [0; 12];
        bridge[0] = AF_BRIDGE;
        asker.dump(RTM_GETNEIGH, &bridge, |m| lines.extend(neighbour(m, names)))?;
        let mut picture = Picture::default();
        lines
            .into_iter()
            .for_each(|line| *picture.0.entry(line).or_default() += 1);
        Ok(picture)
    }

    /// The lines, sorted; one that is there twice comes twice.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .flat_map(|(line, n)| std::iter::repeat_n(line.as_str(), *n))
    }

    /// Only the lines that hold `text`, for instance `dev flannel.1`.
    pub fn only(&self, text: &str) -> Picture {
        Picture(
            self.0
                .iter()
                .filter(|(line, _)| line.contains(text))
                .map(|(l, n)| (l.clone(), *n))
                .collect(),
        )
    }

    /// Whether a line holds all of `texts`.
    pub fn has(&self, texts: &[&str]) -> bool {
        self.0
            .keys()
            .any(|line| texts.iter().all(|text| line.contains(text)))
    }

    /// What a notice of the kernel says against this picture: `- line` for the removal of what is
    /// in it, `+ line` for what is not.
    pub(crate) fn against(&self, kind: u16, m: &[u8], names: &mut Names) -> Option<String> {
        let line = match kind & !3 {
            NEWS_OF_LINK => link(m, names),
            NEWS_OF_ADDR => address(m, names),
            NEWS_OF_ROUTE => route(m, names),
            NEWS_OF_NEIGH => match neighbour(m, names) {
                None => return self.decayed(m, names),
                entry => entry,
            },
            NEWS_OF_NEXTHOP => next_hop(m, names),
            _ => None,
        }?;
        // The kernel numbers them NEW, DEL, GET in this order.
        match (kind & 3, self.0.contains_key(&line)) {
            (0, false) => Some(format!("+ {line}")),
            (1, true) => Some(format!("- {line}")),
            _ => None,
        }
    }

    /// A permanent neighbour that is going away is first told of as a failed one.
    fn decayed(&self, m: &[u8], names: &Names) -> Option<String> {
        let dst = m.get(12..).and_then(|list| address_in(list, 1))?;
        let entry = format!("neigh {dst} dev {} ", names.of(u32_at(m, 4)));
        let (line, _) = self.0.range(entry.clone()..).next()?;
        line.starts_with(&entry).then(|| format!("- {line}"))
    }

    /// What separates `self` from `later`: `- line` for what is gone, `+ line` for what is new.
    pub fn difference(&self, later: &Picture) -> Vec<String> {
        let lacks = |a: &Picture, b: &Picture, sign: &str| -> Vec<String> {
            let missing =
                a.0.iter()
                    .filter(|(line, n)| b.0.get(*line).is_none_or(|m| m < n));
            missing.map(|(line, _)| format!("{sign} {line}")).collect()
        };
        [lacks(self, later, "-"), lacks(later, self, "+")].concat()
    }
}

impl fmt::Display for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Device names by index.
#[derive(Default)]
pub(crate) struct Names(HashMap<u32, String>);

impl Names {
    fn of(&self, index: Option<u32>) -> String {
        let index = index.unwrap_or_default();
        self.0
            .get(&index)
            .cloned()
            .unwrap_or_else(|| format!("if{index}"))
    }
}

fn number(list: &[u8], kind: u16) -> Option<u32> {
    attr(list, kind).and_then(|b| u32_at(b, 0))
}

fn address_in(list: &[u8], kind: u16) -> Option<IpAddr> {
    attr(list, kind).and_then(ip)
}

fn mac(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_string()
}

/// The kernel's own: it makes and removes them by itself, and late.
fn link_local(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local() || ip.is_multicast())
}

fn link(m: &[u8], names: &mut Names) -> Option<String> {
    // A bridge tells of its ports in messages of their own.
    let list = m.get(16..).filter(|_| m[0] != AF_BRIDGE)?;
    let name = text(attr(list, 3)?);
    names.0.insert(u32_at(m, 4)?, name.clone());
    let up = if u32_at(m, 8)? & 1 == 1 { "up" } else { "down" };
    let mut line = format!("link {name} {up} mtu {}", number(list, 4).unwrap_or(0));
    if let Some(bytes) = attr(list, 1) {
        line.push_str(&format!(" address {}", mac(bytes)));
    }
    let info = attr(list, 18).unwrap_or_default();
    if let Some(kind) = attr(info, 1) {
        line.push_str(&format!(" type {}", text(kind)));
        if text(kind) == "vxlan" {
            line.push_str(&vxlan(attr(info, 2).unwrap_or_default()));
        }
    }
    Some(line)
}

fn vxlan(data: &[u8]) -> String {
    let local = address_in(data, 4).or_else(|| address_in(data, 17));
    let local = local.map(|ip| format!(" local {ip}")).unwrap_or_default();
    let port = attr(data, 15)
        .and_then(|b| u16_at(b, 0))
        .map(u16::from_be)
        .unwrap_or(0);
    format!(" id {}{local} dstport {port}", number(data, 1).unwrap_or(0))
}

fn address(m: &[u8], names: &Names) -> Option<String> {
    let list = m.get(8..)?;
    let ip = address_in(list, 2).or_else(|| address_in(list, 1))?;
    if link_local(&ip) {
        return None;
    }
    Some(format!("addr {ip}/{} dev {}", m[1], names.of(u32_at(m, 4))))
}

fn next_hop(m: &[u8], names: &Names) -> Option<String> {
    let list = m.get(8..)?;
    let via = address_in(list, 6)
        .map(|ip| format!(" via {ip}"))
        .unwrap_or_default();
    Some(format!(
        "nexthop{via} dev {}{}",
        names.of(number(list, 5)),
        hop_flags(u32_at(m, 4)?)
    ))
}

/// `RTNH_F_*`.
fn hop_flags(flags: u32) -> String {
    let names = [(4, " onlink"), (1, " dead"), (16, " linkdown")];
    names
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| *name)
        .collect()
}

fn route(m: &[u8], names: &Names) -> Option<String> {
    let list = m.get(12..)?;
    let flags = u32_at(m, 8)?;
    let table = number(list, 15).unwrap_or(u32::from(m[4]));
    let cloned = flags & 0x200 != 0;
    let dst = address_in(list, 1);
    if table != MAIN_TABLE || cloned || dst.as_ref().is_some_and(link_local) {
        return None;
    }
    let mut line = match dst {
        Some(ip) => format!("route {ip}/{}", m[1]),
        None if m[0] == libc::AF_INET6 as u8 => "route ::/0".into(),
        None => "route 0.0.0.0/0".into(),
    };
    if m[7] == 6 {
        line.push_str(" blackhole");
    }
    if let Some(via) = address_in(list, 5) {
        line.push_str(&format!(" via {via}"));
    }
    if let Some(oif) = number(list, 4) {
        line.push_str(&format!(" dev {}", names.of(Some(oif))));
    }
    line.push_str(&hop_flags(flags));
    if let Some(metric) = number(list, 6) {
        line.push_str(&format!(" metric {metric}"));
    }
    if number(list, 30).is_some() {
        line.push_str(" nhid");
    }
    Some(format!("{line} proto {}", m[5]))
}

fn neighbour(m: &[u8], names: &Names) -> Option<String> {
    let list = m.get(12..)?;
    let state = u16_at(m, 8)?;
    let dst = address_in(list, 1)?;
    if state & NUD_PERMANENT == 0 || link_local(&dst) {
        return None;
    }
    let (dev, lladdr) = (
        names.of(u32_at(m, 4)),
        attr(list, 2).map(mac).unwrap_or_default(),
    );
    Some(match m[0] == AF_BRIDGE {
        true => format!("fdb {lladdr} dev {dev} dst {dst}"),
        false => format!("neigh {dst} dev {dev} lladdr {lladdr}"),
    })
}
