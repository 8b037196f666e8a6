//! TCP to a host by name or address: the name is looked up apart from the connection's time, and all of
//! its addresses are tried, each with a time of its own.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Time of one address: long enough for a second SYN. Short, because while a lost SYN is waited for the
/// server may be reachable again; changes made during an outage should be seen within 2 s of its end.
pub(super) const TCP_TIMEOUT: Duration = Duration::from_millis(1200);
/// The next address is tried alongside the one before after so long (RFC 8305 recommends it).
const STAGGER: Duration = Duration::from_millis(250);
/// glibc gives each name server 5 s, twice.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);
/// An idle connection is probed after so long,
const PROBE_AFTER: Duration = Duration::from_secs(15);
/// so often,
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// and ends when so many probes in a row are not answered.
const PROBES: u32 = 3;

/// Why there is no TCP connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DialError {
    #[error("cannot look up {host}: {reason}")]
    Lookup { host: String, reason: String },
    /// The only address failed.
    #[error("{0}")]
    One(String),
    /// Each of several addresses failed.
    #[error("{}", .0.join("; "))]
    Each(Vec<String>),
}

/// Connects to the first address of `host` that answers.
pub(super) async fn dial(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let addresses = match host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => lookup(host, port).await?,
    };
    let tcp = race(interleave(addresses)).await?;
    // What cannot be set is the system's default, and no reason to do without the connection.
    let _ = tcp.set_nodelay(true);
    let _ = keep_alive(&tcp);
    Ok(tcp)
}

/// Connects to a Unix socket.
pub(super) async fn dial_socket(path: &Path) -> Result<UnixStream, DialError> {
    match timeout(TCP_TIMEOUT, UnixStream::connect(path)).await {
        Ok(connected) => connected.map_err(|error| DialError::One(error.to_string())),
        Err(_) => Err(DialError::One(format!("no answer within {TCP_TIMEOUT:?}"))),
    }
}

fn keep_alive(tcp: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(tcp, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(tcp, PROBES)
}

/// Orders addresses so that the families alternate, the resolver's first choice first.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (preferred, other): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let mut other = other.into_iter();
    let mut all = Vec::new();
    for address in preferred {
        all.push(address);
        all.extend(other.next());
    }
    all.extend(other);
    all
}

/// Tries the addresses, each a little after the one before; the first connection wins.
async fn race(addresses: Vec<SocketAddr>) -> Result<TcpStream, DialError> {
    let several = addresses.len() > 1;
    let mut waiting = addresses.into_iter().peekable();
    let mut attempts = JoinSet::new();
    let mut failures = Vec::new();
    loop {
        if let Some(address) = waiting.next() {
            attempts.spawn(attempt(address));
        }
        let finished = if waiting.peek().is_some() {
            match timeout(STAGGER, attempts.join_next()).await {
                Ok(finished) => finished,
                Err(_) => continue,
            }
        } else {
            attempts.join_next().await
        };
        match finished {
            Some(Ok(Ok(tcp))) => return Ok(tcp),
            Some(Ok(Err((address, reason)))) if several => {
                failures.push(format!("{address}: {reason}"));
            }
            Some(Ok(Err((_, reason)))) => return Err(DialError::One(reason)),
            Some(Err(error)) => failures.push(error.to_string()),
            None => return Err(DialError::Each(failures)),
        }
    }
}

async fn attempt(address: SocketAddr) -> Result<TcpStream, (SocketAddr, String)> {
    match timeout(TCP_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(tcp)) => Ok(tcp),
        Ok(Err(error)) => Err((address, error.to_string())),
        Err(_) => Err((address, format!("no answer within {TCP_TIMEOUT:?}"))),
    }
}

type Found = Result<Vec<SocketAddr>, String>;
type Lookups = HashMap<(String, u16), watch::Receiver<Option<Found>>>;

/// Look-ups under way in this process. A name is looked up once at a time: a resolver that takes longer than
/// its callers wait would otherwise hold one more thread for each of their attempts.
static LOOKUPS: LazyLock<Mutex<Lookups>> = LazyLock::new(Mutex::default);

async fn lookup(host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
    let failed = |reason: String| DialError::Lookup {
        host: host.into(),
        reason,
    };
    let mut answer = shared_lookup(host, port, resolve).map_err(|e| failed(e.to_string()))?;
    let found = match timeout(LOOKUP_TIMEOUT, answer.wait_for(Option::is_some)).await {
        Ok(Ok(found)) => found.clone(),
        Ok(Err(_)) => None,
        Err(_) => {
            let seconds = LOOKUP_TIMEOUT.as_secs();
            return Err(failed(format!(
                "no name server answered within {seconds} s"
            )));
        }
    };
    match found.unwrap_or_else(|| Err("the look-up ended without an answer".into())) {
        Ok(addresses) if addresses.is_empty() => Err(failed("it has no address".into())),
        Ok(addresses) => Ok(addresses),
        Err(reason) => Err(failed(reason)),
    }
}

fn resolve(host: &str, port: u16) -> Found {
    match (host, port).to_socket_addrs() {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(error.to_string()),
    }
}

/// Joins the look-up of that name that is under way, or starts one.
///
/// It runs on a thread of its own, not on the runtime's: those are waited for when the daemon ends.
fn shared_lookup(
    host: &str,
    port: u16,
    resolve: impl FnOnce(&str, u16) -> Found + Send + 'static,
) -> io::Result<watch::Receiver<Option<Found>>> {
    let name = (host.to_owned(), port);
    let mut lookups = LOOKUPS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(under_way) = lookups.get(&name) {
        return Ok(under_way.clone());
    }
    let (sender, receiver) = watch::channel(None);
    let thread = std::thread::Builder::new().name("lookup".into());
    let key = name.clone();
    thread.spawn(move || {
        let found = resolve(&name.0, name.1);
        let mut lookups = LOOKUPS.lock().unwrap_or_else(PoisonError::into_inner);
        lookups.remove(&name);
        drop(lookups);
        // Nobody may be waiting any more.
        let _ = sender.send(Some(found));
    })?;
    lookups.insert(key, receiver.clone());
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_alternate() {
        let all = ["[::1]:1", "[::2]:1", "[::3]:1", "10.0.0.1:1"].map(at);
        let want = ["[::1]:1", "10.0.0.1:1", "[::2]:1", "[::3]:1"].map(at);
        assert_eq!(interleave(all.to_vec()), want);
    }

    #[tokio::test]
    async fn an_address_that_swallows_packets_does_not_hide_the_next() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        // A full backlog: the kernel drops further SYNs.
        let full = tokio::net::TcpSocket::new_v4().unwrap();
        full.bind(at("127.0.0.1:0")).unwrap();
        let deaf = full.listen(0).unwrap();
        let dead = deaf.local_addr().unwrap();
        let _fill = TcpStream::connect(dead).await.unwrap();
        let tcp = race(vec![dead, dead, dead, good]).await.unwrap();
        assert_eq!(tcp.peer_addr().unwrap(), good);
        let error = race(vec![dead, dead]).await.unwrap_err().to_string();
        assert!(error.contains("no answer within 1.2s"), "{error}");
    }

    #[tokio::test]
    async fn a_refused_address_is_followed_by_the_next_at_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let refused: Vec<SocketAddr> = (0..8).map(|_| at("127.0.0.1:1")).collect();
        let began = std::time::Instant::now();
        let tcp = race([refused, vec![good]].concat()).await.unwrap();
        assert_eq!(tcp.peer_addr().unwrap(), good);
        assert!(began.elapsed() < STAGGER * 8, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn connections_are_probed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tcp = dial("localhost", port).await.unwrap();
        assert!(sockopt::socket_keepalive(&tcp).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&tcp).unwrap(), PROBE_AFTER);
    }

    #[tokio::test]
    async fn a_slow_look_up_is_shared_and_not_repeated() {
        let (answer, wait) = mpsc::channel();
        let slow = move |_: &str, port| {
            wait.recv().unwrap();
            Ok(vec![SocketAddr::new([10, 0, 0, 1].into(), port)])
        };
        let mut first = shared_lookup("slow.test", 7, slow).unwrap();
        let never = |_: &str, _| panic!("a second thread");
        let mut others: Vec<_> = (0..100)
            .map(|_| shared_lookup("slow.test", 7, never).unwrap())
            .collect();
        drop(others.pop());
        answer.send(()).unwrap();
        let found = first.wait_for(Option::is_some).await.unwrap().clone();
        assert_eq!(found, Some(Ok(vec![at("10.0.0.1:7")])));
        for mut other in others {
            assert_eq!(*other.wait_for(Option::is_some).await.unwrap(), found);
        }
        let again = |_: &str, _| Err("again".into());
        let mut again = shared_lookup("slow.test", 7, again).unwrap();
        let found = again.wait_for(Option::is_some).await.unwrap().clone();
        assert_eq!(found, Some(Err("again".into())));
    }
}
