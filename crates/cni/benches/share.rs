//! The plugin's own share of ADD: with a delegate that only answers, less that delegate alone.
//!
//! The two are run in turn, so that what else happens on the machine meets both alike, and the medians of
//! their times are compared. `cargo bench -p cni --target x86_64-unknown-linux-musl`, which is how it is shipped;
//! `CNI_ROUNDS` sets how many (200). On a busy machine: `chrt -f 50` before the program that cargo names.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ENV: &str = "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.80.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const DELEGATE: &str = "#!/bin/sh\necho '{\"cniVersion\":\"1.0.0\",\"ips\":[]}'\n";

fn main() {
    let rounds: usize = std::env::var("CNI_ROUNDS").map_or(200, |text| text.parse().unwrap());
    // On tmpfs, as /run is; the saved files' directory beside it.
    let dir = tempfile::Builder::new()
        .prefix("cni-bench-")
        .tempdir_in("/dev/shm")
        .unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("subnet.env"), ENV).unwrap();
    fs::write(at("bridge"), DELEGATE).unwrap();
    fs::set_permissions(at("bridge"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(
        at("stdin"),
        format!(
            r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","subnetFile":"{}","dataDir":"{}","delegate":{{"hairpinMode":true,"isDefaultGateway":true}}}}"#,
            at("subnet.env").display(),
            at("data").display()
        ),
    )
    .unwrap();

    let run = |program: &Path, round: usize| -> Duration {
        let stdin = fs::File::open(at("stdin")).unwrap();
        let begin = Instant::now();
        let output = Command::new(program)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", format!("c{round}"))
            .env("CNI_NETNS", "/proc/self/ns/net")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", dir.path())
            .stdin(stdin)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let took = begin.elapsed();
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "{output:?}"
        );
        took
    };
    let flannel = Path::new(env!("CARGO_BIN_EXE_flannel"));
    let delegate = at("bridge");
    let (mut with, mut alone) = (Vec::new(), Vec::new());
    for round in 0..rounds + 10 {
        let pair = (run(flannel, round), run(&delegate, round));
        // The first rounds fill caches.
        if round >= 10 {
            with.push(pair.0);
            alone.push(pair.1);
        }
    }
    with.sort();
    alone.sort();
    let middle = |times: &[Duration]| times[times.len() / 2].as_secs_f64() * 1e3;
    println!(
        "ADD, median of {rounds}: {:.2} ms, the delegate alone {:.2} ms, own share {:.2} ms (at most 1, aim 0.5)",
        middle(&with),
        middle(&alone),
        middle(&with) - middle(&alone)
    );
}
