//! The test of a whole Kubernetes cluster: a pod of flannel's own image on every node that takes part, in a namespace that
//! is removed at the end, however that comes. Each pod asks others, and the matrix shows who reaches whom.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use store::{KubeApi, KubeApiError, PodExec};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::agent::{Answer, Order, Target};
use super::namespace::{self, NAMESPACES};
use super::objects::{self, PREFIX, PodState};
use super::pairs::choose;
use super::signals::Signals;
use super::{Check, ConnectivityArgs, Outcome, matrix};
use crate::kube_args::{FlannelPod, PROGRAM, items};
use crate::output;

/// Requests and tests that run at the same time.
const AT_ONCE: usize = 32;

/// Services that are made; the pods of more nodes are asked by their own addresses only.
const SERVICES: usize = 32;

/// Until a new namespace has its service account.
const NEW_NAMESPACE: Duration = Duration::from_secs(30);

/// Between two looks at the pods.
const LOOK: Duration = Duration::from_secs(1);

/// The start of a test, and what it finds of its own service.
const BEGIN: Duration = Duration::from_secs(60);

/// The time of one target at worst, without its small probes: those of full size, without checksums, and connections.
const ONE: Duration = Duration::from_secs(60);

/// The same for each small probe that is not answered, in two families.
const EACH_SMALL: Duration = Duration::from_secs(2);

/// Targets that one pod asks at the same time.
const TARGETS_AT_ONCE: usize = 8;

/// Checks of one pair that are taken from a pod's answer.
const MOST_CHECKS: usize = 32;

/// Bytes of a test's answer.
const LARGEST: usize = 16 << 20;

/// What one pod found of another.
#[derive(serde::Serialize)]
pub(super) struct PairFound {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) checks: Vec<Check>,
}

/// Everything that was found.
#[derive(Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClusterFound {
    /// Bytes of the packets of full size.
    pub(super) full_size: u32,
    /// The nodes that took part.
    pub(super) nodes: Vec<String>,
    /// How many pairs there are in the cluster.
    pub(super) of_pairs: usize,
    pub(super) pairs: Vec<PairFound>,
    /// Nodes that could not take part, and why.
    pub(super) failed: BTreeMap<String, String>,
    /// What was not tested, and why.
    pub(super) skipped: Vec<String>,
}

/// A pod that runs.
#[derive(Clone)]
struct Place {
    node: String,
    name: String,
    addresses: Vec<std::net::IpAddr>,
    services: Vec<std::net::IpAddr>,
}

/// Tests the cluster, prints what was found, and removes what was made.
///
/// # Errors
/// The API server does not answer or refuses, or no pod could be started.
pub(super) async fn run(args: &ConnectivityArgs) -> Result<ExitCode> {
    let api = args.kube.open()?;
    // They are asked for their image only.
    let pods = if args.image.is_some() {
        Vec::new()
    } else {
        args.kube.pods(&api).await?
    };
    let nodes = nodes(&api, args.only.as_deref()).await?;
    let most = if args.all { usize::MAX } else { args.pairs };
    let pairs = choose(nodes.len(), most, &mut fastrand::Rng::new());
    let flows = if args.throughput { nodes.len() } else { 0 };
    let life = objects::life(args.start_limit, pairs.len(), flows);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    namespace::remove_left_overs(&api, now).await;
    let name = format!("{PREFIX}{:08x}", fastrand::u32(..));
    let test = Test {
        api: api.clone(),
        namespace: name.clone(),
        token: format!("{:016x}", fastrand::u64(..)),
        image: args.image.clone(),
        pods,
        wait: Duration::from_secs(args.start_limit),
        count: args.count,
        life,
        end: Instant::now() + Duration::from_secs(life),
    };
    // From here on a signal ends the program only after the namespace is removed.
    let mut signals = Signals::new()?;
    let ours = objects::namespace(&name, now, life);
    let found = match namespace::create(&api, &name, &ours).await {
        Err(error @ (KubeApiError::Refused(_) | KubeApiError::Conflict(_))) => {
            return Err(error).with_context(|| format!("create the namespace {name}"));
        }
        // An answer that was lost may hide a namespace that was made.
        Err(error) => Err(error).with_context(|| format!("create the namespace {name}")),
        Ok(()) => tokio::select! {
            found = test.run(args, &nodes, pairs) => found,
            () = signals.any() => bail_interrupted(),
        },
    };
    output::progress(&format!("removing the namespace {name}"));
    tokio::select! {
        () = namespace::remove(&api, &name) => {}
        () = signals.person_ends() => {
            output::problem(&namespace::left(&name, "interrupted"));
        }
    }
    let found = match found {
        Ok(found) => found,
        Err(error) if error.is::<Interrupted>() => return Ok(ExitCode::from(130)),
        Err(error) => return Err(error),
    };
    matrix::print(args, &found)
}

/// Somebody pressed Ctrl-C.
#[derive(Debug)]
struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

fn bail_interrupted() -> Result<ClusterFound> {
    Err(Interrupted.into())
}

/// The names of the nodes that run Linux and begin with `prefix`.
async fn nodes(api: &KubeApi, prefix: Option<&str>) -> Result<Vec<String>> {
    let list = api.get_metadata("/api/v1/nodes").await;
    let list = list.context("list the nodes")?;
    let is_linux = |node: &&Value| {
        let system = node.pointer("/metadata/labels/kubernetes.io~1os");
        system.is_none_or(|system| system == "linux")
    };
    let names = items(&list).filter(is_linux);
    let names = names.filter_map(|node| node.pointer("/metadata/name")?.as_str());
    let mut names: Vec<String> = names
        .filter(|name| prefix.is_none_or(|prefix| name.starts_with(prefix)))
        .map(ToOwned::to_owned)
        .collect();
    names.sort();
    if names.len() < 2 {
        let which = prefix.map(|prefix| format!(" whose name begins with {prefix}"));
        bail!(
            "{}: {} nodes{}: there is nothing to test between them",
            api.place(),
            names.len(),
            which.unwrap_or_default()
        );
    }
    Ok(names)
}

/// One test.
struct Test {
    api: KubeApi,
    namespace: String,
    token: String,
    /// `--image`.
    image: Option<String>,
    pods: Vec<FlannelPod>,
    /// How long pods may take to start.
    wait: Duration,
    count: u32,
    /// Seconds that the pods live, and when the first of them may end.
    life: u64,
    end: Instant,
}

impl Test {
    async fn run(
        &self,
        args: &ConnectivityArgs,
        nodes: &[String],
        pairs: Vec<(usize, usize)>,
    ) -> Result<ClusterFound> {
        let mut found = ClusterFound {
            of_pairs: nodes.len() * (nodes.len() - 1),
            ..ClusterFound::default()
        };
        let taking: BTreeSet<usize> = pairs.iter().flat_map(|(a, b)| [*a, *b]).collect();
        output::progress(&format!(
            "{} of {} pairs, {} pods in the namespace {}",
            pairs.len(),
            found.of_pairs,
            taking.len(),
            self.namespace
        ));
        let places = self.start(nodes, &taking, &mut found).await?;
        found.nodes = taking
            .iter()
            .filter_map(|at| nodes.get(*at).cloned())
            .collect();
        if places.len() < 2 {
            let reasons: Vec<String> = found
                .failed
                .iter()
                .map(|(node, why)| output::visible(&format!("{node}: {why}")))
                .collect();
            bail!("fewer than two pods started: {}", reasons.join("; "));
        }
        let mut orders: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (from, to) in pairs {
            if places.contains_key(&from) && places.contains_key(&to) {
                orders.entry(from).or_default().push(to);
            }
        }
        let own_service = self.ask(&places, &orders, &mut found).await?;
        self.judge_services(own_service, &mut found);
        if args.throughput {
            self.flow(&places, &orders, &mut found).await;
        }
        Ok(found)
    }

    /// Makes the pods and waits for them; those that do not start are named.
    async fn start(
        &self,
        nodes: &[String],
        taking: &BTreeSet<usize>,
        found: &mut ClusterFound,
    ) -> Result<BTreeMap<usize, Place>> {
        let path = |kind: &str| format!("{NAMESPACES}/{}/{kind}", self.namespace);
        let mut services = BTreeMap::new();
        for at in taking.iter().take(SERVICES) {
            match self
                .api
                .create(&path("services"), &objects::service(*at))
                .await
            {
                Ok(service) => {
                    services.insert(*at, objects::addresses(&service));
                }
                Err(error) => {
                    found.skipped.push(format!("services: {error}"));
                    break;
                }
            }
        }
        if taking.len() > SERVICES {
            found
                .skipped
                .push(format!("services of all but {SERVICES} nodes"));
        }
        let usual = self.pods.first().map(|pod| pod.image.as_str());
        for at in taking {
            let Some(node) = nodes.get(*at) else { continue };
            let own = self.pods.iter().find(|pod| pod.node == *node);
            let own = own.map(|pod| pod.image.as_str()).or(usual);
            let image = self.image.as_deref().or(own).unwrap_or_default();
            let pod = objects::pod(*at, node, image, &self.token, self.life);
            let began = Instant::now();
            loop {
                match self.api.create(&path("pods"), &pod).await {
                    Ok(_) => break,
                    // The answer to an earlier try was lost.
                    Err(KubeApiError::Conflict(_)) => break,
                    // The namespace's service account is made by a controller, a moment later.
                    Err(error) if began.elapsed() < NEW_NAMESPACE => {
                        if !error.to_string().contains("serviceaccount")
                            && matches!(error, KubeApiError::Refused(_))
                        {
                            return Err(error).context("create a pod");
                        }
                        sleep(LOOK).await;
                    }
                    Err(error) => return Err(error).context("create a pod"),
                }
            }
        }
        let end = Instant::now() + self.wait;
        let mut said = usize::MAX;
        loop {
            let list = match self.api.get(&path("pods")).await {
                Ok(list) => list,
                Err(KubeApiError::Unreachable(_)) if Instant::now() < end => {
                    sleep(LOOK).await;
                    continue;
                }
                Err(error) => return Err(error).context("look at the pods"),
            };
            let late = Instant::now() >= end;
            let (mut places, mut waiting) = (BTreeMap::new(), 0);
            for at in taking {
                let (Some(node), name) = (nodes.get(*at), objects::name(*at)) else {
                    continue;
                };
                let pod = items(&list).find(|pod| pod["metadata"]["name"] == *name);
                match pod.map_or(PodState::Waiting(String::new()), objects::state) {
                    PodState::Running(addresses) => {
                        let services = services.get(at).cloned().unwrap_or_default();
                        let node = node.clone();
                        places.insert(
                            *at,
                            Place {
                                node,
                                name,
                                addresses,
                                services,
                            },
                        );
                    }
                    PodState::Failed(why) => {
                        found.failed.insert(node.clone(), why);
                    }
                    PodState::Waiting(why) => {
                        waiting += 1;
                        if late {
                            let seconds = self.wait.as_secs();
                            let why = format!("its pod did not start within {seconds} s: {why}");
                            found.failed.insert(node.clone(), why);
                        }
                    }
                }
            }
            if waiting == 0 || late {
                return Ok(places);
            }
            if said != waiting {
                said = waiting;
                output::progress(&format!("{} of {} pods run", places.len(), taking.len()));
            }
            sleep(LOOK).await;
        }
    }

    /// Has the pods ask each other; returns whether one reaches itself by its service.
    async fn ask(
        &self,
        places: &BTreeMap<usize, Place>,
        orders: &BTreeMap<usize, Vec<usize>>,
        found: &mut ClusterFound,
    ) -> Result<bool> {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        for (from, to) in orders {
            let Some(place) = places.get(from).cloned() else {
                continue;
            };
            let targets: Vec<Place> = to.iter().filter_map(|at| places.get(at).cloned()).collect();
            let order = self.order(&place, &targets, false);
            let (api, namespace) = (self.api.clone(), self.namespace.clone());
            let (permits, end) = (permits.clone(), self.end);
            tasks.spawn(async move {
                let _permit = permits.acquire().await;
                let answer = ask_pod(&api, &namespace, &place.name, &order, end).await;
                (place.node, targets, answer)
            });
        }
        let (all, mut done) = (tasks.len(), 0);
        let mut own_service = false;
        while let Some(answer) = tasks.join_next().await {
            let (from, targets, answer) = answer.context("ask a pod")?;
            done += 1;
            match answer {
                Ok(answer) => {
                    output::progress(&format!(
                        "{from} has asked {} ({done} of {all})",
                        targets.len()
                    ));
                    found.full_size = found.full_size.max(answer.full_size);
                    own_service |= answer.own_service;
                    for (target, mut checks) in targets.into_iter().zip(answer.found) {
                        checks.truncate(MOST_CHECKS);
                        found.pairs.push(PairFound {
                            from: from.clone(),
                            to: target.node,
                            checks,
                        });
                    }
                }
                Err(error) => {
                    output::progress(&format!("{from}: {error:#} ({done} of {all})"));
                    found.failed.insert(from, format!("{error:#}"));
                }
            }
        }
        let sort = |pair: &PairFound| (pair.from.clone(), pair.to.clone());
        found.pairs.sort_by_key(sort);
        Ok(own_service)
    }

    /// Where no service at all is reached, not even by a pod its own, nothing in the cluster makes services work: that is
    /// not flannel's.
    fn judge_services(&self, own_service: bool, found: &mut ClusterFound) {
        let is_service = |check: &Check| check.name.ends_with(" service");
        let mut all = found.pairs.iter().flat_map(|pair| &pair.checks);
        let any = all.any(|check| is_service(check) && check.result == Outcome::Good);
        if any || own_service {
            return;
        }
        let mut skipped = false;
        for check in found.pairs.iter_mut().flat_map(|pair| &mut pair.checks) {
            if is_service(check) {
                check.result = Outcome::Skip;
                skipped = true;
            }
        }
        if skipped {
            found.skipped.push(
                "services: no pod reaches any service, not even its own: kube-proxy, or what replaces it, does not run"
                    .to_owned(),
            );
        }
    }

    /// Measures throughput, one pair after the other, from each pod to the first that it asks.
    async fn flow(
        &self,
        places: &BTreeMap<usize, Place>,
        orders: &BTreeMap<usize, Vec<usize>>,
        found: &mut ClusterFound,
    ) {
        for (from, to) in orders {
            let first = to.first().and_then(|to| places.get(to));
            let (Some(place), Some(target)) = (places.get(from), first) else {
                continue;
            };
            output::progress(&format!(
                "throughput from {} to {}",
                place.node, target.node
            ));
            let order = self.order(place, std::slice::from_ref(target), true);
            match ask_pod(&self.api, &self.namespace, &place.name, &order, self.end).await {
                Ok(answer) => {
                    let pair = found
                        .pairs
                        .iter_mut()
                        .find(|pair| pair.from == place.node && pair.to == target.node);
                    if let Some(pair) = pair {
                        pair.checks.extend(answer.found.into_iter().flatten());
                    }
                }
                Err(error) => {
                    found
                        .failed
                        .insert(place.node.clone(), format!("{error:#}"));
                }
            }
        }
    }

    fn order(&self, from: &Place, targets: &[Place], flow: bool) -> Order {
        let targets = targets.iter().map(|place| Target {
            node: place.node.clone(),
            addresses: place.addresses.clone(),
            services: place.services.clone(),
            flow,
        });
        Order {
            token: self.token.clone(),
            count: self.count,
            own_services: from.services.clone(),
            targets: targets.collect(),
        }
    }
}

/// Returns how long a pod may take for so many targets.
fn limit(targets: usize, count: u32) -> Duration {
    let rounds = u32::try_from(targets.div_ceil(TARGETS_AT_ONCE)).unwrap_or(u32::MAX);
    let one = ONE + EACH_SMALL.saturating_mul(count);
    BEGIN.saturating_add(one.saturating_mul(rounds))
}

/// Has one pod do what is ordered, while it lives: until `end`.
async fn ask_pod(
    api: &KubeApi,
    namespace: &str,
    pod: &str,
    order: &Order,
    end: Instant,
) -> Result<Answer> {
    let left = end.saturating_duration_since(Instant::now());
    if left < BEGIN {
        bail!("not asked: the test took so long that its pods end; test fewer pairs (--pairs)");
    }
    let line = format!("{}\n", serde_json::to_string(order)?);
    let exec = PodExec {
        namespace,
        pod,
        container: "agent",
        command: &[PROGRAM, "connectivity-agent", "ask"],
        stdin: Some(&line),
        limit: LARGEST,
    };
    let limit = limit(order.targets.len(), order.count).min(left);
    let seconds = limit.as_secs();
    let done = timeout(limit, api.exec(&exec)).await;
    let done = done.with_context(|| format!("its pod did not answer within {seconds} s"))??;
    if done.status != Some(0) {
        bail!(
            "{PROGRAM} in its pod failed: {} {}",
            done.message,
            done.stderr.trim()
        );
    }
    serde_json::from_slice(&done.stdout).context("its pod's answer is not the expected JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_time_for_targets_that_do_not_answer() {
        // In each of two families: small probes, three without checksums, three of full size, a connection; a service.
        let worst = |count: u64| 2 * (count + 3 + 3 + 10 + 10) + 20;
        for count in [1, 5, 30] {
            let one = limit(1, count).as_secs();
            assert!(one >= worst(u64::from(count)), "{count}: {one}");
            assert!(limit(8, count) == limit(1, count) && limit(9, count) > limit(8, count));
        }
    }
}
