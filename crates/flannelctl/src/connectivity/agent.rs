//! What runs in the pods that `flannelctl connectivity --kubernetes` makes: a server that echoes, and, started in the same
//! pod for each test, a client that asks the other pods.

use std::io::{self, BufRead, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use dataplane::datagram;
use model::Family;
use serde::{Deserialize, Serialize};

use super::session::Tally;
use super::{Check, FULL, Outcome, headers};
use crate::output;

/// The port of the server, both UDP and TCP.
pub(super) const PORT: u16 = 8286;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a connection may take: a lost first packet is sent again after one second and after three.
const CONNECTION: Duration = Duration::from_secs(5);

/// Bytes that a connection carries there and back.
const ECHO: usize = 256 << 10;

/// How long data flow for a figure of throughput.
const FLOW: Duration = Duration::from_secs(3);

/// How long a slow way may take for what is still on it after that: some MB.
const DRAIN: Duration = Duration::from_secs(20);

/// Targets that are tested at the same time.
const AT_ONCE: usize = 8;

/// Clients of the server at the same time.
const CLIENTS: usize = 256;

/// Bytes of the smallest probe: the token, and a number.
const SMALL: usize = 64;

/// Arguments of the hidden `flannelctl connectivity-agent`.
#[derive(Args)]
pub(crate) struct AgentArgs {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Echo what begins with the token
    Serve {
        token: String,
        /// Seconds until it ends
        life: u64,
    },
    /// Read one line of JSON, test what it names, print JSON
    Ask,
}

/// What a client is to do.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Order {
    pub(super) token: String,
    /// Small probes to each address.
    pub(super) count: u32,
    /// Addresses of the service that leads to the pod that asks.
    pub(super) own_services: Vec<IpAddr>,
    pub(super) targets: Vec<Target>,
}

/// A pod to ask.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Target {
    pub(super) node: String,
    pub(super) addresses: Vec<IpAddr>,
    /// Addresses of a service that leads to it.
    pub(super) services: Vec<IpAddr>,
    /// Measure throughput, and nothing else.
    pub(super) flow: bool,
}

/// What a client found.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Answer {
    /// Bytes of a packet of full size.
    pub(super) full_size: u32,
    /// Whether the pod reaches itself by its service: then something on its node makes services work.
    pub(super) own_service: bool,
    /// In the order of the targets.
    pub(super) found: Vec<Vec<Check>>,
}

/// Runs one of the two.
///
/// # Errors
/// The server cannot listen; the client's order is none.
pub(crate) fn run(args: &AgentArgs) -> Result<ExitCode> {
    match &args.role {
        Role::Serve { token, life } => serve(token, Duration::from_secs(*life)),
        Role::Ask => {
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line)?;
            let order: Order = serde_json::from_str(&line).context("standard input")?;
            output::line(&serde_json::to_string(&ask(&order))?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Binds the port in all families that there are.
fn bound<T>(bind: impl Fn(SocketAddr) -> io::Result<T>) -> Result<T> {
    let all = bind((std::net::Ipv6Addr::UNSPECIFIED, PORT).into());
    let all = all.or_else(|_| bind((std::net::Ipv4Addr::UNSPECIFIED, PORT).into()));
    all.with_context(|| format!("listen at port {PORT}"))
}

fn serve(token: &str, life: Duration) -> Result<ExitCode> {
    // The first process of a pod gets no signal that it does not handle: without this a pod would end by force only.
    let end = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let udp = bound(UdpSocket::bind)?;
    let tcp = bound(TcpListener::bind)?;
    let wanted = token.to_owned();
    thread::spawn(move || echo_datagrams(&udp, wanted.as_bytes()));
    let wanted = token.to_owned();
    thread::spawn(move || accept(&tcp, &wanted));
    end.block_on(async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = term.recv() => {}
            () = tokio::time::sleep(life) => {}
        }
        anyhow::Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

fn echo_datagrams(udp: &UdpSocket, token: &[u8]) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        if let Ok((len, from)) = udp.recv_from(&mut buffer) {
            let datagram = buffer.get(..len).unwrap_or_default();
            if datagram.starts_with(token) {
                let _ = udp.send_to(datagram, from);
            }
        }
    }
}

fn accept(tcp: &TcpListener, token: &str) {
    let clients = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for stream in tcp.incoming().flatten() {
        use std::sync::atomic::Ordering::Relaxed;
        if clients.fetch_add(1, Relaxed) >= CLIENTS {
            clients.fetch_sub(1, Relaxed);
            continue;
        }
        let (clients, token) = (clients.clone(), token.to_owned());
        thread::spawn(move || {
            // A client that went is its own affair.
            let _ = answer(stream, token.as_bytes());
            clients.fetch_sub(1, Relaxed);
        });
    }
}

/// Echoes a connection; after the token and `F` it only counts, and answers with the count at the end.
fn answer(mut stream: TcpStream, token: &[u8]) -> io::Result<()> {
    stream.set_read_timeout(Some(CONNECTION))?;
    stream.set_write_timeout(Some(CONNECTION))?;
    let mut head = vec![0; token.len() + 1];
    stream.read_exact(&mut head)?;
    if !head.starts_with(token) {
        return Ok(());
    }
    let echo = head.last() == Some(&b'E');
    let mut buffer = vec![0; 64 << 10];
    let mut count = 0_u64;
    loop {
        let len = stream.read(&mut buffer)?;
        let data = buffer.get(..len).unwrap_or_default();
        if data.is_empty() {
            break;
        }
        count += len as u64;
        if echo {
            stream.write_all(data)?;
        }
    }
    if !echo {
        stream.write_all(&count.to_be_bytes())?;
    }
    Ok(())
}

fn ask(order: &Order) -> Answer {
    let full_size = full_size();
    let next = Mutex::new(order.targets.iter().enumerate());
    let found = Mutex::new(vec![Vec::new(); order.targets.len()]);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(order.targets.len()) {
            scope.spawn(|| {
                loop {
                    let taken = next.lock().ok().and_then(|mut next| next.next());
                    let Some((at, target)) = taken else { break };
                    let checks = ask_one(order, target, full_size);
                    if let Ok(mut found) = found.lock()
                        && let Some(place) = found.get_mut(at)
                    {
                        *place = checks;
                    }
                }
            });
        }
    });
    Answer {
        full_size,
        own_service: own_service(order),
        found: found.into_inner().unwrap_or_default(),
    }
}

/// The MTU of the pod's device.
fn full_size() -> u32 {
    let devices = std::fs::read_dir("/sys/class/net").into_iter().flatten();
    let mtus = devices
        .flatten()
        .filter(|device| device.file_name() != "lo");
    let mtus = mtus.filter_map(|device| {
        let text = std::fs::read_to_string(device.path().join("mtu")).ok()?;
        text.trim().parse().ok()
    });
    mtus.min().unwrap_or(1280)
}

fn own_service(order: &Order) -> bool {
    order.own_services.iter().any(|ip| {
        let own = connection(String::new(), (*ip, PORT).into(), order);
        own.result == Outcome::Good
    })
}

fn ask_one(order: &Order, target: &Target, full_size: u32) -> Vec<Check> {
    let mut checks = Vec::new();
    if target.flow {
        let addresses = target.addresses.iter();
        let flows = addresses.map(|ip| {
            let name = format!("{} throughput", Family::of(ip));
            flow(name, (*ip, PORT).into(), order)
        });
        return flows.collect();
    }
    for ip in &target.addresses {
        let family = Family::of(ip);
        let to = SocketAddr::from((*ip, PORT));
        let ask = |len, count, unchecked| datagrams(to, &order.token, len, count, unchecked);
        let small = ask(SMALL, order.count, false);
        let unchecked = || family == Family::V4 && ask(SMALL, FULL, true).answered > 0;
        let text = if small.answered == 0 && unchecked() {
            "packets without a UDP checksum arrive, with one they do not: -tx-checksum-offload=off on the nodes"
        } else {
            "no probe was answered: flannelctl explain, on the node, names the step that is broken"
        };
        checks.push(Check::new(
            format!("{family} UDP"),
            &small,
            true,
            Some(text),
        ));
        let len = (full_size as usize).saturating_sub(headers(family));
        let full = ask(len.max(SMALL), FULL, false);
        let text = (small.answered > 0).then_some(
            "packets of full size are lost: large transfers hang; lower \"MTU\" in Backend, or raise that of the way",
        );
        checks.push(Check::new(format!("{family} full size"), &full, true, text));
        checks.push(connection(format!("{family} TCP"), to, order));
    }
    for ip in &target.services {
        let name = format!("{} service", Family::of(ip));
        checks.push(connection(name, (*ip, PORT).into(), order));
    }
    checks
}

/// Sends datagrams one by one, each after the answer to the one before, or a second.
fn datagrams(to: SocketAddr, token: &str, len: usize, count: u32, unchecked: bool) -> Tally {
    let mut tally = Tally::default();
    let family = Family::of(&to.ip());
    let local: IpAddr = match family {
        Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((local, 0)).and_then(|socket| {
        datagram::never_fragment(&socket, family)?;
        datagram::omit_checksum(&socket, unchecked)?;
        socket.connect(to)?;
        Ok(socket)
    });
    for n in 0..count {
        tally.sent += 1;
        let Ok(socket) = &socket else { continue };
        let mut datagram = token.as_bytes().to_vec();
        datagram.extend(n.to_be_bytes());
        datagram.extend(fastrand::u64(..).to_be_bytes());
        // Bytes that differ, so that one in the wrong place is noticed.
        datagram.extend((datagram.len()..len).map(|at| at as u8));
        let began = Instant::now();
        if socket.send(&datagram).is_err() {
            continue;
        }
        let mut buffer = vec![0; len.max(SMALL) + 1];
        while let Some(left) = PATIENCE.checked_sub(began.elapsed())
            && !left.is_zero()
        {
            let _ = socket.set_read_timeout(Some(left));
            match socket.recv(&mut buffer) {
                Ok(len) if buffer.get(..len) == Some(&datagram[..]) => {
                    let rtt = began.elapsed();
                    tally.answered += 1;
                    tally.least = Some(tally.least.map_or(rtt, |least| least.min(rtt)));
                    break;
                }
                // An answer that came late, or the port's refusal.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => break,
                Err(_) => {}
            }
        }
    }
    tally
}

/// Sends data through a connection, and expects them back.
fn connection(name: String, to: SocketAddr, order: &Order) -> Check {
    let began = Instant::now();
    let mut rtt = None;
    let mut exchange = || -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&to, CONNECTION)
            .with_context(|| format!("connect to {to}"))?;
        rtt = Some(began.elapsed());
        stream.set_read_timeout(Some(CONNECTION))?;
        stream.set_write_timeout(Some(CONNECTION))?;
        stream.write_all(format!("{}E", order.token).as_bytes())?;
        let sent: Vec<u8> = (0..ECHO).map(|at| (at ^ (at >> 8)) as u8).collect();
        let mut back = vec![0; ECHO];
        let mut writer = stream.try_clone()?;
        thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&sent));
            let read = stream.read_exact(&mut back);
            read.with_context(|| format!("{to}: {} kB there and back", ECHO >> 10))
        })?;
        if back != sent {
            bail!("{to}: other bytes come back than were sent");
        }
        Ok(())
    };
    let error = exchange().err();
    let answered = u32::from(error.is_none());
    Check {
        name,
        result: if error.is_none() {
            Outcome::Good
        } else {
            Outcome::Fail
        },
        sent: 1,
        answered,
        rtt_micros: rtt
            .filter(|_| error.is_none())
            .map(|rtt| rtt.as_micros() as u64),
        mbits: None,
        text: error.map(|error| format!("{error:#}")),
    }
}

/// Sends for some seconds as much as the way takes.
fn flow(name: String, to: SocketAddr, order: &Order) -> Check {
    let measure = || -> Result<u64> {
        let mut stream = TcpStream::connect_timeout(&to, CONNECTION)
            .with_context(|| format!("connect to {to}"))?;
        stream.set_read_timeout(Some(CONNECTION))?;
        stream.set_write_timeout(Some(CONNECTION))?;
        stream.write_all(format!("{}F", order.token).as_bytes())?;
        let data = vec![0x5a; 128 << 10];
        let began = Instant::now();
        while began.elapsed() < FLOW {
            stream
                .write_all(&data)
                .with_context(|| format!("{to}: data do not flow"))?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.set_read_timeout(Some(DRAIN))?;
        let mut count = [0; 8];
        let read = stream.read_exact(&mut count);
        read.with_context(|| format!("{to}: no count of what arrived"))?;
        let micros = (began.elapsed().as_micros() as u64).max(1);
        Ok(u64::from_be_bytes(count) * 8 / micros)
    };
    let (result, mbits, text) = match measure() {
        Ok(mbits) => (Outcome::Good, Some(mbits), None),
        Err(error) => (Outcome::Fail, None, Some(format!("{error:#}"))),
    };
    Check {
        name,
        result,
        sent: 1,
        answered: u32::from(mbits.is_some()),
        rtt_micros: None,
        mbits,
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The server and the client of one machine, at this port.
    #[test]
    fn a_client_finds_a_server_good_and_a_closed_port_lost() {
        let token = "0123456789abcdef";
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = udp.local_addr().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = tcp.local_addr().unwrap();
        thread::spawn(move || echo_datagrams(&udp, token.as_bytes()));
        thread::spawn(move || accept(&tcp, token));
        let tally = datagrams(to, token, 1000, 3, false);
        assert_eq!((tally.sent, tally.answered), (3, 3));
        assert_eq!(datagrams(to, token, SMALL, 1, true).answered, 1);
        // Of strangers nothing is echoed.
        assert_eq!(
            datagrams(to, "another-token---", SMALL, 1, false).answered,
            0
        );

        let order = |token: &str| Order {
            token: token.into(),
            count: 1,
            own_services: Vec::new(),
            targets: Vec::new(),
        };
        let good = connection("TCP".into(), at, &order(token));
        assert_eq!(good.result, Outcome::Good, "{good:?}");
        let flow = flow("flow".into(), at, &order(token));
        assert!(flow.mbits.is_some_and(|mbits| mbits > 1), "{flow:?}");
        let bad = connection("TCP".into(), at, &order("another-token---"));
        assert_eq!(bad.result, Outcome::Fail);
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = closed.local_addr().unwrap();
        drop(closed);
        let refused = connection("TCP".into(), gone, &order(token));
        assert!(refused.text.unwrap().contains(&gone.to_string()));
    }
}
