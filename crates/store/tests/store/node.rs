//! A node as far as a store sees it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use model::{Dual, Lease, LeaseAttrs, NetConfig, SubnetKey};
use store::{AcquireError, Claim, Store, StoreEvent, StoreStatus, Who};
use tokio::time::{Instant, timeout_at};

/// Longer than anything takes that works, on a machine with much else to do.
pub const LIMIT: Duration = Duration::from_secs(60);

pub const CONFIG: &str = r#"{"Network":"10.20.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// What node `n` publishes.
pub fn attrs(n: u32) -> LeaseAttrs {
    LeaseAttrs::from_json(value(n).as_bytes()).unwrap()
}

pub fn value(n: u32) -> String {
    let ip = public_ip(n);
    let [_, a, b, c] = ip.octets();
    format!(
        r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:{a:02x}:{b:02x}:{c:02x}"}}}}"#
    )
}

pub fn public_ip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xac10_0001 + n)
}

pub fn claim(n: u32) -> Claim {
    Claim {
        attrs: attrs(n),
        previous: None,
    }
}

pub fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

/// A store and what the daemon on it would know.
pub struct Node<S> {
    pub store: S,
    pub n: u32,
    pub config: NetConfig,
    pub known: BTreeMap<SubnetKey, Lease>,
    pub complete: bool,
    pub revoked: Option<String>,
    /// The configuration as it was last reported.
    pub reported: Option<Result<NetConfig, String>>,
}

impl<S: Store> Node<S> {
    pub fn new(store: S, n: u32) -> Node<S> {
        Node {
            store,
            n,
            config: NetConfig::from_json(CONFIG).unwrap(),
            known: BTreeMap::new(),
            complete: false,
            revoked: None,
            reported: None,
        }
    }

    /// Does what a daemon does at its start: config, own, acquire.
    pub async fn start(store: S, n: u32) -> Node<S> {
        let mut node = Node::new(store, n);
        node.config = within(node.store.config()).await;
        let who = node.who();
        within(node.store.own(&node.config, &who)).await;
        node.acquire().await.unwrap();
        node
    }

    pub fn who(&self) -> Who {
        Who {
            public_ip: self.ips(),
            ..Who::default()
        }
    }

    pub fn ips(&self) -> Dual<IpAddr> {
        Dual {
            v4: Some(public_ip(self.n).into()),
            v6: None,
        }
    }

    pub async fn acquire(&mut self) -> Result<Lease, AcquireError> {
        within(self.store.acquire(&self.config, &claim(self.n))).await
    }

    fn learn(&mut self, event: StoreEvent) {
        for (key, state) in event.leases {
            match state {
                Some(lease) => self.known.insert(key, lease),
                None => self.known.remove(&key),
            };
        }
        self.complete = event.complete;
        self.revoked = event.revoked;
        self.reported = event.config.or(self.reported.take());
    }

    /// Follows the news until `so` holds.
    pub async fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !so(self) {
            match timeout_at(deadline, self.store.next_event()).await {
                Ok(event) => self.learn(event),
                Err(_) => panic!(
                    "never: {what}; {} leases {:?}, complete {}, revoked {:?}",
                    self.known.len(),
                    self.known.keys().take(10).collect::<Vec<_>>(),
                    self.complete,
                    self.revoked
                ),
            }
        }
    }

    /// Follows the news for a while.
    pub async fn follow(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Ok(event) = timeout_at(deadline, self.store.next_event()).await {
            self.learn(event);
        }
    }

    /// Our own lease's subnet, as the news tells.
    pub fn own_key(&self) -> Option<SubnetKey> {
        let ours = Some(IpAddr::V4(public_ip(self.n)));
        self.known
            .values()
            .find(|lease| lease.attrs.public_ip.v4 == ours)
            .map(|lease| lease.key)
    }
}

/// The result, if it comes in time.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .expect("takes too long")
}

/// Waits until the store reports that it waits, for a reason with `text` in it.
pub async fn waits_for(status: &StoreStatus, text: &str) {
    let deadline = Instant::now() + LIMIT;
    while !status.get().is_some_and(|why| why.contains(text)) {
        assert!(Instant::now() < deadline, "{text}: {:?}", status.get());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs a test as the daemon runs: on one thread.
pub fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// The most memory that this process ever took, as the kernel says it.
pub fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap_or_default()
        .into()
}
