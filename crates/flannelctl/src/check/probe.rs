//! Do checksums survive the way to another node, and the way back? Two probes tell: one whose
//! checksum is left to the devices, as that of all traffic is, and one that carries its checksum
//! ready made. If only the second is heard, the devices get it wrong. The other side answers in
//! both ways, too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use model::IfName;
use socket2::{Domain, Protocol, Socket, Type};

use super::checksum::{Tally, UDP, Watch, of_segment};
use super::report::Report;

pub(crate) const ABOUT: &str = "checksums";
/// What to do on a node whose checksums arrive broken.
pub(crate) const CURE: &str = "\"TxChecksumOffload\": \"off\" in Backend (flannelctl config set) and restart flanneld on \
     every node, or -tx-checksum-offload=off for that node's flanneld; at once and until \
     the next restart: ethtool -K flannel.1 tx off";

const GREETING: &[u8] = b"flannel checksum probe 1 ";
const TRIES: u8 = 4;
const PATIENCE: Duration = Duration::from_millis(400);

/// Who makes a packet's checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Maker {
    /// The devices, or the kernel before them.
    Devices,
    /// This program.
    Program,
}

impl Maker {
    const BOTH: [Maker; 2] = [Maker::Devices, Maker::Program];

    fn letter(self) -> u8 {
        match self {
            Maker::Devices => b'd',
            Maker::Program => b'p',
        }
    }

    fn of_letter(letter: u8) -> Option<Maker> {
        Maker::BOTH
            .into_iter()
            .find(|maker| maker.letter() == letter)
    }
}

/// Sends `payload` from the port of `socket`, which is bound to an address of its own.
fn send(socket: &UdpSocket, to: SocketAddr, payload: &[u8], maker: Maker) -> io::Result<()> {
    if maker == Maker::Devices {
        return socket.send_to(payload, to).map(drop);
    }
    let from = socket.local_addr()?;
    let domain = if to.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let raw = Socket::new(domain, Type::RAW, Some(Protocol::UDP))?;
    raw.bind(&SocketAddr::new(from.ip(), 0).into())?;
    let mut segment = Vec::with_capacity(8 + payload.len());
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(((8 + payload.len()) as u16).to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(payload);
    let sum = match of_segment(from.ip(), to.ip(), UDP, &segment) {
        0 => 0xffff,
        sum => sum,
    };
    segment[6..8].copy_from_slice(&sum.to_be_bytes());
    raw.send_to(&segment, &SocketAddr::new(to.ip(), 0).into())
        .map(drop)
}

/// Receives until `deadline`; `None` when it has passed.
fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
    deadline: Instant,
) -> io::Result<Option<(usize, SocketAddr)>> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv_from(buffer) {
            Ok(got) => return Ok(Some(got)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(None);
            }
            // "Refused" answers something that was sent before.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::Interrupted | ErrorKind::ConnectionRefused
                ) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Probes the way from `from`, our address on `device`, to `to`, where somebody answers.
pub(crate) fn probe(
    report: &mut Report,
    device: &IfName,
    from: IpAddr,
    to: SocketAddr,
) -> io::Result<()> {
    let watch = Watch::on(device)?;
    let socket = UdpSocket::bind((from, 0))?;
    let nonce = std::process::id().to_be_bytes();
    // Which probes were heard, and by which answers.
    let mut heard: BTreeSet<(Maker, Maker)> = BTreeSet::new();
    let mut tallies = BTreeMap::new();
    for _ in 0..TRIES {
        for maker in Maker::BOTH {
            let payload = [GREETING, &nonce, &[maker.letter()]].concat();
            send(&socket, to, &payload, maker)?;
        }
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 512];
        while heard.len() < 4 {
            let Some((len, by)) = receive(&socket, &mut buffer, deadline)? else {
                break;
            };
            let answer = buffer[..len].strip_prefix(GREETING);
            if let Some([a, b, c, d, probe, answer]) = answer.filter(|_| by == to)
                && [*a, *b, *c, *d] == nonce
            {
                heard.extend(Maker::of_letter(*probe).zip(Maker::of_letter(*answer)));
            }
        }
        watch.count(&mut tallies);
        if heard.len() == 4 {
            break;
        }
    }
    tell(
        report,
        to,
        &heard,
        tallies.get(&to.ip()).copied().unwrap_or_default(),
    );
    Ok(())
}

fn tell(report: &mut Report, to: SocketAddr, heard: &BTreeSet<(Maker, Maker)>, tally: Tally) {
    let peer = to.ip();
    let asked = |maker| heard.iter().any(|(probe, _)| *probe == maker);
    let answered = |maker| heard.iter().any(|(_, answer)| *answer == maker);
    if heard.is_empty() && tally.bad == 0 {
        return report.fail(
            ABOUT,
            format!("nothing answers at {to}"),
            "run `flannelctl check --answer` there at the same time; is its UDP port let through, and \
             that of the tunnel between the nodes (8472)?",
        );
    }
    match (asked(Maker::Devices), asked(Maker::Program)) {
        (true, _) => report.ok(ABOUT, format!("what this node sends reaches {peer} with right checksums")),
        (false, true) => report.fail(
            ABOUT,
            format!(
                "what this node sends reaches {peer} with wrong checksums: the device beneath its tunnel does not make them"
            ),
            format!("on this node: {CURE}"),
        ),
        (false, false) => {}
    }
    match (answered(Maker::Devices), answered(Maker::Program)) {
        (true, _) => report.ok(
            ABOUT,
            format!("what {peer} sends arrives with right checksums"),
        ),
        (false, _) => report.fail(
            ABOUT,
            format!(
                "what {peer} sends arrives with wrong checksums ({} of {} packets)",
                tally.bad,
                tally.bad + tally.good
            ),
            format!("on that node: {CURE}"),
        ),
    }
}

/// Answers probes at `at`, our address on `device`, for a while. Tells what arrived.
pub(crate) fn answer(
    report: &mut Report,
    device: &IfName,
    at: SocketAddr,
    network: &ipnet::IpNet,
    time: Duration,
) -> io::Result<()> {
    let watch = Watch::on(device)?;
    let socket = UdpSocket::bind(at)?;
    let end = Instant::now() + time;
    let mut tallies = BTreeMap::new();
    let mut buffer = [0; 512];
    while Instant::now() < end {
        // A broken probe is not received, but it is counted: now and then.
        let deadline = end.min(Instant::now() + PATIENCE);
        let got = receive(&socket, &mut buffer, deadline)?;
        watch.count(&mut tallies);
        let Some((len, from)) = got else { continue };
        // Nobody outside the network gets anything out of us.
        let probe = buffer[..len].strip_prefix(GREETING);
        if probe.is_some_and(|rest| rest.len() == 5) && network.contains(&from.ip()) {
            for maker in Maker::BOTH {
                let payload = [&buffer[..len], &[maker.letter()]].concat();
                // Whoever asked is gone, perhaps.
                let _ = send(&socket, from, &payload, maker);
            }
        }
    }
    tell_tallies(report, &tallies);
    Ok(())
}

/// One line for each sender of wrong checksums, or one for all.
pub(crate) fn tell_tallies(report: &mut Report, tallies: &BTreeMap<IpAddr, Tally>) {
    let bad = tallies.iter().filter(|(_, tally)| tally.bad > 0);
    for (from, tally) in bad.clone() {
        report.fail(
            ABOUT,
            format!(
                "{} of {} packets from {from} arrived with wrong checksums",
                tally.bad,
                tally.bad + tally.good
            ),
            format!("on the node that sends them: {CURE}"),
        );
    }
    if bad.count() == 0 {
        let seen: u64 = tallies.values().map(|tally| tally.good).sum();
        report.ok(
            ABOUT,
            format!("no wrong checksum arrived ({seen} packets looked at)"),
        );
    }
}
