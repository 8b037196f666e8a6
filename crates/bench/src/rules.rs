//! What traffic rules add: to the time until `subnet.env`, to a daemon that has nothing to do, and how soon they are
//! back when somebody deletes them.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::Node;

use crate::figure::{Figure, Goal, JudgedAs};
use crate::stage::{PATIENCE, Stage, pause};
use crate::stats::{median, ms};
use crate::target::Target;
use crate::{cold, idle, ready};

pub const READY: &str = "exec → subnet.env, -ip-masq";
pub const IDLE: &str = "nothing to do with -ip-masq, of a core";
pub const NFTABLES_BACK: &str = "nftables rules deleted → back";
pub const IPTABLES_BACK: &str = "iptables rules deleted → back";

/// What the daemon is told for all of these.
pub const ARGS: [&str; 1] = ["-ip-masq"];

/// One goal only, as the next two.
const READY_MS: Goal = Goal {
    must: 60.0,
    aim: 60.0,
};
const NFTABLES_MS: Goal = Goal {
    must: 100.0,
    aim: 100.0,
};
/// `-iptables-resync`.
const IPTABLES_MS: Goal = Goal {
    must: 5_000.0,
    aim: 5_000.0,
};
const IDLE_PERCENT: Goal = Goal {
    must: 0.05,
    aim: 0.02,
};

/// Between two looks for rules, each of which is a process.
const STEP: Duration = Duration::from_millis(2);

/// Removes all rules of a node, whoever wrote them.
///
/// # Errors
/// The kernel refuses.
pub fn wipe(node: &Node) -> anyhow::Result<()> {
    let each = "for t in nat filter; do $i -t $t -F; $i -t $t -X; done";
    let script = format!(
        "nft flush ruleset; for i in iptables ip6tables iptables-legacy ip6tables-legacy; do {each}; done 2>/dev/null; true"
    );
    node.exec(["sh", "-c", &script])?;
    Ok(())
}

/// The time from exec to `subnet.env`, `runs` times; `wipe` makes the node clean again.
///
/// # Errors
/// The daemon is never ready.
pub fn readiness(
    stage: &Stage,
    target: &mut Target,
    runs: usize,
    wipe: impl Fn(&mut Target) -> anyhow::Result<()>,
) -> anyhow::Result<Figure> {
    let mut took = Vec::new();
    for _ in 0..runs {
        took.push(ms(ready::start(stage, target)?));
        wipe(target)?;
    }
    let place = (target.kind().name(), target.peers());
    let ours = (median(&took), "ms");
    let figure = Figure::new(READY, place, ours, None, JudgedAs::Value, Some(READY_MS));
    Ok(figure.samples(&took))
}

/// What the daemon costs that keeps rules and has nothing to do. It stays.
///
/// # Errors
/// It does not start, or ends.
pub fn idleness(stage: &Stage, target: &Target, span: Duration) -> anyhow::Result<Figure> {
    cold::start(stage, target, false)?;
    standing(stage.node(), false)?;
    let idle = idle::run(stage, span)?;
    let place = (target.kind().name(), target.peers());
    let ours = (idle.percent, "%");
    let goal = Some(IDLE_PERCENT);
    Ok(Figure::new(IDLE, place, ours, None, JudgedAs::Value, goal))
}

/// How soon deleted rules are back, `runs` times, each with a new daemon: one that has met somebody who deletes
/// them again and again takes its time.
///
/// # Errors
/// They do not come back.
pub fn repairs(
    stage: &Stage,
    target: &mut Target,
    nftables: bool,
    runs: usize,
    wipe: impl Fn(&mut Target) -> anyhow::Result<()>,
) -> anyhow::Result<Figure> {
    let node = stage.node();
    let mut took = Vec::new();
    for _ in 0..runs {
        ready::start(stage, target)?;
        standing(node, nftables)?;
        cold::at_rest(node)?;
        let delete = match nftables {
            true => "nft delete table ip flannel-ipv4",
            false => "iptables -t nat -F FLANNEL-POSTRTG",
        };
        let began = Instant::now();
        node.exec(delete.split(' '))?;
        took.push(ms(standing(node, nftables)? - began));
        wipe(target)?;
    }
    let place = (target.kind().name(), target.peers());
    let (work, goal) = match nftables {
        true => (NFTABLES_BACK, NFTABLES_MS),
        false => (IPTABLES_BACK, IPTABLES_MS),
    };
    let ours = (median(&took), "ms");
    let figure = Figure::new(work, place, ours, None, JudgedAs::Value, Some(goal));
    Ok(figure.samples(&took))
}

/// Waits until the masquerade rules stand; returns when that was seen.
fn standing(node: &Node, nftables: bool) -> anyhow::Result<Instant> {
    let look = match nftables {
        true => "nft list chain ip flannel-ipv4 postrtg",
        false => "iptables -t nat -S FLANNEL-POSTRTG",
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = node.output(look.split(' ')).context("look at the rules")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if text.to_lowercase().contains("masquerade") {
            return Ok(Instant::now());
        }
        if Instant::now() >= deadline {
            bail!(
                "no rules after {PATIENCE:?}; flanneld says:\n{}",
                node.flanneld().log_tail(20)
            );
        }
        pause(STEP);
    }
}
