//! Beside the real upstream flanneld, and in its place: v0.28.9, built by `scripts/upstream`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use lab::{Error, Lab, Node, Process, StoreKind, wait_for};
use serde_json::json;

use crate::flow::Traffic;
use crate::scene::{self, SOON, lease_of, mesh};

/// Upstream waits for ten seconds before it looks at some things again; and in an emulated machine its calls of
/// iptables take a minute.
const UPSTREAM: Duration = Duration::from_secs(180);

/// The program, or `None` and a line that says what was not run.
pub fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/upstream");
        let output = Command::new(script).output().unwrap();
        if output.status.success() {
            return Some(PathBuf::from(
                String::from_utf8(output.stdout).unwrap().trim(),
            ));
        }
        let error = String::from_utf8_lossy(&output.stderr);
        lab::not_run(
            "beside the real upstream flanneld",
            &Error::Needs(error.into()),
        );
        None
    };
    PROGRAM.get_or_init(build).as_deref()
}

/// Starts upstream's daemon on `node`, with the arguments that ours would get.
pub fn start(lab: &Lab, node: &Node, program: &Path, args: &[&str]) -> Process {
    // It ends where the kernel lacks this; a kernel that has it built in, or cannot load it, needs nothing.
    drop(Command::new("modprobe").arg("br_netfilter").output());
    let mut command = Command::new(program);
    command
        .args(lab.etcd().unwrap().flanneld_args())
        .args(["-iface=eth0"])
        .args(args);
    static STARTS: AtomicUsize = AtomicUsize::new(0);
    let start = STARTS.fetch_add(1, Relaxed);
    let log = lab
        .shared_dir()
        .join(format!("log/{}-upstream-{start}", node.name()));
    let name = format!("upstream's flanneld on {}", node.name());
    let process = Process::start(&name, node, &mut command, &log).unwrap();
    wait_for(&format!("{name} is ready"), UPSTREAM, || {
        process.must_run().map_err(|e| e.to_string())?;
        let said = fs::read_to_string(&log).map_err(|e| e.to_string())?;
        match said.contains("Running backend") && said.contains("Wrote subnet file") {
            true => Ok(()),
            false => Err(said),
        }
    })
    .unwrap();
    process
}

fn lab(backend: &str, dual: bool) -> Lab {
    let builder = scene::lab()
        .nodes(3)
        .store(StoreKind::Etcd { tls: true })
        .backend(json!({ "Type": backend }));
    let builder = if dual { builder.dual() } else { builder };
    builder.build().unwrap()
}

const MASQ: [&str; 2] = ["-ip-masq", "-iptables-resync=1"];

#[test]
fn ours_and_upstream_s_are_one_network() {
    let Some(program) = program() else { return };
    for (backend, dual) in [("vxlan", false), ("vxlan", true), ("host-gw", true)] {
        let label = format!("{backend}, {}", if dual { "dual" } else { "IPv4" });
        let lab = lab(backend, dual);
        let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
        let _theirs = start(&lab, one, program, &["-ip-masq"]);
        two.flanneld().set_args(MASQ);
        two.flanneld().start_ready(SOON).unwrap();
        let late = start(&lab, three, program, &["-ip-masq"]);
        for node in lab.nodes() {
            node.add_pods(1).unwrap();
        }
        mesh(&lab);

        // Ours is restarted and killed: nobody notices.
        let traffic = Traffic::between(one, two);
        two.flanneld().stop().unwrap();
        two.flanneld().start_ready(SOON).unwrap();
        two.flanneld().kill9().unwrap();
        two.flanneld().start_ready(SOON).unwrap();
        traffic.all_arrived(&format!("mixed, {label}"));

        // One of theirs leaves for good: its key is deleted.
        let gone = three.subnet_env().unwrap();
        drop(late);
        lab.delete_lease(&lease_of(&lab, three).0).unwrap();
        for (_, subnet) in gone.subnet.iter() {
            let words = format!("route {}", subnet.trunc());
            wait_for(&format!("{label}: {words} is gone"), SOON, || {
                let picture = two.picture().map_err(|e| e.to_string())?;
                match picture.has(&[&words]) {
                    true => Err(picture.to_string()),
                    false => Ok(()),
                }
            })
            .unwrap();
        }
    }
}

/// No rule and no chain of flannel's stands twice, whoever wrote it.
fn rules_stand_once(node: &Node, label: &str) {
    let script = "iptables-save; ip6tables-save; nft list ruleset";
    let all = node.exec(["sh", "-c", script]).unwrap();
    assert!(all.to_lowercase().contains("flannel"), "{label}: {all}");
    for variant in ["iptables-save", "ip6tables-save"] {
        let text = node.exec([variant]).unwrap();
        let mut lines: Vec<&str> = text.lines().filter(|l| l.starts_with("-A")).collect();
        lines.sort_unstable();
        let twice = lines.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None, "{label}: {variant}:\n{text}");
    }
}

#[test]
fn ours_takes_upstream_s_place_and_gives_it_back_under_traffic() {
    let Some(program) = program() else { return };
    for (backend, nftables) in [("vxlan", false), ("vxlan", true), ("host-gw", false)] {
        let label = format!("{backend}{}", if nftables { ", nftables" } else { "" });
        let lab = scene::lab()
            .nodes(2)
            .dual()
            .store(StoreKind::Etcd { tls: true })
            .backend(json!({ "Type": backend }))
            .config("EnableNFTables", json!(nftables))
            .build()
            .unwrap();
        let (one, two) = (lab.node(1), lab.node(2));
        let theirs = start(&lab, one, program, &["-ip-masq"]);
        let _theirs = start(&lab, two, program, &["-ip-masq"]);
        one.add_pods(1).unwrap();
        two.add_pods(1).unwrap();
        mesh(&lab);
        let (env, lease) = (one.subnet_env().unwrap(), lease_of(&lab, one));

        let traffic = Traffic::between(one, two);
        theirs.kill9().unwrap();
        one.flanneld().set_args(MASQ);
        one.flanneld().start_ready(SOON).unwrap();
        traffic.all_arrived(&format!("ours in upstream's place, {label}"));
        // Upstream's MTU leaves no room for the outer IPv6 header; ours does.
        assert_eq!(one.subnet_env().unwrap().subnet, env.subnet, "{label}");
        rules_stand_once(one, &label);
        let now = lease_of(&lab, one);
        assert_eq!(
            (&now.0, &now.1["BackendData"]),
            (&lease.0, &lease.1["BackendData"])
        );
        mesh(&lab);

        // And back: whoever is not content must be able to return.
        let traffic = Traffic::between(one, two);
        one.flanneld().stop().unwrap();
        let theirs = start(&lab, one, program, &["-ip-masq"]);
        traffic.all_arrived(&format!("upstream's in our place, {label}"));
        assert_eq!(one.subnet_env().unwrap(), env, "{label}");
        assert_eq!(lease_of(&lab, one).0, lease.0, "{label}");
        mesh(&lab);
        drop(theirs);
    }
}
