//! The measure of things: the same kernel objects, written by `ip -batch` and `bridge -batch`.

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::fleet::Peer;
use crate::stage::Stage;

const IP_FILE: &str = "/run/bench-ip";
const BRIDGE_FILE: &str = "/run/bench-bridge";

/// Makes a `flannel.1`, then writes the next-hop objects, neighbours, routes and forwarding
/// entries of the first `peers` peers, and removes everything again. Returns how long the writing
/// took, the two programs' own start included.
///
/// # Errors
/// A program failed.
pub fn run(stage: &Stage, peers: u32) -> anyhow::Result<Duration> {
    let node = stage.rival();
    node.ip_batch(&[
        format!(
            "link add flannel.1 type vxlan id 1 local {} dev eth0 dstport 8472 nolearning",
            node.ipv4()
        ),
        "addr add 10.0.254.0/32 dev flannel.1".into(),
        "link set flannel.1 mtu 1450 up".into(),
    ])?;
    let (ip, bridge) = batches(peers);
    node.write(IP_FILE, &ip)?;
    node.write(BRIDGE_FILE, &bridge)?;
    let began = Instant::now();
    node.exec(["ip", "-batch", IP_FILE])?;
    node.exec(["bridge", "-batch", BRIDGE_FILE])?;
    Ok(began.elapsed())
}

/// Removes what [`run`] made.
///
/// # Errors
/// The kernel refuses.
pub fn wipe(stage: &Stage) -> anyhow::Result<()> {
    stage.rival().exec(["ip", "link", "del", "flannel.1"])?;
    Ok(())
}

fn batches(peers: u32) -> (String, String) {
    let [mut hops, mut neighbours, mut routes, mut bridge] = [const { String::new() }; 4];
    for peer in (0..peers).map(Peer) {
        let (subnet, mac, id) = (peer.subnet(), peer.mac(), peer.0 + 1);
        // Writing to a string cannot fail.
        let _ = writeln!(
            &mut hops,
            "nexthop add id {id} via {subnet} dev flannel.1 onlink"
        );
        let _ = writeln!(
            &mut neighbours,
            "neigh add {subnet} lladdr {mac} dev flannel.1 nud permanent"
        );
        let _ = writeln!(&mut routes, "route add {subnet}/24 nhid {id}");
        let _ = writeln!(
            &mut bridge,
            "fdb append {mac} dev flannel.1 dst {} self permanent",
            peer.public_ip()
        );
    }
    (hops + &neighbours + &routes, bridge)
}
