//! Connections and new packets while rules are written again and again.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::world::{ALL, By, FLAGS, Kept, Site, in_namespace, rules, sh};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

#[test]
fn an_established_connection_survives_restarts_repairs_and_switches() {
    in_namespace(|| async {
        let site = Site::new();
        // As on every host, there are other rules that look at connections; without any, the kernel
        // stops following them as soon as ours are gone.
        sh(
            "nft 'add table inet x; add chain inet x c { type filter hook forward priority 0; }; add rule inet x c ct state new accept'",
        );
        let mut kept = Kept::new(By::IptablesNft, rules(FLAGS));
        kept.ensure().await;
        let listener = site
            .outside
            .run(|| TcpListener::bind((OUTSIDE, 7001)).unwrap());
        let mut near = site
            .pod
            .run(|| TcpStream::connect((OUTSIDE, 7001)).unwrap());
        let (mut far, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), NODE);
        for stream in [&near, &far] {
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
        }
        let mut talk = |when: &str| {
            let mut buffer = [0; 5];
            near.write_all(b"hello").unwrap();
            far.read_exact(&mut buffer)
                .unwrap_or_else(|e| panic!("{when}: {e}"));
            far.write_all(b"world").unwrap();
            near.read_exact(&mut buffer)
                .unwrap_or_else(|e| panic!("{when}: {e}"));
        };
        talk("before anything");
        for to in [
            By::IptablesNft,
            By::IptablesLegacy,
            By::Nftables,
            By::IptablesNft,
        ] {
            kept = Kept::new(to, rules(FLAGS));
            kept.ensure().await;
            talk(&format!("after a switch to {to:?}"));
            match to {
                // Not the table itself: without any chain of NAT, the kernel translates nothing.
                By::Nftables => sh("nft flush table ip flannel-ipv4"),
                _ => sh(&format!("iptables{} -t nat -F", to.suffix())),
            };
            talk(&format!("without rules, {to:?}"));
            kept.ensure().await;
            talk("after a repair");
        }
    });
}

/// Sends packets from the pod, each from a new port and so a new flow, until told to stop; returns
/// how many.
// The pace of the sender, no wait for anything.
#[allow(clippy::disallowed_methods)]
fn send_on(site: &Site, stop: &AtomicBool) -> usize {
    site.pod.run(|| {
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            let near = UdpSocket::bind("10.1.5.2:0").unwrap();
            near.send_to(b"?", (OUTSIDE, 7002)).unwrap();
            sent += 1;
            std::thread::sleep(Duration::from_micros(300));
        }
        sent
    })
}

/// Receives until nothing comes any more; returns how many came, and how many of them not from the
/// node's address.
fn receive_on(far: &UdpSocket) -> (usize, usize) {
    let (mut buffer, mut seen, mut slipped) = ([0; 8], 0, 0);
    while let Ok((_, source)) = far.recv_from(&mut buffer) {
        seen += 1;
        slipped += usize::from(source.ip() != NODE);
    }
    (seen, slipped)
}

#[test]
fn no_packet_slips_through_while_rules_are_replaced() {
    for by in ALL {
        in_namespace(move || async move {
            let site = Arc::new(Site::new());
            let mut kept = Kept::new(by, rules(FLAGS));
            kept.ensure().await;
            let far = site
                .outside
                .run(|| UdpSocket::bind((OUTSIDE, 7002)).unwrap());
            far.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let stop = Arc::new(AtomicBool::new(false));
            let sender = {
                let (site, stop) = (site.clone(), stop.clone());
                std::thread::spawn(move || send_on(&site, &stop))
            };
            let receiver = std::thread::spawn(move || receive_on(&far));
            for _ in 0..15 {
                match by {
                    By::Nftables => {
                        sh("nft add rule ip flannel-ipv4 postrtg ip saddr 10.1.5.9 accept")
                    }
                    _ => sh(&format!(
                        "iptables{} -t nat -A FLANNEL-POSTRTG -s 10.1.5.9 -j ACCEPT",
                        by.suffix()
                    )),
                };
                assert_eq!(kept.ensure().await.written.len(), 1, "{by:?}");
            }
            stop.store(true, Ordering::Relaxed);
            let sent = sender.join().unwrap();
            let (seen, slipped) = receiver.join().unwrap();
            assert!(
                seen > sent / 2 && seen > 100,
                "{by:?}: {seen} of {sent} arrived"
            );
            assert_eq!(slipped, 0, "{by:?}: of {seen} packets");
        });
    }
}
