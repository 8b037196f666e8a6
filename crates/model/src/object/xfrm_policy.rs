//! IPsec policies: which packets are encrypted, dropped or left as they are.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Kind;
use crate::IfName;

/// The number that connects policies with the security associations of flannel; upstream's.
pub const IPSEC_REQUEST: u32 = 11;

/// The priority of our policies that encrypt nothing: behind those for peers, which have priority 0. It is the
/// mark by which we know them.
pub const IPSEC_PRIORITY: u32 = 0x4000_0f11;

/// Which packets of the host a policy concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XfrmDir {
    /// Those for the host itself.
    In,
    /// Those that leave it.
    Out,
    /// Those that it forwards, when they arrive.
    Fwd,
}

impl XfrmDir {
    /// All directions.
    pub const ALL: [XfrmDir; 3] = [XfrmDir::In, XfrmDir::Out, XfrmDir::Fwd];

    /// Returns its name in commands.
    pub fn as_str(self) -> &'static str {
        match self {
            XfrmDir::In => "in",
            XfrmDir::Out => "out",
            XfrmDir::Fwd => "fwd",
        }
    }
}

/// Names a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XfrmPolicyKey {
    /// Which packets of the host.
    pub dir: XfrmDir,
    /// Where they come from.
    pub src: IpNet,
    /// Where they go to.
    pub dst: IpNet,
}

/// What happens to the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XfrmPolicy {
    /// They travel encrypted between these two hosts. Without a security association they are dropped.
    Tunnel {
        /// The host that encrypts.
        src: IpAddr,
        /// The host that decrypts.
        dst: IpAddr,
        /// Packets that arrive unencrypted are let in, too. Not for [`XfrmDir::Out`].
        or_plain: bool,
    },
    /// They are dropped, unless a policy for a peer says otherwise.
    Block,
    /// They are left as they are, unless a policy for a peer says otherwise.
    Allow,
    /// Something that flannel never writes.
    Foreign,
}

/// IPsec policies of the kernel.
pub struct XfrmPolicies;

impl Kind for XfrmPolicies {
    type Key = XfrmPolicyKey;
    type Value = XfrmPolicy;
    const NAME: &'static str = "IPsec policy";

    fn device(_: &XfrmPolicyKey, _: &XfrmPolicy) -> Option<IfName> {
        None
    }

    fn put(f: &mut fmt::Formatter<'_>, key: &XfrmPolicyKey, value: &XfrmPolicy) -> fmt::Result {
        let XfrmPolicyKey { dir, src, dst } = key;
        let dir = dir.as_str();
        write!(f, "ip xfrm policy update src {src} dst {dst} dir {dir}")?;
        match value {
            XfrmPolicy::Tunnel { src, dst, or_plain } => {
                let level = if *or_plain { " level use" } else { "" };
                write!(
                    f,
                    " tmpl src {src} dst {dst} proto esp mode tunnel reqid {IPSEC_REQUEST}{level}"
                )
            }
            XfrmPolicy::Block => write!(f, " action block priority {IPSEC_PRIORITY}"),
            XfrmPolicy::Allow => write!(f, " priority {}", IPSEC_PRIORITY - 1),
            XfrmPolicy::Foreign => f.write_str(" ..."),
        }
    }

    fn del(f: &mut fmt::Formatter<'_>, key: &XfrmPolicyKey, _: &XfrmPolicy) -> fmt::Result {
        let XfrmPolicyKey { dir, src, dst } = key;
        let dir = dir.as_str();
        write!(f, "ip xfrm policy delete src {src} dst {dst} dir {dir}")
    }
}
