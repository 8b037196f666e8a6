//! Why a node does not answer probes, judged from what both paths show. No I/O.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What is wrong on the way to a node.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// The node cannot be reached at its public address either.
    UnderlayDown,
    /// A firewall rejects this node's packets.
    Filtered,
    /// The node is reached at its public address; packets of the tunnel do not arrive there.
    TunnelFiltered,
    /// Packets arrive there; what it sends back does not arrive here.
    NoRouteBack,
    /// Small packets arrive, full ones do not.
    Mtu,
    /// Packets with checksums are lost, packets without pass.
    Checksum,
    /// The content of packets changes on the way.
    Corrupted,
    /// Packets pass, probes do not: a firewall, or a node that answers none.
    ProbesFiltered,
    /// The host answers; no flanneld that answers probes runs there.
    NotRunning,
    /// Nothing was ever heard from the node.
    NeverHeard,
}

impl Cause {
    /// Returns whether packets of containers are lost. Otherwise only the probes are not answered.
    pub fn is_fault(self) -> bool {
        !matches!(
            self,
            Cause::ProbesFiltered | Cause::NotRunning | Cause::NeverHeard
        )
    }

    /// Returns what is wrong, and what to do about it. `public` is where the node is reached, `tunnel` names what the
    /// backend sends by, `port` is that of the probes, `filter` rejects packets.
    pub(super) fn text(
        self,
        public: Option<IpAddr>,
        tunnel: &str,
        port: u16,
        filter: Option<Filter>,
    ) -> String {
        let at = public.map(|ip| format!(" at {ip}")).unwrap_or_default();
        match self {
            Cause::UnderlayDown => format!(
                "the node does not answer{at}, neither probes nor pings: is it up, and the network between the two? Does a firewall drop its answers, here or on the way?"
            ),
            Cause::Filtered => {
                let where_ = match filter {
                    Some(filter) if filter.is_own => "of this host".to_owned(),
                    Some(filter) if Some(filter.by) == public => format!("of the node, {},", filter.by),
                    Some(filter) => format!("at {}", filter.by),
                    None => "on the way".to_owned(),
                };
                format!(
                    "filtered by a firewall {where_} which rejects this node's packets: let {tunnel} and UDP port {port} through between the nodes"
                )
            }
            Cause::TunnelFiltered => format!(
                "the node answers{at}, but {tunnel} does not arrive there: let it through between the nodes (firewall, security group)"
            ),
            Cause::NoRouteBack => format!(
                "packets arrive there, but {tunnel} from there does not arrive here: look at that node's routes and at firewalls on the way back (flannelctl explain, on that node)"
            ),
            Cause::Mtu => "small packets arrive, packets of full size are lost: large transfers hang; set \"MTU\" in Backend to what the path takes (flannelctl explain finds it), or raise the MTU on the way".to_owned(),
            Cause::Checksum => "packets with UDP checksums are lost, without they arrive: a device computes checksums wrongly; set -tx-checksum-offload=off on the nodes".to_owned(),
            Cause::Corrupted => "the content of packets changes on the way: look for a faulty device or driver between the nodes (flannelctl check --probe)".to_owned(),
            Cause::ProbesFiltered => format!(
                "does not answer probes (upstream's flannel, an older version, or a firewall drops UDP port {port}); packets pass"
            ),
            Cause::NotRunning => format!(
                "does not answer probes (upstream's flannel, an older version, or -probe-port=0), or no flanneld runs there: UDP port {port} is closed{at}"
            ),
            Cause::NeverHeard => format!(
                "does not answer probes (upstream's flannel, an older version, another -probe-port, or UDP port {port} is filtered)"
            ),
        }
    }
}

/// What rejects this node's packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Filter {
    /// Who reports it.
    pub(super) by: IpAddr,
    /// It is this host.
    pub(super) is_own: bool,
}

/// What a UDP probe to the node's public address showed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Underlay {
    /// Nothing came back.
    #[default]
    Silent,
    /// The probe was answered.
    Answered,
    /// The host says that nobody listens there.
    Refused,
    /// The kernel or a router says that there is no way.
    Unreachable,
}

/// What is known when the probes of one family have failed several times.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Evidence {
    /// A probe past the tunnel.
    pub(super) underlay: Underlay,
    /// A ping past the tunnel; `None` if none could be sent.
    pub(super) underlay_ping: Option<bool>,
    /// A ping through the tunnel; `None` if none could be sent. What the node rejects of it has passed, too.
    pub(super) overlay_ping: Option<bool>,
    /// A firewall rejects probes or pings past the tunnel.
    pub(super) is_filtered: bool,
    /// A firewall rejects even pings, and so probably everything.
    pub(super) pings_rejected: bool,
    /// A probe through the tunnel that has no UDP checksum.
    pub(super) unchecked: bool,
    /// A probe through the tunnel like those that were lost: the fault was over before it was looked at.
    pub(super) answered: bool,
    /// The node has received the last probe through the tunnel.
    pub(super) arrived: bool,
    /// This family's packets go through a device that has an address.
    pub(super) has_overlay: bool,
    /// The node has answered a probe of this family through the tunnel, since the start.
    pub(super) overlay_before: bool,
    /// The node has answered a probe of any kind, since the start.
    pub(super) before: bool,
}

/// Judges why probes of one family are not answered; `None` if they are again.
pub(super) fn judge(e: Evidence) -> Option<Cause> {
    if e.answered {
        return None;
    }
    if e.has_overlay && e.unchecked {
        return Some(Cause::Checksum);
    }
    if e.has_overlay && e.overlay_ping == Some(true) {
        return Some(match e.underlay {
            Underlay::Refused if !e.is_filtered => Cause::NotRunning,
            _ => Cause::ProbesFiltered,
        });
    }
    Some(match e.underlay {
        Underlay::Answered if !e.has_overlay => return None,
        Underlay::Answered if e.arrived => Cause::NoRouteBack,
        // Where pings cannot be sent, a firewall that drops the probes in the tunnel looks the same.
        Underlay::Answered if e.overlay_ping.is_none() && !e.overlay_before => {
            Cause::ProbesFiltered
        }
        Underlay::Answered => Cause::TunnelFiltered,
        Underlay::Refused if !e.is_filtered => Cause::NotRunning,
        _ if e.underlay_ping == Some(true) => {
            if e.has_overlay && e.overlay_before && e.overlay_ping == Some(false) {
                Cause::TunnelFiltered
            } else if e.before {
                Cause::ProbesFiltered
            } else {
                Cause::NeverHeard
            }
        }
        // A firewall that rejects the probes' port alone shows nothing of the tunnel: what is never heard may be
        // upstream's node behind it.
        _ if e.is_filtered && (e.before || (e.pings_rejected && e.has_overlay)) => Cause::Filtered,
        _ if e.is_filtered => Cause::NeverHeard,
        Underlay::Unreachable if e.underlay_ping == Some(false) => Cause::UnderlayDown,
        _ if e.before => Cause::UnderlayDown,
        _ => Cause::NeverHeard,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Evidence = Evidence {
        underlay: Underlay::Silent,
        underlay_ping: Some(false),
        overlay_ping: Some(false),
        is_filtered: false,
        pings_rejected: false,
        unchecked: false,
        answered: false,
        arrived: false,
        has_overlay: true,
        overlay_before: true,
        before: true,
    };

    #[test]
    fn each_fault_is_named_from_what_both_paths_show() {
        let answered = Evidence {
            underlay: Underlay::Answered,
            underlay_ping: Some(true),
            ..NOTHING
        };
        for (evidence, cause) in [
            (NOTHING, Cause::UnderlayDown),
            (answered, Cause::TunnelFiltered),
            (
                Evidence {
                    arrived: true,
                    ..answered
                },
                Cause::NoRouteBack,
            ),
            (
                Evidence {
                    unchecked: true,
                    overlay_ping: Some(true),
                    ..answered
                },
                Cause::Checksum,
            ),
            (
                Evidence {
                    underlay: Underlay::Unreachable,
                    before: false,
                    overlay_before: false,
                    ..NOTHING
                },
                Cause::UnderlayDown,
            ),
            // A firewall rejects everything, since before this daemon started.
            (
                Evidence {
                    underlay: Underlay::Unreachable,
                    is_filtered: true,
                    pings_rejected: true,
                    before: false,
                    overlay_before: false,
                    ..NOTHING
                },
                Cause::Filtered,
            ),
            // It says that the port is closed, and does not let pings through; some hosts may not ping.
            (
                Evidence {
                    underlay: Underlay::Refused,
                    is_filtered: true,
                    underlay_ping: None,
                    overlay_ping: None,
                    ..NOTHING
                },
                Cause::Filtered,
            ),
        ] {
            assert_eq!(judge(evidence), Some(cause), "{evidence:?}");
            assert!(cause.is_fault());
        }
    }

    #[test]
    fn a_node_that_answers_no_probes_is_not_called_broken() {
        let fresh = Evidence {
            before: false,
            overlay_before: false,
            ..NOTHING
        };
        let pings = Evidence {
            underlay_ping: Some(true),
            overlay_ping: Some(true),
            ..fresh
        };
        for (evidence, cause) in [
            (fresh, Cause::NeverHeard),
            (pings, Cause::ProbesFiltered),
            (
                Evidence {
                    underlay: Underlay::Refused,
                    ..fresh
                },
                Cause::NotRunning,
            ),
            // Upstream's node, whose tunnel answers pings.
            (
                Evidence {
                    underlay: Underlay::Refused,
                    ..pings
                },
                Cause::NotRunning,
            ),
            // Upstream's node behind a firewall that lets the tunnel and pings through, or the tunnel alone.
            (
                Evidence {
                    underlay: Underlay::Unreachable,
                    is_filtered: true,
                    overlay_ping: Some(false),
                    ..pings
                },
                Cause::NeverHeard,
            ),
            (
                Evidence {
                    underlay: Underlay::Unreachable,
                    is_filtered: true,
                    ..fresh
                },
                Cause::NeverHeard,
            ),
            // Its flanneld was stopped: packets still pass.
            (
                Evidence {
                    underlay: Underlay::Refused,
                    ..NOTHING
                },
                Cause::NotRunning,
            ),
            // Somebody uses up its answers by forged requests: pings show that it lives.
            (
                Evidence {
                    before: true,
                    overlay_before: true,
                    ..pings
                },
                Cause::ProbesFiltered,
            ),
            // No pings may be sent here, and a firewall there rejects the probes.
            (
                Evidence {
                    underlay: Underlay::Unreachable,
                    underlay_ping: None,
                    overlay_ping: None,
                    ..fresh
                },
                Cause::NeverHeard,
            ),
            // No pings may be sent here, and a firewall there drops probes in the tunnel.
            (
                Evidence {
                    underlay: Underlay::Answered,
                    underlay_ping: None,
                    overlay_ping: None,
                    ..fresh
                },
                Cause::ProbesFiltered,
            ),
        ] {
            assert_eq!(judge(evidence), Some(cause), "{evidence:?}");
            assert!(!cause.is_fault());
        }
    }

    #[test]
    fn a_fault_that_is_over_is_neither_the_checksums_nor_a_firewalls() {
        let over = Evidence {
            underlay: Underlay::Answered,
            underlay_ping: Some(true),
            overlay_ping: Some(true),
            unchecked: true,
            answered: true,
            ..NOTHING
        };
        assert_eq!(judge(over), None);
    }
}
