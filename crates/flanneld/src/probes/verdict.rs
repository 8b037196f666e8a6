//! Why a node does not answer probes, judged from what both paths show. No I/O.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What is wrong on the way to a node.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// The node cannot be reached at its public address either.
    UnderlayDown,
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
    /// backend sends by, `port` is that of the probes.
    pub fn text(self, public: Option<IpAddr>, tunnel: &str, port: u16) -> String {
        let at = public.map(|ip| format!(" at {ip}")).unwrap_or_default();
        match self {
            Cause::UnderlayDown => format!(
                "the node does not answer{at}, neither probes nor pings: is it up, and the network between the two?"
            ),
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
                "packets pass, probes are not answered: a firewall drops UDP port {port}, or that node answers none"
            ),
            Cause::NotRunning => format!(
                "does not answer probes: upstream's flannel, an older version, -probe-port=0, or no flanneld runs there (UDP port {port} is closed{at})"
            ),
            Cause::NeverHeard => format!(
                "has not answered a probe since this daemon started: upstream's flannel, an older version, another -probe-port, or UDP port {port} is filtered"
            ),
        }
    }
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
    /// A ping through the tunnel; `None` if none could be sent.
    pub(super) overlay_ping: Option<bool>,
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
        return Some(Cause::ProbesFiltered);
    }
    Some(match e.underlay {
        Underlay::Answered if !e.has_overlay => return None,
        Underlay::Answered if e.arrived => Cause::NoRouteBack,
        // Where pings cannot be sent, a firewall that drops the probes in the tunnel looks the same.
        Underlay::Answered if e.overlay_ping.is_none() && !e.overlay_before => {
            Cause::ProbesFiltered
        }
        Underlay::Answered => Cause::TunnelFiltered,
        Underlay::Refused => Cause::NotRunning,
        // A firewall that rejects the probes' port says the same: only pings show the difference.
        Underlay::Unreachable if e.underlay_ping == Some(false) => Cause::UnderlayDown,
        Underlay::Unreachable | Underlay::Silent => match e.underlay_ping {
            Some(true) if e.has_overlay && e.overlay_before && e.overlay_ping == Some(false) => {
                Cause::TunnelFiltered
            }
            Some(true) if e.before => Cause::ProbesFiltered,
            Some(true) => Cause::NeverHeard,
            Some(false) | None if e.before => Cause::UnderlayDown,
            Some(false) | None => Cause::NeverHeard,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Evidence = Evidence {
        underlay: Underlay::Silent,
        underlay_ping: Some(false),
        overlay_ping: Some(false),
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
