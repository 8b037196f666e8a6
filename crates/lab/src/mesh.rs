//! Who reaches whom: pings between the pods of a lab.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use crate::echo;
use crate::pod::Pod;
use crate::{Error, Lab, wait_for};

/// How long a ping may take.
const PING: Duration = Duration::from_secs(1);

/// How long a ping may take that is tried again when it is lost.
const SHORT_PING: Duration = Duration::from_millis(200);

/// How many pings are under way at once: a lost one takes a second, and hundreds at once would
/// wait for a processor.
const AT_ONCE: usize = 32;

/// With more pods than this, [`Lab::wait_mesh`] asks only each one's successor. The kernel keeps
/// 1024 dynamic neighbours (`gc_thresh3`) for all network namespaces together: thirty nodes that
/// all talk to each other fill them.
const FEW: usize = 24;

/// How many lost pings a message names.
const NAMED: usize = 6;

/// One ping of a [`Lab::ping_matrix`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    /// The pod that asked.
    pub from: String,
    /// The pod that was asked.
    pub to: String,
    /// Its address.
    pub ip: IpAddr,
    /// The round trip; `None` when no reply came within a second.
    pub rtt: Option<Duration>,
}

/// Who asks, whom, and at which address.
type Pair = (Arc<Pod>, Arc<Pod>, IpAddr);

impl Lab {
    /// Pings from every pod to every address of every other.
    ///
    /// # Errors
    /// A namespace could not be entered. A lost ping is no error here.
    pub fn ping_matrix(&self) -> Result<Vec<Ping>, Error> {
        ping_all(&self.pairs(), PING)
    }

    /// Pings from every pod to every other, and all must answer.
    ///
    /// # Errors
    /// [`Error::Bad`] names pings that were lost.
    pub fn must_ping(&self) -> Result<(), Error> {
        all_answered(&self.ping_matrix()?)
    }

    /// Waits until every pod answers every other; where there are more than 24, until each answers
    /// the one before it.
    ///
    /// # Errors
    /// [`Error::Timeout`] names pings that were lost last.
    pub fn wait_mesh(&self, deadline: Duration) -> Result<(), Error> {
        let pairs = match self.pods().len() {
            0..=FEW => self.pairs(),
            _ => self.ring(),
        };
        wait_for("pods answer each other", deadline, || {
            all_answered(&ping_all(&pairs, SHORT_PING)?)
        })
    }

    fn pairs(&self) -> Vec<Pair> {
        let pods = self.pods();
        let mut pairs = Vec::new();
        for from in &pods {
            for to in pods.iter().filter(|to| to.name() != from.name()) {
                pairs.extend(
                    to.ips()
                        .into_iter()
                        .map(|ip| (from.clone(), to.clone(), ip)),
                );
            }
        }
        pairs
    }

    fn ring(&self) -> Vec<Pair> {
        let pods = self.pods();
        let successors = pods.iter().cycle().skip(1);
        let pairs = pods.iter().zip(successors);
        pairs
            .flat_map(|(from, to)| {
                to.ips()
                    .into_iter()
                    .map(|ip| (from.clone(), to.clone(), ip))
            })
            .collect()
    }
}

fn ping_all(pairs: &[Pair], timeout: Duration) -> Result<Vec<Ping>, Error> {
    let ask = |(from, to, ip): &Pair| {
        let rtt = echo::ping(from, *ip, timeout)?;
        Ok(Ping {
            from: from.name().into(),
            to: to.name().into(),
            ip: *ip,
            rtt,
        })
    };
    let join =
        |t: ScopedJoinHandle<'_, _>| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
    let batches = pairs.chunks(AT_ONCE).map(|batch| {
        std::thread::scope(|s| {
            let threads: Vec<_> = batch
                .iter()
                .map(|pair| s.spawn(move || ask(pair)))
                .collect();
            threads
                .into_iter()
                .map(join)
                .collect::<Result<Vec<Ping>, Error>>()
        })
    });
    Ok(batches.collect::<Result<Vec<_>, _>>()?.concat())
}

fn all_answered(pings: &[Ping]) -> Result<(), Error> {
    let lost: Vec<&Ping> = pings.iter().filter(|p| p.rtt.is_none()).collect();
    if lost.is_empty() {
        return Ok(());
    }
    let mut text = format!("{} of {} pings lost: ", lost.len(), pings.len());
    let named: Vec<String> = lost
        .iter()
        .take(NAMED)
        .map(|p| format!("{} -> {} ({})", p.from, p.to, p.ip))
        .collect();
    text.push_str(&named.join(", "));
    if lost.len() > NAMED {
        text.push_str(", …");
    }
    Err(Error::Bad(text))
}
