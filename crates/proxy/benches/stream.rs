//! How fast two nodes talk through the proxy, alongside the kernel's vxlan: `cargo bench -p proxy`, or
//! `cargo bench -p proxy -- wireguard` for one of `vxlan`, `plain`, `wireguard`. Needs root and `iperf3`.

#![allow(unsafe_code, reason = "getrusage")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for a person to run"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lab::{Lab, Namespace};
use proxy::{Config, Peer, Proxy, Secret, Table, Wireguard};

const PORT: u16 = 8285;

#[derive(Clone, Copy, PartialEq)]
enum Tunnel {
    Vxlan,
    Plain,
    Wireguard,
}

fn main() {
    lab::become_root().unwrap();
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let any = wanted.iter().all(|argument| argument.starts_with('-'));
    for (name, tunnel) in [
        ("vxlan", Tunnel::Vxlan),
        ("plain", Tunnel::Plain),
        ("wireguard", Tunnel::Wireguard),
    ] {
        if any || wanted.iter().any(|argument| argument == name) {
            println!("\n{name}");
            run(tunnel);
        }
    }
}

fn run(tunnel: Tunnel) {
    let lab = Lab::builder()
        .nodes(2)
        .pods_per_node(0)
        .without_flanneld()
        .build()
        .unwrap();
    let proxies = match tunnel {
        Tunnel::Vxlan => {
            vxlan(&lab);
            Vec::new()
        }
        Tunnel::Plain => proxies(&lab, None),
        Tunnel::Wireguard => proxies(&lab, Some([1, 2].map(|n| Secret([n; 32])))),
    };
    let (one, two) = (lab.node(1), lab.node(2));
    while proxies.iter().any(|proxy| proxy.problem().is_some()) {
        std::thread::yield_now();
    }
    // A device that has got its carrier just now drops packets for some moments.
    let answers = || one.exec(["ping", "-c", "1", "-W", "1", "10.99.2.1"]);
    lab::wait_for("10.99.2.1 answers", Duration::from_secs(60), answers).unwrap();
    println!("| work | result | processor time, proxies and iperf3 |\n|---|---|---|");
    let server = |args: &[&str]| {
        let mut command = std::process::Command::new("iperf3");
        command.args(["-s", "-1", "-B", "10.99.2.1"]).args(args);
        command.stdout(std::process::Stdio::null());
        let child = two.spawn(&mut command).unwrap();
        let listening = || {
            two.exec(["ss", "-Hltn", "sport = :5201"])
                .unwrap()
                .contains("5201")
        };
        while !listening() {}
        child
    };
    for (what, args) in [
        ("one TCP stream", &["-t", "5"][..]),
        ("four TCP streams", &["-t", "5", "-P", "4"]),
        ("one TCP stream, reversed", &["-t", "5", "-R"]),
    ] {
        let mut server = server(&[]);
        let fixed = ["iperf3", "-c", "10.99.2.1", "-f", "g"];
        let before = processor_time();
        let said = one.exec(fixed.iter().chain(args)).unwrap();
        server.wait().unwrap();
        let after = processor_time();
        let line = said
            .lines()
            .rev()
            .find(|line| line.contains("receiver"))
            .unwrap_or("?");
        let used = [after.0 - before.0, after.1 - before.1];
        println!(
            "| {what} | {} | {:.2} s, {:.2} s |",
            line.trim(),
            used[0],
            used[1]
        );
    }
    println!(
        "| small UDP packets, one at a time | {:.0} a second | |",
        round_trips(one, two)
    );
    for proxy in &proxies {
        println!("{:?}", proxy.statistics());
    }
}

/// Two nodes whose packets the kernel carries.
fn vxlan(lab: &Lab) {
    for n in 1..=2 {
        let other = 3 - n;
        let (here, there) = (lab.node(n).ipv4(), lab.node(other).ipv4());
        ip(
            lab.node(n),
            &[
                format!(
                    "link add flannel0 type vxlan id 1 dstport 8472 local {here} remote {there}"
                ),
                format!("address add 10.99.{n}.1/16 dev flannel0"),
                "link set flannel0 up".into(),
            ],
        );
    }
}

/// Two nodes whose packets a proxy carries.
fn proxies(lab: &Lab, keys: Option<[Secret; 2]>) -> Vec<Proxy> {
    let queues = std::thread::available_parallelism().map_or(1, usize::from);
    let at = |n: usize| SocketAddr::from((lab.node(n).ipv4(), PORT));
    let mtu = if keys.is_some() { 1420 } else { 1472 };
    let start = |n: usize| {
        let node = lab.node(n);
        device(node, n, mtu);
        let other = 3 - n;
        let net = format!("10.99.{other}.0/24").parse().unwrap();
        let config = Config {
            device: "flannel0".into(),
            listen: at(n),
            mtu,
            wireguard: keys.map(|keys| Wireguard {
                private_key: keys[n - 1],
                preshared_key: None,
                keepalive: None,
            }),
            queues,
        };
        let proxy = node.run(|| Proxy::start(config)).unwrap().unwrap();
        match keys {
            Some(keys) => proxy.set_peers(&[Peer {
                public_key: keys[other - 1].public_key(),
                endpoint: Some(at(other)),
                allowed: vec![net],
            }]),
            None => proxy.set_table(Table::new([(net, at(other))])),
        }
        proxy
    };
    (1..=2).map(start).collect()
}

/// The processor time of this process and of its children, in seconds: on a machine that does other things
/// too, it says more than the rate.
fn processor_time() -> (f64, f64) {
    let of = |who| {
        // SAFETY: a structure of plain numbers that outlives the call.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(who, &mut usage);
            usage
        };
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        seconds(usage.ru_utime) + seconds(usage.ru_stime)
    };
    (of(libc::RUSAGE_SELF), of(libc::RUSAGE_CHILDREN))
}

fn device(node: &Namespace, n: usize, mtu: usize) {
    let address = format!("10.99.{n}.1/32");
    let source = format!("10.99.{n}.1");
    ip(
        node,
        &[
            "tuntap add dev flannel0 mode tun multi_queue".into(),
            format!("address add {address} dev flannel0"),
            format!("link set flannel0 mtu {mtu} up"),
            format!("route add 10.99.0.0/16 dev flannel0 src {source}"),
        ],
    );
}

fn ip(node: &Namespace, commands: &[String]) {
    for command in commands {
        node.exec(["ip"].into_iter().chain(command.split(' ')))
            .unwrap();
    }
}

/// Sends a small datagram and waits for its echo, for two seconds; returns how many a second.
fn round_trips(one: &Namespace, two: &Namespace) -> f64 {
    let bind = |node: &Namespace, ip: &str| {
        let at: SocketAddr = format!("{ip}:7777").parse().unwrap();
        let socket = node.run(|| std::net::UdpSocket::bind(at)).unwrap().unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        socket
    };
    let (near, far) = (bind(one, "10.99.1.1"), bind(two, "10.99.2.1"));
    near.connect("10.99.2.1:7777").unwrap();
    let time = Duration::from_secs(2);
    let begin = Instant::now();
    let mut trips = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while begin.elapsed() < time {
                if let Ok((len, from)) = far.recv_from(&mut buffer) {
                    far.send_to(&buffer[..len], from).unwrap();
                }
            }
        });
        let mut buffer = [0; 64];
        while begin.elapsed() < time {
            near.send(&[1; 32]).unwrap();
            trips += usize::from(near.recv(&mut buffer).is_ok());
        }
    });
    trips as f64 / begin.elapsed().as_secs_f64()
}
