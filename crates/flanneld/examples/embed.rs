//! A program that is itself a node of a flannel network: `embed STORE STATE`, two directories. All nodes have the same
//! STORE. SIGINT ends it, and then nothing of the node is left on the host.

use std::error::Error;
use std::io::{self, Write};

use flanneld::node::{NetConfig, Node, Phase, StoreChoice, Teardown};
use tokio::signal::ctrl_c;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(store), Some(state)) = (arguments.next(), arguments.next()) else {
        return Err("usage: embed STORE STATE".into());
    };
    let network = NetConfig::from_json(r#"{"Network": "172.30.0.0/16"}"#)?;
    let node = Node::builder(StoreChoice::Directory(store.into()), state)
        .network(network)
        .start()?;

    // What it waits for, and what it becomes.
    let mut changes = node.changes();
    loop {
        let status = tokio::select! {
            status = changes.next() => status,
            pressed = ctrl_c() => {
                pressed?;
                break;
            }
        };
        let Some(status) = status else {
            // It has ended by itself, and the error says why.
            node.ended().await?;
            break;
        };
        if status.phase == Phase::Announced {
            let lease = node.lease().map(|lease| lease.key.to_string());
            let (lease, mtu) = (lease.unwrap_or_default(), node.mtu().unwrap_or_default());
            say(&format!(
                "subnet {lease}, MTU {mtu}, {} peers",
                status.peers
            ))?;
            for peer in node.peers().await.unwrap_or_default() {
                let subnets = peer.subnets.join(" ");
                say(&format!("peer {subnets}: {}", peer.state.name()))?;
            }
        }
        for problem in &status.problems {
            say(problem)?;
        }
    }

    node.stop(Teardown::Remove).await?;
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}
