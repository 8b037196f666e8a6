//! What there is to remove, and its removal.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use dataplane::leftovers::{self, Bridge, Leftovers, Written, Xfrm, kind_of, remove_xfrm};
use dataplane::rules::{Mode, Removal, RulesKeeper};
use flanneld::subnet_file;
use model::{Object, Op, TrafficRules};

use super::args::Cleanup;
use super::files;

/// A daemon restores what is taken from it at once.
const RESTORED_WITHIN: Duration = Duration::from_millis(1200);

/// How often it is looked for in that time.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// Everything of flannel's on this host.
#[derive(Default)]
pub(crate) struct Plan {
    /// In the order in which it is removed.
    pub(crate) items: Vec<Item>,
    /// What looks like flannel's and is left alone, and why.
    pub(crate) left: Vec<(String, String)>,
    /// What could not be looked at.
    pub(crate) problems: Vec<String>,
}

/// One thing to remove.
pub(crate) enum Item {
    /// With what goes when it goes.
    Kernel(Object, Vec<Object>),
    Rules(Removal),
    Xfrm(Xfrm),
    File(PathBuf),
    Dir(PathBuf),
}

impl Plan {
    /// Looks at the host. Changes nothing.
    ///
    /// # Errors
    /// The kernel does not show what it holds.
    pub(crate) async fn make(args: &Cleanup) -> Result<Plan> {
        let mut plan = Plan::default();
        let written: Vec<Written> = args.subnet_files.iter().map(|file| read(file)).collect();
        let (removals, errors) = keeper().would_remove().await;
        plan.items.extend(removals.into_iter().map(Item::Rules));
        plan.problems
            .extend(errors.iter().map(|e| format!("traffic rules: {e}")));

        let Leftovers {
            devices,
            marked,
            unmarked,
            unproven,
            xfrm,
            strangers,
            bridge,
        } = leftovers::find(&written, &args.cni_bridge).await?;
        let alone = |object| Item::Kernel(object, Vec::new());
        plan.items.extend(xfrm.into_iter().map(Item::Xfrm));
        let marked_none = marked.is_empty();
        plan.items.extend(marked.into_iter().map(alone));
        // Whoever ran here last marks what it writes: what bears no mark is not its.
        let upstream_s = marked_none && !devices.iter().any(|(_, on)| on.iter().any(is_next_hop));
        let (gone, kept) = if args.gateway_routes {
            ([unmarked, unproven].concat(), Vec::new())
        } else if upstream_s {
            (unmarked, unproven)
        } else {
            (Vec::new(), [unmarked, unproven].concat())
        };
        plan.items.extend(gone.into_iter().map(alone));
        plan.left.extend(kept.into_iter().map(|route| {
            let why =
                "an administrator's, as our flannel was here last; --gateway-routes removes it";
            (Op::Del(route).to_string(), why.to_owned())
        }));
        plan.items.extend(
            devices
                .into_iter()
                .map(|(device, on)| Item::Kernel(device, on)),
        );
        for (name, kind) in strangers {
            let kind = if kind.is_empty() { "hardware" } else { &kind };
            plan.left.push((
                format!("device {name}"),
                format!("no flannel made it: it is {kind}"),
            ));
        }
        plan.decide_bridge(bridge, &written, args.keep_cni_bridge);
        let found = files::find(args);
        for (file, why) in found.others {
            plan.left
                .push((format!("file {}", file.display()), why.into()));
        }
        plan.items.extend(found.files.into_iter().map(Item::File));
        plan.items.extend(found.dirs.into_iter().map(Item::Dir));
        Ok(plan)
    }

    fn decide_bridge(&mut self, bridge: Option<Bridge>, written: &[Written], keep: bool) {
        let Some(Bridge { link, addrs, ports }) = bridge else {
            return;
        };
        let flannels = |net| written.iter().any(|w| w.has(net));
        let why_not = if ports > 0 {
            format!("{ports} devices are plugged into it")
        } else if addrs.is_empty() || !addrs.iter().all(flannels) {
            "nothing tells that it is flannel's: its addresses are not those of a network in a subnet file".into()
        } else if keep {
            "--keep-cni-bridge".into()
        } else {
            return self.items.push(Item::Kernel(link, Vec::new()));
        };
        if let Object::Link(name, _) = link {
            self.left.push((format!("bridge {name}"), why_not));
        }
    }

    /// Removes all of it; returns what could not be removed. Files stay if somebody restores the rest:
    /// then a flannel runs that we do not see, and containers live by its files.
    pub(crate) async fn carry_out(&self, args: &Cleanup) -> Vec<String> {
        let mut failed = Vec::new();
        let rules = keeper();
        for item in &self.items {
            let done = match item {
                Item::Rules(removal) => rules.remove(removal).await.map_err(|e| e.to_string()),
                Item::Xfrm(xfrm) => remove_xfrm(xfrm).map_err(|e| e.to_string()),
                _ => Ok(()),
            };
            failed.extend(done.err());
        }
        let objects = self.items.iter().filter_map(|item| match item {
            Item::Kernel(object, _) => Some(object.clone()),
            _ => None,
        });
        match leftovers::remove(objects).await {
            Ok(refused) => failed.extend(refused.iter().map(ToString::to_string)),
            Err(error) => failed.push(error.to_string()),
        }
        if let Some(restored) = self.restored(args, failed.is_empty()).await {
            failed.push(format!(
                "somebody restores `{restored}`: a flannel runs here that cannot be seen from here, as one in \
                 another container; stop it first. Files were not removed"
            ));
            return failed;
        }
        // Last: a subnet file tells what else is flannel's, if this is cut short.
        for item in &self.items {
            let done = match item {
                Item::File(path) => gone(fs::remove_file(path), path),
                Item::Dir(path) => gone(fs::remove_dir(path), path),
                _ => Ok(()),
            };
            failed.extend(done.err());
        }
        failed
    }
}

impl Plan {
    /// What was removed from the kernel (`all` of it, or some could not be) and comes back within [`RESTORED_WITHIN`].
    async fn restored(&self, args: &Cleanup, all: bool) -> Option<String> {
        let commands = |plan: &Plan| -> BTreeSet<String> {
            let kernels = plan
                .items
                .iter()
                .filter(|item| matches!(item, Item::Kernel(..) | Item::Rules(_)));
            kernels
                .map(|item| format!("{} {}", item.kind(), item.command()))
                .collect()
        };
        let now = async || Plan::make(args).await.map(|plan| commands(&plan)).ok();
        let gone = if all {
            commands(self)
        } else {
            &commands(self) - &now().await?
        };
        let began = Instant::now();
        while !gone.is_empty() && began.elapsed() < RESTORED_WITHIN {
            if let Some(back) = now().await?.intersection(&gone).next() {
                return Some(back.clone());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        None
    }
}

impl Item {
    /// What kind of thing it is, for programs.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Item::Kernel(Object::Link(..), _) => "device",
            Item::Kernel(Object::Route(..), _) => "route",
            Item::Kernel(Object::NextHop(..), _) => "nexthop",
            Item::Kernel(..) => "entry",
            Item::Rules(_) => "rules",
            Item::Xfrm(_) => "xfrm",
            Item::File(_) => "file",
            Item::Dir(_) => "directory",
        }
    }

    /// The command that would remove it.
    pub(crate) fn command(&self) -> String {
        match self {
            Item::Kernel(object, _) => Op::Del(object.clone()).to_string(),
            Item::Rules(removal) => removal.by.clone(),
            Item::Xfrm(xfrm) => xfrm.to_string(),
            Item::File(path) => format!("rm {}", path.display()),
            Item::Dir(path) => format!("rmdir {}", path.display()),
        }
    }

    /// What the command is told, or what goes with the thing: a line each.
    pub(crate) fn details(&self) -> Vec<String> {
        match self {
            Item::Kernel(_, held) => held
                .iter()
                .map(|o| Op::Del(o.clone()).to_string())
                .collect(),
            Item::Rules(removal) => removal.commands.lines().map(str::to_owned).collect(),
            _ => Vec::new(),
        }
    }

    /// What a person wants to know besides the command.
    pub(crate) fn note(&self) -> Option<String> {
        match self {
            Item::Kernel(Object::Link(_, link), held) => {
                Some(format!("{}{}", kind_of(link), counted(held)))
            }
            Item::Rules(removal) => Some(removal.what.clone()),
            _ => None,
        }
    }
}

/// `, and with it 2 addresses, 12 routes`
fn counted(held: &[Object]) -> String {
    type Is = fn(&Object) -> bool;
    let kinds: [(&str, Is); 5] = [
        ("addresses", |o| matches!(o, Object::Addr(..))),
        ("neighbours", |o| matches!(o, Object::Neigh(..))),
        ("forwarding entries", |o| matches!(o, Object::Fdb(..))),
        ("next hops", |o| matches!(o, Object::NextHop(..))),
        ("routes", |o| matches!(o, Object::Route(..))),
    ];
    let counted = kinds.iter().filter_map(|(name, is)| {
        let count = held.iter().filter(|o| is(o)).count();
        (count > 0).then(|| format!("{name}: {count}"))
    });
    let counted: Vec<String> = counted.collect();
    match counted.is_empty() {
        true => String::new(),
        false => format!("; goes with it: {}", counted.join(", ")),
    }
}

fn keeper() -> RulesKeeper {
    // Neither the mode nor the pause matters to who only removes.
    RulesKeeper::new(
        Mode::Nftables,
        TrafficRules::default(),
        Duration::from_secs(3600),
    )
}

/// What a subnet file tells; one that is none tells nothing.
fn read(subnet_file: &Path) -> Written {
    if !files::is_subnet_file(subnet_file) {
        return Written::default();
    }
    let own = subnet_file::previous(subnet_file);
    Written {
        networks: subnet_file::former_networks(subnet_file),
        own: own
            .iter()
            .flat_map(|key| key.nets().iter().map(|(_, net)| *net))
            .collect(),
        ours: subnet_file::is_ours(subnet_file),
    }
}

fn gone(done: std::io::Result<()>, path: &Path) -> Result<(), String> {
    match done {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(format!("{}: {e}", path.display())),
        _ => Ok(()),
    }
}

/// Upstream's flannel has none, ours has one for each peer of a device.
fn is_next_hop(object: &Object) -> bool {
    matches!(object, Object::NextHop(..))
}
