//! Which subnets are free, and which of them to take. Chance comes from outside: no I/O here.

use std::fmt;

use ipnet::IpNet;

use crate::config::keys;
use crate::range::{ends, number, subnet};
use crate::{Dual, Family, NetConfig, Pool, SubnetKey};

/// Among how many free subnets the choice is made. Few nodes that start at once then choose
/// the same one, and yet the subnets in use stay together. Whoever loses a race widens the choice.
pub const CHOICES: usize = 100;

/// No subnet can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFull {
    /// The pool that is used up; `None` for a configuration without any.
    pub pool: Option<Pool>,
    /// How many leases have a subnet in it.
    pub taken: usize,
}

impl std::error::Error for PoolFull {}

impl fmt::Display for PoolFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Pool {
            network,
            subnet_len,
            min,
            max,
        }) = self.pool
        else {
            return f.write_str("no free subnet: the network configuration has no address family");
        };
        let keys = keys(Family::of_net(&network));
        write!(f, "no free subnet in {} {network}: ", keys.network)?;
        write!(
            f,
            "{} leases take all from {} {min} to {} {max}",
            self.taken, keys.min, keys.max
        )?;
        write!(
            f,
            " ({} {subnet_len}). Delete the leases of nodes that are gone, ",
            keys.len
        )?;
        write!(f, "or configure a wider range or a larger {}", keys.network)
    }
}

/// The first [`CHOICES`] subnets of `pool`, lowest first, that share no address with any of
/// `taken`, which may be of any length and lie anywhere. Costs the sorting of `taken`, whatever
/// the size of the pool.
pub fn free<'a>(pool: &Pool, taken: impl Iterator<Item = &'a IpNet>) -> Vec<IpNet> {
    first_free(CHOICES, pool, taken)
}

/// [`free`], but the first `choices` subnets.
fn first_free<'a>(
    choices: usize,
    pool: &Pool,
    taken: impl Iterator<Item = &'a IpNet>,
) -> Vec<IpNet> {
    let family = pool.family();
    let taken = taken.filter(|net| Family::of_net(net) == family);
    let mut taken: Vec<(u128, u128)> = taken.map(ends).collect();
    taken.sort_unstable();

    let mut free = Vec::new();
    let last = number(pool.max);
    let mut next = Some(number(pool.min));
    let mut taken = taken.into_iter().peekable();
    while let Some(n) = next.filter(|n| *n <= last && free.len() < choices) {
        let candidate = subnet(family, n, pool.subnet_len);
        let (start, end) = ends(&candidate);
        // What ends before this candidate ends before all later ones, too.
        while taken.next_if(|(_, taken_end)| *taken_end < start).is_some() {}
        next = match taken.peek() {
            Some((taken_start, taken_end)) if *taken_start <= end => {
                // On to the first subnet behind the taken one.
                let covered = subnet(family, *taken_end, pool.subnet_len);
                ends(&covered).1.checked_add(1)
            }
            _ => {
                free.push(candidate);
                end.checked_add(1)
            }
        };
    }
    free
}

/// Chooses a free subnet of every enabled family: those of `previous` if they are free and fit;
/// else, each family for itself, one of the first [`CHOICES`] free ones: the one that `pick`
/// chooses, given their number.
///
/// # Errors
/// [`PoolFull`]: a family has none left.
pub fn choose(
    config: &NetConfig,
    taken: &[SubnetKey],
    previous: Option<&SubnetKey>,
    pick: impl FnMut(usize) -> usize,
) -> Result<SubnetKey, PoolFull> {
    choose_among(CHOICES, config, taken, previous, pick)
}

/// [`choose`], but from the first `choices` free subnets.
///
/// # Errors
/// [`PoolFull`]: a family has none left.
pub fn choose_among(
    choices: usize,
    config: &NetConfig,
    taken: &[SubnetKey],
    previous: Option<&SubnetKey>,
    mut pick: impl FnMut(usize) -> usize,
) -> Result<SubnetKey, PoolFull> {
    let unused = |key: &&SubnetKey| config.fits(key) && !taken.iter().any(|t| t.overlaps(key));
    if let Some(again) = previous.filter(unused) {
        return Ok(*again);
    }
    let mut nets = Dual::default();
    for (family, pool) in config.pools.iter() {
        let taken = taken.iter().filter_map(|key| key.nets().get(family));
        // A subnet that lies within a net to be avoided is as good as any: only what contains one
        // would take its place.
        let avoid = (config.avoid.iter().chain(&config.connected))
            .filter(|net| net.prefix_len() >= pool.subnet_len);
        let free = first_free(choices, pool, taken.clone().chain(avoid));
        if free.is_empty() {
            return Err(PoolFull {
                pool: Some(*pool),
                taken: within(pool, taken),
            });
        }
        let chosen = pick(free.len()).min(free.len() - 1);
        nets.set(family, free.get(chosen).copied());
    }
    SubnetKey::new(nets).ok_or(PoolFull {
        pool: None,
        taken: 0,
    })
}

/// How many of `taken` have an address in the pool.
fn within<'a>(pool: &Pool, taken: impl Iterator<Item = &'a IpNet>) -> usize {
    let first = number(pool.min);
    let last = ends(&subnet(pool.family(), number(pool.max), pool.subnet_len)).1;
    taken
        .map(ends)
        .filter(|(start, end)| *start <= last && *end >= first)
        .count()
}
