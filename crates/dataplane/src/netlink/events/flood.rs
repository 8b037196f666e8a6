//! Notices of which there are so many that reading them would take a processor: a script that rewrites
//! routes in a loop causes 100,000 in a second. Then that kind of notices is not asked for during a
//! pause, and a full look afterwards sees what became of it.

use std::time::Duration;

use tokio::time::Instant;

use crate::netlink::uapi::*;
use crate::netlink::wire::Message;

/// So many of one kind are read as they come.
const BURST: f64 = 50_000.0;
/// And so many in a second for as long as they come.
const PER_SECOND: f64 = 2_000.0;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// After this time without a flood the next pause is a short one again.
const CALM: Duration = Duration::from_secs(30);

/// Every kind of notices by the group that they come by.
pub struct Floods {
    groups: Vec<Group>,
}

struct Group {
    id: u32,
    /// Read since the last accounting.
    read: u32,
    allowance: f64,
    counted_at: Instant,
    pause: Duration,
    /// The end of the last pause.
    until: Option<Instant>,
    /// Not asked for.
    left: bool,
}

impl Floods {
    pub fn new(next_hops: bool) -> Floods {
        let last = next_hops.then_some(RTNLGRP_NEXTHOP);
        let groups = super::GROUPS.into_iter().chain(last).map(|id| Group {
            id,
            read: 0,
            allowance: BURST,
            counted_at: Instant::now(),
            pause: FIRST_PAUSE,
            until: None,
            left: false,
        });
        Floods {
            groups: groups.collect(),
        }
    }

    /// Counts a notice.
    pub fn count(&mut self, message: &Message) {
        let v4 = message.body.first() == Some(&AF_INET);
        let id = match message.kind {
            RTM_NEWROUTE | RTM_DELROUTE if v4 => RTNLGRP_IPV4_ROUTE,
            RTM_NEWROUTE | RTM_DELROUTE => RTNLGRP_IPV6_ROUTE,
            RTM_NEWADDR | RTM_DELADDR if v4 => RTNLGRP_IPV4_IFADDR,
            RTM_NEWADDR | RTM_DELADDR => RTNLGRP_IPV6_IFADDR,
            RTM_NEWNEIGH | RTM_DELNEIGH => RTNLGRP_NEIGH,
            RTM_NEWLINK | RTM_DELLINK => RTNLGRP_LINK,
            RTM_NEWNEXTHOP | RTM_DELNEXTHOP => RTNLGRP_NEXTHOP,
            _ => return,
        };
        if let Some(group) = self.groups.iter_mut().find(|group| group.id == id) {
            group.read += 1;
        }
    }

    /// Returns the groups of which more was read than is allowed. They count as left from now on.
    pub fn begun(&mut self, now: Instant) -> Vec<u32> {
        let mut begun = Vec::new();
        for group in self.groups.iter_mut().filter(|group| group.read > 0) {
            let since = now.saturating_duration_since(group.counted_at);
            group.counted_at = now;
            let earned = since.as_secs_f64() * PER_SECOND;
            group.allowance = (group.allowance + earned).min(BURST) - f64::from(group.read);
            group.read = 0;
            if group.allowance > 0.0 || group.left {
                continue;
            }
            group.allowance = 0.0;
            group.pause = match group.until {
                Some(until) if now < until + CALM => (group.pause * 2).min(LONGEST_PAUSE),
                _ => FIRST_PAUSE,
            };
            group.until = Some(now + group.pause);
            group.left = true;
            begun.push(group.id);
        }
        begun
    }

    /// Returns when the next group that was left is to be joined again.
    pub fn next_return(&self) -> Option<Instant> {
        let left = self.groups.iter().filter(|group| group.left);
        left.filter_map(|group| group.until).min()
    }

    /// Returns the groups whose pause is over, each once.
    pub fn returned(&mut self, now: Instant) -> Vec<u32> {
        let mut returned = Vec::new();
        for group in &mut self.groups {
            if group.left && group.until.is_some_and(|until| now >= until) {
                group.left = false;
                group.allowance = PER_SECOND;
                group.counted_at = now;
                returned.push(group.id);
            }
        }
        returned
    }
}
