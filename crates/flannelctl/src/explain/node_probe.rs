//! Probes of the other end's node, which its flanneld answers: the way of containers' packets, without a container.

use flanneld::report::{ProbeReport, ProbeState};
use model::Family;

use super::ends::End;
use super::steps::{Daemon, Steps, reported};
use crate::connectivity::quick::{self, Quick};

const NAME: &str = "probe";

/// What was found.
pub(super) struct NodeProbe {
    quick: Quick,
    /// What the daemon's own probes show.
    known: Option<ProbeReport>,
}

/// Sends the probes; returns `None` if there is nobody to ask.
pub(super) fn run(
    steps: &mut Steps,
    family: Family,
    remote: &End,
    daemon: &Daemon,
) -> Option<NodeProbe> {
    // Without a daemon, or a lease that it uses, there is a line that says so.
    let (node, _) = daemon.as_ref().ok()?;
    let peer = reported(daemon, remote)?;
    let Some(mesh) = &node.mesh else {
        steps.skip(NAME, "probes are turned off on this node (-probe-port=0)");
        return None;
    };
    let quick = match quick::probe(mesh, peer, family) {
        Ok(quick) => quick?,
        Err(error) => {
            steps.skip(NAME, format!("{error:#}"));
            return None;
        }
    };
    let found = NodeProbe {
        quick,
        known: peer.probe.clone(),
    };
    found.show(steps);
    Some(found)
}

impl NodeProbe {
    fn show(&self, steps: &mut Steps) {
        let quick = &self.quick;
        let way = if quick.is_tunnel {
            " through the tunnel"
        } else {
            ""
        };
        match (quick.rtt, quick.lost) {
            (Some(rtt), (0, _)) => {
                let ms = rtt.as_secs_f64() * 1e3;
                steps.ok(
                    NAME,
                    format!("the other node's flanneld answers{way} in {ms:.2} ms"),
                );
            }
            (Some(_), (lost, sent)) => steps.warn(
                NAME,
                format!("{lost} of {sent} probes of the other node{way} are lost"),
                "run it again; if it lasts, look for an overloaded device or link between the nodes",
            ),
            (None, _) if quick.is_checksum => steps.fail(
                "checksum",
                format!("packets without a UDP checksum arrive{way}, with one they are lost"),
                "a device computes checksums wrongly: set -tx-checksum-offload=off on the nodes",
            ),
            (None, _) => match (self.fault(), quick.public) {
                (Some(reason), _) => steps.warn(
                    NAME,
                    format!("the other node answers no probes{way}; flanneld has found why"),
                    reason,
                ),
                (None, Some(ip)) if quick.is_tunnel => steps.warn(
                    NAME,
                    format!("the other node's flanneld answers at {ip}, but not through the tunnel"),
                    "the next lines look closer",
                ),
                _ => {
                    let known = self.known.as_ref();
                    let reason = known.and_then(|known| known.reason.clone());
                    steps.skip(
                        NAME,
                        format!(
                            "the other node {}",
                            reason.unwrap_or_else(|| {
                                "does not answer probes (upstream's flannel, or an older version)".to_owned()
                            })
                        ),
                    );
                }
            },
        }
    }

    /// Whether the way that containers' packets go is a tunnel, and the other node answers through it.
    pub(super) fn answers_through_tunnel(&self) -> bool {
        self.quick.is_tunnel && self.quick.rtt.is_some()
    }

    /// Whether the other node answers by the way that containers' packets go.
    pub(super) fn answers(&self) -> bool {
        self.quick.rtt.is_some()
    }

    /// Where the other node answers past the tunnel, if it does not answer through it.
    pub(super) fn answers_past_tunnel_only(&self) -> Option<String> {
        let is_lost = self.quick.is_tunnel && self.quick.rtt.is_none() && !self.quick.is_checksum;
        let public = self.quick.public.filter(|_| is_lost);
        public.map(|ip| ip.to_string())
    }

    /// What the daemon has found to be wrong, with the remedy, if it has.
    pub(super) fn fault(&self) -> Option<String> {
        let known = self.known.as_ref()?;
        let fails = known.state == ProbeState::Failing;
        known.reason.clone().filter(|_| fails)
    }

    /// Adds that packets of full size are lost, unless a ping has found that.
    pub(super) fn full_size(&self, steps: &mut Steps) {
        if let Some(size) = self.quick.full_lost
            && steps.is_good("mtu")
        {
            steps.fail(
                "mtu",
                format!("UDP packets of {size} bytes are lost on the way, small ones arrive: large transfers hang"),
                "a smaller \"MTU\" in Backend (flannelctl config set), restart flanneld, then the containers; or raise the MTU on the way between the nodes",
            );
        }
    }
}
