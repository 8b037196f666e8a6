//! The backends in use. Usually one; while the network changes from one to another, the former stays beside the
//! new one until no other node needs it. Pure but for the time, which is passed in.
//!
//! A node receives on every backend that it has made ready before it says so in its lease, and sends to another
//! node by the newest one that both serve. So it does not matter in which order nodes learn of a change.
//!
//! IPsec is another matter, for its policies hold whatever the route. While there are several backends, none of them
//! drops packets, those of a peer let unencrypted packets in as well, and the one that encrypts comes when both sides
//! have agreed on keys.

use std::rc::Rc;
use std::time::Duration;

use backend::{Backend, Identity, Need, PeerPlan};
use ipnet::IpNet;
use model::object::{Route, RouteKey, RouteTo, XfrmDir, XfrmPolicy};
use model::roster::Claims;
use model::{
    BackendType, Dual, Family, Host, IfName, Lease, LeaseAttrs, NetConfig, Object, Offer, SLOTS,
    Slot, SubnetKey,
};
use tokio::time::Instant;

use crate::backends_file::Kept;
use crate::config_change::spread;

/// How long after the store has shown others a key it is used: by then they know it, too.
const ACQUAINTED: Duration = Duration::from_secs(3);

/// How long a backend stays after no other node named an older one than the newest: those that have just learned
/// of the change may still send by it.
const GRACE: Duration = Duration::from_secs(10);

/// A backend in use.
pub(crate) struct Generation {
    /// Names the owner of its kernel objects.
    pub(crate) slot: Slot,
    /// The configuration that it was built from.
    pub(crate) config: NetConfig,
    /// What it was told of this node.
    pub(crate) identity: Identity,
    /// What carries the packets.
    pub(crate) backend: Rc<dyn Backend>,
    /// Its devices are there: this node receives by it. Once true, it stays so.
    pub(crate) ready: bool,
    /// When it came into use.
    began: Instant,
    /// From when on this node may send by it to one that must know it; `None` until the store shows it.
    acquainted: Option<Instant>,
    /// It is tried by this node, and not the network's.
    trial: bool,
    /// It is not offered any more.
    withdrawn: bool,
    /// When nobody sends by it any more; `None` until the store shows that it is withdrawn.
    leaves: Option<Instant>,
    /// The device of a route that it has to the whole network, for each family.
    wide: Dual<IfName>,
}

impl Generation {
    /// Returns a backend that comes into use now.
    pub(crate) fn new(
        config: NetConfig,
        identity: Identity,
        backend: Box<dyn Backend>,
        now: Instant,
    ) -> Generation {
        Generation {
            slot: 0,
            config,
            identity,
            backend: backend.into(),
            ready: false,
            began: now,
            acquainted: None,
            trial: false,
            withdrawn: false,
            leaves: None,
            wide: Dual::default(),
        }
    }

    /// Records that this node's lease offers it already. `known`: it has done so for long enough.
    pub(crate) fn is_served(&mut self, known: bool, now: Instant) {
        let from = if known { now } else { now + ACQUAINTED };
        (self.ready, self.acquainted) = (true, Some(from));
    }

    /// Returns whether this node's lease has offered it for long enough for others to know it.
    pub(crate) fn is_known(&self, now: Instant) -> bool {
        self.acquainted.is_some_and(|from| now >= from)
    }

    /// Sets which subnets are this node's. To be called before the backend is shared with others.
    pub(crate) fn set_own(&mut self, own: &SubnetKey) {
        if let Some(backend) = Rc::get_mut(&mut self.backend) {
            backend.set_own(own);
        }
    }

    /// Returns whether what it needs has not come up for too long.
    fn is_hopeless(&self, now: Instant) -> bool {
        !self.ready && now >= self.gives_up()
    }

    fn gives_up(&self) -> Instant {
        self.began + self.backend.patience()
    }

    /// Takes over what was built anew for another configuration or host.
    pub(crate) fn rebuilt(
        &mut self,
        config: NetConfig,
        mut backend: Box<dyn Backend>,
        own: &SubnetKey,
    ) {
        backend.set_own(own);
        (self.config, self.backend) = (config, backend.into());
    }

    /// Returns whether `backend` uses a device of this one: a change to it is made in place.
    pub(crate) fn is_like(&self, backend: &dyn Backend) -> bool {
        let (own, other) = (self.backend.devices(), backend.devices());
        let shared = || {
            own.iter()
                .any(|own| other.iter().any(|of| of.name == own.name))
        };
        self.backend.kind() == backend.kind() && (own.is_empty() && other.is_empty() || shared())
    }

    /// Returns the network's route into one of its devices, if it is one.
    fn wide_route(&self, object: &Object) -> Option<(Family, IfName)> {
        let Object::Route(
            key,
            Route {
                to: RouteTo::Dev(dev),
                ..
            },
        ) = object
        else {
            return None;
        };
        let family = Family::of_net(&key.dst);
        let network = self.config.pools.get(family)?.network;
        (key.dst == network).then_some((family, *dev))
    }

    /// Returns what the lease of a peer means for it: the first offer of its type that can be used.
    fn plan(&self, peer: &Lease, host: &Host) -> Option<PeerPlan> {
        let kind = self.backend.kind();
        if peer.attrs.also.is_empty() {
            let named = kind.is_named(peer.attrs.backend_type.as_ref());
            return named.then(|| self.backend.peer(peer, host));
        }
        let mut best: Option<PeerPlan> = None;
        for offer in peer.attrs.offers() {
            if !kind.is_named(offer.backend_type.as_ref()) {
                continue;
            }
            let plan = self.plan_of(peer, offer.into_owned(), host);
            if plan.served && plan.faults.is_empty() {
                return Some(plan);
            }
            if best.as_ref().is_none_or(|best| plan.served && !best.served) {
                best = Some(plan);
            }
        }
        best
    }

    fn plan_of(&self, peer: &Lease, offer: LeaseAttrs, host: &Host) -> PeerPlan {
        let read = Lease {
            key: peer.key,
            attrs: offer,
            seniority: peer.seniority,
        };
        self.backend.peer(&read, host)
    }

    /// Returns whether packets can be sent by it to the peer of `plan`, as far as both must have agreed on keys.
    /// `holds` looks at the kernel. Once packets to the peer must be encrypted, that stays so without keys, too.
    fn is_connected(&self, plan: &PeerPlan, holds: &dyn Fn(&Object) -> bool) -> bool {
        let all = |which: fn(&Object) -> bool| {
            let mut objects = plan.objects.iter().filter(|object| which(object));
            objects.all(holds)
        };
        !self.backend.needs_connection() || all(is_connection) || all(encrypts_to_peer)
    }

    /// Returns what this node offers by it.
    fn offer(&self) -> Offer {
        let LeaseAttrs {
            backend_type, data, ..
        } = self.backend.publish();
        Offer { backend_type, data }
    }

    /// Returns whether `attrs`, this node's own lease, offers it as it is.
    pub(crate) fn is_offered_by(&self, attrs: &LeaseAttrs) -> bool {
        let own = self.backend.publish();
        attrs.offers().any(|offer| {
            offer.backend_type == own.backend_type
                && Family::ALL.iter().all(|family| {
                    let text = |of: &LeaseAttrs| of.data.get(*family).map(|d| d.get().to_owned());
                    text(&offer) == text(&own)
                })
        })
    }
}

/// Returns the part of this node's lease that a backend of type `kind` published.
pub(crate) fn published_by(own: &LeaseAttrs, kind: &BackendType) -> Option<LeaseAttrs> {
    let mut offers = own.offers();
    let found = offers.find(|offer| kind.is_named(offer.backend_type.as_ref()))?;
    Some(LeaseAttrs {
        also: Box::default(),
        ..found.into_owned()
    })
}

fn is_connection(object: &Object) -> bool {
    matches!(object, Object::IkeConnection(..))
}

fn encrypts_to_peer(object: &Object) -> bool {
    matches!(object, Object::XfrmPolicy(key, _) if key.dir == XfrmDir::Out)
}

/// Returns whether an object leads packets to a peer. What does not lets the peer's in.
fn leads(object: &Object) -> bool {
    encrypts_to_peer(object) || matches!(object, Object::Route(..) | Object::PeerCommand(..))
}

/// Has a policy for packets of a peer let unencrypted ones in as well.
fn let_plaintext_in(object: &mut Object) {
    if let Object::XfrmPolicy(key, XfrmPolicy::Tunnel { or_plain, .. }) = object {
        *or_plain = key.dir != XfrmDir::Out;
    }
}

/// What is needed for one peer.
pub(crate) struct Served {
    /// The objects, and the faults of the backend that was chosen.
    pub(crate) plan: PeerPlan,
    /// The number of the backend that this node sends by.
    pub(crate) by: Option<usize>,
    /// It offers only backends that do not encrypt, and was reached encrypted before.
    pub(crate) kept_from_plaintext: bool,
    /// Its lease names an older backend than the newest: it has not changed yet, or cannot.
    pub(crate) lags: bool,
    /// It serves a newer backend than the one it is reached by, and both sides have not agreed on keys yet.
    pub(crate) awaits_connection: bool,
}

/// The backends in use, in the order in which they are preferred: one that this node tries, then the network's, newest
/// first. There is always one of the network's.
pub(crate) struct Generations {
    list: Vec<Generation>,
    /// Until when the older ones stay although no peer needs them.
    calm_until: Option<Instant>,
}

impl Generations {
    /// Returns one backend.
    pub(crate) fn new(first: Generation) -> Generations {
        Generations {
            list: vec![first],
            calm_until: None,
        }
    }

    /// All of them, in the order in which they are preferred.
    pub(crate) fn all(&self) -> &[Generation] {
        &self.list
    }

    pub(crate) fn all_mut(&mut self) -> &mut [Generation] {
        &mut self.list
    }

    /// Sets which subnets are this node's. To be called before the backends are shared with others.
    pub(crate) fn set_own(&mut self, own: &SubnetKey) {
        self.list.iter_mut().for_each(|one| one.set_own(own));
    }

    /// Returns the place of the network's newest.
    pub(crate) fn newest_at(&self) -> usize {
        usize::from(self.trial().is_some())
    }

    /// The one that the configuration names.
    pub(crate) fn newest(&self) -> &Generation {
        &self.list[self.newest_at()]
    }

    /// The network's former ones.
    pub(crate) fn former(&self) -> &[Generation] {
        &self.list[self.newest_at() + 1..]
    }

    /// The one that this node tries.
    pub(crate) fn trial(&self) -> Option<&Generation> {
        self.list.first().filter(|own| own.trial)
    }

    /// The network's newest that other nodes can be told of.
    pub(crate) fn leading(&self) -> &Generation {
        let mut networks = self.list.iter().filter(|own| !own.trial);
        let ready = networks.find(|own| own.ready);
        ready.unwrap_or_else(|| self.newest())
    }

    /// Whether the network's backend changes.
    pub(crate) fn is_changing(&self) -> bool {
        !self.former().is_empty()
    }

    /// Whether there is more than one.
    pub(crate) fn has_several(&self) -> bool {
        self.list.len() > 1
    }

    /// Whether IPsec drops no packet that arrives unencrypted, since another backend is in use.
    pub(crate) fn lets_plaintext_in(&self) -> bool {
        let mut all = self.list.iter();
        self.has_several() && all.any(|own| own.backend.needs_connection())
    }

    /// Whether all of them encrypt.
    pub(crate) fn all_encrypt(&self) -> bool {
        self.list.iter().all(|own| own.backend.encrypts())
    }

    /// Has this node try another backend beside the network's. If a former one of the network's is like it, that one
    /// becomes the trial.
    pub(crate) fn add_trial(&mut self, mut trial: Generation) {
        if self.trial().is_some() {
            return;
        }
        let mut formers = self.former().iter();
        let like = formers.position(|own| own.is_like(&*trial.backend));
        if let Some(at) = like {
            let former = self.list.remove(self.newest_at() + 1 + at);
            (trial.slot, trial.ready) = (former.slot, former.ready);
            trial.acquainted = former.acquainted;
        } else if self.list.len() < usize::from(SLOTS) {
            trial.slot = self.free_slot();
        } else {
            return;
        }
        trial.trial = true;
        self.list.insert(0, trial);
    }

    /// Ends the trial: the backend stays like a former one of the network's, until no other node sends by it.
    pub(crate) fn retire_trial(&mut self) {
        if let Some(trial) = self.end_trial() {
            self.list.push(Generation {
                trial: false,
                ..trial
            });
        }
    }

    /// Ends the trial at once. Returns the backend.
    pub(crate) fn end_trial(&mut self) -> Option<Generation> {
        self.trial()?;
        Some(self.list.remove(0))
    }

    /// Whether the kernel has refused what the trial needs for so long that it is ended.
    pub(crate) fn is_trial_hopeless(&self, now: Instant) -> bool {
        self.trial().is_some_and(|trial| trial.is_hopeless(now))
    }

    /// Returns what the command printed that `need` names, if one in use asked the same: it is not run again for a
    /// change of other options.
    pub(crate) fn answered(&self, need: &Need) -> Option<&Identity> {
        let Need::Command { line, env, .. } = need else {
            return None;
        };
        let asks = |own: &&Generation| match backend::need(&own.config) {
            Need::Command {
                line: asked,
                env: told,
                ..
            } => asked == *line && told == *env,
            _ => false,
        };
        self.list.iter().find(asks).map(|own| &own.identity)
    }

    /// Adds a newer one. Where it is like one in use, that one is changed in place and becomes the newest.
    /// Returns the slot of one that had to go to make room.
    pub(crate) fn add(&mut self, mut newer: Generation) -> Option<Slot> {
        self.calm_until = None;
        let like = self
            .list
            .iter()
            .position(|old| old.is_like(&*newer.backend));
        if let Some(at) = like {
            let old = self.list.remove(at);
            (newer.slot, newer.ready, newer.began) = (old.slot, old.ready, newer.began);
            newer.acquainted = old.acquainted;
            self.list.insert(self.newest_at(), newer);
            self.offer_all();
            return None;
        }
        let gone = (self.list.len() >= usize::from(SLOTS)).then(|| self.list.pop());
        newer.slot = self.free_slot();
        self.list.insert(self.newest_at(), newer);
        self.offer_all();
        gone.flatten().map(|gone| gone.slot)
    }

    /// Adds one that was in use before all others: what an earlier run left.
    pub(crate) fn add_former(&mut self, mut former: Generation) {
        let known = self.list.iter().any(|own| own.is_like(&*former.backend));
        if !known && self.list.len() < usize::from(SLOTS) {
            former.slot = self.free_slot();
            self.list.push(former);
        }
    }

    /// Offers again what was to go.
    fn offer_all(&mut self) {
        for generation in &mut self.list {
            (generation.withdrawn, generation.leaves) = (false, None);
        }
    }

    fn free_slot(&self) -> Slot {
        let used = |slot: &Slot| self.list.iter().any(|own| own.slot == *slot);
        (0..SLOTS).find(|slot| !used(slot)).unwrap_or_default()
    }

    /// Gives up the newest, if there is another one. Returns it.
    pub(crate) fn give_up(&mut self) -> Option<Generation> {
        self.calm_until = None;
        let at = self.newest_at();
        self.is_changing().then(|| self.list.remove(at))
    }

    /// Whether the kernel has refused what the newest needs for so long that it is given up.
    pub(crate) fn is_hopeless(&self, now: Instant) -> bool {
        self.is_changing() && self.newest().is_hopeless(now)
    }

    /// Takes in that the store shows `attrs` as this node's lease.
    pub(crate) fn published(&mut self, attrs: &LeaseAttrs, now: Instant) {
        for generation in &mut self.list {
            // For good: who knew it once knows where this node is, and learns of changes by itself.
            let offered = generation.is_offered_by(attrs);
            if generation.acquainted.is_none() && offered {
                generation.acquainted = Some(now + ACQUAINTED);
            }
            if generation.withdrawn && !offered && generation.leaves.is_none() {
                generation.leaves = Some(now + ACQUAINTED);
            }
        }
    }

    /// Ends the use of the older ones that nobody needs: they are no longer offered, and once others have seen that,
    /// they go. Returns their slots. `lags`: a peer needs an older one, or may. `nodes`: how many there are beside
    /// this one, which do not all change at one moment.
    pub(crate) fn retire(&mut self, lags: bool, nodes: usize, now: Instant) -> Vec<Slot> {
        // Others cannot have changed before the store shows them that this node has.
        let shown = self.newest().acquainted.is_some();
        if lags || !self.is_changing() || !self.newest().ready || !shown {
            self.calm_until = None;
            self.offer_all();
            return Vec::new();
        }
        let until = *self
            .calm_until
            .get_or_insert_with(|| now + GRACE + spread(nodes));
        if nodes > 0 && now < until {
            return Vec::new();
        }
        let formers = self.newest_at() + 1;
        for former in self.list.iter_mut().skip(formers) {
            former.withdrawn = true;
        }
        let leaves = |own: &Generation| own.leaves.is_some_and(|at| now >= at);
        let gone = self
            .list
            .iter()
            .filter(|own| nodes == 0 && own.withdrawn || leaves(own));
        let gone: Vec<Slot> = gone.map(|own| own.slot).collect();
        self.list.retain(|own| !gone.contains(&own.slot));
        gone
    }

    /// Returns the next time at which something changes by itself.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        if !self.has_several() {
            return None;
        }
        let known = self.list.iter().filter_map(|own| own.acquainted);
        let missing = self.list.iter().filter(|own| !own.ready);
        let gives_up = missing.map(Generation::gives_up);
        known
            .chain(gives_up)
            .chain(self.calm_until)
            .chain(self.list.iter().filter_map(|own| own.leaves))
            .filter(|at| *at > now)
            .min()
    }

    /// Returns what this node publishes.
    pub(crate) fn publish(&self) -> LeaseAttrs {
        let leading = self.leading();
        let others = self
            .list
            .iter()
            .filter(|own| own.ready && !own.withdrawn && own.slot != leading.slot);
        LeaseAttrs {
            also: others.map(Generation::offer).collect(),
            ..leading.backend.publish()
        }
    }

    /// Returns the MTU for pods: what every backend carries that packets may be sent by.
    pub(crate) fn mtu(&self) -> u32 {
        let ready = self.list.iter().filter(|own| own.ready);
        let mtu = ready.map(|own| own.backend.mtu()).min();
        mtu.unwrap_or_else(|| self.newest().backend.mtu())
    }

    /// Returns all devices.
    pub(crate) fn devices(&self) -> Vec<IfName> {
        let devices = self.list.iter().flat_map(|own| own.backend.devices());
        let mut names: Vec<IfName> = devices.map(|own| own.name).collect();
        names.dedup();
        names
    }

    /// Returns what a later run must know of them, in the order in which they are preferred.
    pub(crate) fn kept(&self, now: Instant) -> Vec<Kept> {
        let kept = self.list.iter().map(|own| Kept {
            backend: own.config.backend.clone(),
            known: own.is_known(now),
        });
        kept.collect()
    }

    /// Returns all of them, the network's newest first.
    fn by_age(&self) -> impl Iterator<Item = &Generation> {
        let networks = self.list.iter().filter(|own| !own.trial);
        networks.chain(self.trial())
    }

    /// Returns their types, the network's newest first.
    pub(crate) fn kinds(&self) -> Vec<BackendType> {
        self.by_age().map(|own| own.backend.kind()).collect()
    }

    /// Returns what reads the claims of a lease: those of the newest backend that it offers.
    pub(crate) fn claims(&self) -> impl Fn(&LeaseAttrs) -> Claims + 'static {
        let backends = self.by_age().map(|own| Rc::clone(&own.backend));
        let backends: Vec<Rc<dyn Backend>> = backends.collect();
        move |attrs| {
            for backend in &backends {
                let kind = backend.kind();
                let mut offers = attrs.offers();
                let offer = offers.find(|offer| kind.is_named(offer.backend_type.as_ref()));
                if let Some(offer) = offer {
                    return backend.claims(&offer);
                }
            }
            Claims::default()
        }
    }

    /// Returns what this node needs for each backend, by slot. While there are several, a route to the whole
    /// network belongs to the leading one alone, and every peer has a route of its own. IPsec then has none, and drops
    /// nothing: the packets of the others go that way, too.
    pub(crate) fn node(&mut self, own: &Lease, host: &Host) -> Vec<(Slot, Vec<Object>)> {
        let (leading, several) = (self.leading().slot, self.has_several());
        let mut all = Vec::new();
        for generation in &mut self.list {
            let mut objects = generation.backend.node(own, host);
            let wide = objects
                .iter()
                .filter_map(|object| generation.wide_route(object));
            let wide: Vec<(Family, IfName)> = wide.collect();
            generation.wide = Dual::default();
            for (family, dev) in wide {
                generation.wide.set(family, Some(dev));
            }
            let is_ipsec = generation.backend.needs_connection();
            if several && (generation.slot != leading || is_ipsec) {
                objects.retain(|object| generation.wide_route(object).is_none());
            }
            if several {
                objects
                    .retain(|object| !matches!(object, Object::XfrmPolicy(_, XfrmPolicy::Block)));
            }
            all.push((generation.slot, objects));
        }
        all
    }

    /// Returns whether this node sends by a backend.
    fn is_usable(&self, generation: &Generation, now: Instant) -> bool {
        let known = !generation.backend.needs_acquaintance() || generation.is_known(now);
        !self.has_several() || generation.ready && known
    }

    /// Returns the slots of those that this node sends by, where a peer serves them, too.
    pub(crate) fn usable(&self, now: Instant) -> Vec<Slot> {
        let usable = self.list.iter().filter(|own| self.is_usable(own, now));
        usable.map(|own| own.slot).collect()
    }

    /// Returns what a peer needs. `sealed`: it was reached encrypted before. `holds`: whether the kernel holds an object.
    pub(crate) fn serve(
        &self,
        peer: &Lease,
        host: &Host,
        sealed: bool,
        holds: &dyn Fn(&Object) -> bool,
        now: Instant,
    ) -> Served {
        let sealed = sealed && self.newest().backend.encrypts();
        let plans = self.list.iter().map(|own| own.plan(peer, host));
        let mut plans: Vec<Option<PeerPlan>> = plans.collect();
        let candidates = || {
            let usable = self.list.iter().zip(&plans).enumerate();
            usable.filter_map(|(number, (own, plan))| {
                let plan = plan.as_ref().filter(|plan| plan.served)?;
                self.is_usable(own, now).then_some((number, own, plan))
            })
        };
        let allowed = || candidates().filter(|(_, own, _)| !sealed || own.backend.encrypts());
        let connected = || {
            allowed().filter(|(_, own, plan)| !self.has_several() || own.is_connected(plan, holds))
        };
        // If there is no other way, packets wait for the keys.
        let whole = connected().find(|(.., plan)| plan.faults.is_empty());
        let by = whole
            .or_else(|| connected().next())
            .or_else(|| allowed().next())
            .map(|(number, ..)| number);
        let kept_from_plaintext = by.is_none() && candidates().next().is_some();
        let awaited = candidates().filter(|(number, own, plan)| {
            by.is_some_and(|by| *number < by) && !own.is_connected(plan, holds)
        });
        let awaited: Vec<bool> = awaited.map(|(_, own, _)| own.trial).collect();
        let awaits_connection = !awaited.is_empty();
        let awaits_network = awaited.contains(&false);
        let lags = self.is_changing()
            && !kept_from_plaintext
            && (awaits_network || !self.has_changed(peer, host));
        let mut plan = by.and_then(|by| plans.get_mut(by).and_then(Option::take));
        if let (Some(plan), Some(by), true) = (&mut plan, by, self.has_several()) {
            self.add_own_routes(&self.list[by], peer, plan);
        }
        let mut plan = plan.unwrap_or_else(|| {
            let faults = plans.iter().flatten().find(|plan| !plan.served);
            PeerPlan {
                faults: faults.map(|plan| plan.faults.clone()).unwrap_or_default(),
                ..PeerPlan::default()
            }
        });
        // What receives from it by the others.
        for (own, other) in self.list.iter().zip(plans) {
            let objects = other.filter(|_| own.ready).map(|plan| plan.objects);
            let objects = objects.into_iter().flatten();
            plan.objects.extend(objects.filter(|object| !leads(object)));
        }
        if self.has_several() {
            plan.objects.iter_mut().for_each(let_plaintext_in);
        }
        Served {
            plan,
            by,
            kept_from_plaintext,
            lags,
            awaits_connection,
        }
    }

    /// Returns whether the backend that a peer's lease names is the newest, and can be used.
    fn has_changed(&self, peer: &Lease, host: &Host) -> bool {
        let newest = self.newest();
        let named = LeaseAttrs {
            also: Box::default(),
            ..peer.attrs.clone()
        };
        newest.backend.kind().is_named(named.backend_type.as_ref())
            && newest.plan_of(peer, named, host).served
    }

    /// Gives a peer routes of its own where its backend has one for the whole network.
    fn add_own_routes(&self, by: &Generation, peer: &Lease, plan: &mut PeerPlan) {
        for (family, dev) in by.wide.iter() {
            let Some(net) = peer.key.nets().get(family) else {
                continue;
            };
            let to = RouteKey::to(*net);
            let has = |object: &Object| matches!(object, Object::Route(key, _) if *key == to);
            if !plan.objects.iter().any(has) {
                let route = Route::ours(RouteTo::Dev(*dev));
                plan.objects.push(Object::Route(to, route));
            }
        }
    }
}

/// Returns the networks of a configuration.
pub(crate) fn networks(config: &NetConfig) -> Dual<IpNet> {
    config.pools.map(|_, pool| pool.network)
}

#[cfg(test)]
mod tests;
