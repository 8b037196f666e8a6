//! What people do with the manifest: apply it, run pods, change the backend with `sed`, delete it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lab::{Flow, Kube, Lab, Pinger, wait_for};
use serde_json::{Value, json};

use crate::pods::{Pod, manifest, they_reach_each_other, they_reach_the_outside};
use crate::{SOON, cluster};

/// Between two pings, and between two bytes of a connection.
const TICK: Duration = Duration::from_millis(10);

const DAEMONS: &str = "/api/v1/namespaces/kube-flannel/pods";

/// The flannelds of the cluster, as the API has them.
fn daemons(kube: &Kube) -> Vec<Value> {
    let list = kube.api().get(DAEMONS).unwrap();
    list["items"].as_array().unwrap().clone()
}

/// Whether a pod's first container runs.
fn runs(pod: &Value) -> bool {
    pod.pointer("/status/containerStatuses/0/state/running")
        .is_some()
}

#[test]
fn applied_used_changed_and_deleted() {
    let Some(lab) = cluster("the manifest on three nodes", 3, |builder| builder) else {
        return;
    };
    let kube = lab.kube().unwrap();
    // Somebody else's, which nobody may touch.
    let others = "ip link add others0 type bridge && ip addr add 192.0.2.1/24 dev others0 && ip link set others0 up && \
        ip route add 198.51.100.0/24 via 192.168.78.254 && iptables -t nat -N OTHERS && \
        iptables -t nat -A POSTROUTING -s 192.0.2.0/24 -j OTHERS";
    for node in lab.nodes() {
        node.exec(["sh", "-c", others]).unwrap();
    }
    let before: Vec<_> = lab.nodes().iter().map(traces).collect();

    let pods = pods_are_ready_soon_after_the_manifest(&lab);
    every_node_says_so(kube);
    they_reach_each_other(&pods);
    they_reach_the_outside(&lab, &pods);
    a_host_port_leads_to_its_pod(&lab, &pods);
    a_rollout_loses_no_packet(&lab, &pods);
    the_backend_changes_under_a_connection(&lab, &pods);
    traffic_stays_when_the_manifest_is_deleted(&lab, &pods);
    cleanup_leaves_what_was_there_before(&lab, &before);
}

/// Pods made right after `kubectl apply` are Ready at most six seconds after the flannelds run.
fn pods_are_ready_soon_after_the_manifest(lab: &Lab) -> Vec<Pod> {
    let kube = lab.kube().unwrap();
    kube.apply(&manifest()).unwrap();
    let applied = Instant::now();
    for n in 1..=3 {
        let web = json!({"ports": [{"containerPort": 80, "hostPort": 8080}]});
        let command = ["httpd", "-f", "-v", "-p", "80"];
        kube.create_pod(&format!("web{n}"), &format!("n{n}"), &command, &web)
            .unwrap();
    }
    let mut running = None;
    let took = wait_for("three pods are Ready", SOON, || {
        let all = daemons(kube);
        if running.is_none() && all.len() == 3 && all.iter().all(runs) {
            running = Some(Instant::now());
        }
        let pods = kube.api().get("/api/v1/namespaces/default/pods").unwrap();
        let ready =
            |pod: &&Value| pod.pointer("/status/containerStatuses/0/ready") == Some(&json!(true));
        match pods["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(ready)
            .count()
        {
            3 => Ok(running.map_or(Duration::ZERO, |since| since.elapsed())),
            n => Err(format!("{n} of 3")),
        }
    });
    let took =
        took.unwrap_or_else(|e| panic!("{e}\n{}", kube.kubectl(["get", "events", "-A"]).unwrap()));
    eprintln!(
        "pods Ready {took:?} after the flannelds ran, {:?} after the manifest",
        applied.elapsed()
    );
    assert!(
        took <= Duration::from_secs(6),
        "{took:?} after the flannelds ran"
    );
    kube.wait_nodes_ready(SOON).unwrap();
    // Not one was tried before there was a network for it.
    let events = kube.kubectl(["get", "events", "-A"]).unwrap();
    assert!(!events.contains("FailedCreatePodSandBox"), "{events}");
    ["web1", "web2", "web3"]
        .map(|name| Pod::ready(lab, name))
        .into()
}

fn every_node_says_so(kube: &Kube) {
    for node in kube.nodes().unwrap() {
        let conditions = node["status"]["conditions"].as_array().unwrap();
        let network = conditions
            .iter()
            .find(|c| c["type"] == "NetworkUnavailable")
            .unwrap();
        assert_eq!(network["status"], "False", "{network}");
        assert_eq!(network["reason"], "FlannelIsUp");
        let annotations = &node["metadata"]["annotations"];
        assert_eq!(
            annotations["flannel.alpha.coreos.com/backend-type"],
            "vxlan"
        );
    }
    // With the rights that the manifest gives, and no others.
    let requests = kube.requests().unwrap();
    assert!(requests.iter().any(|r| r.verb == "patch"), "{requests:?}");
    let refused: Vec<_> = requests.iter().filter(|r| r.forbidden()).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

/// From outside of the cluster, and from a pod on another node.
fn a_host_port_leads_to_its_pod(lab: &Lab, pods: &[Pod]) {
    let node = SocketAddr::from((lab.node(2).ipv4(), 8080));
    for from in [lab.fabric(), &pods[0].place] {
        let get = || -> io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&node, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        let answer = from.run(get).unwrap();
        let answer = answer.unwrap_or_else(|e| panic!("{}: {e}", from.name()));
        // There is no page; but it is httpd that says so.
        assert!(answer.contains("404"), "{}: {answer}", from.name());
    }
}

/// As every new version does it. The data path stays where it is meanwhile.
fn a_rollout_loses_no_packet(lab: &Lab, pods: &[Pod]) {
    let pings = Pinger::start(&pods[0].place, pods[1].ips[0], TICK).unwrap();
    let before = daemon_names(lab);
    roll_out(lab);
    let after = daemon_names(lab);
    assert!(
        after.iter().all(|name| !before.contains(name)),
        "{before:?} {after:?}"
    );
    let pings = pings.stop();
    assert!(pings.lost == 0 && pings.sent > 100, "{pings:?}");
}

/// As the guides do it: `sed 's/vxlan/host-gw/' -i kube-flannel.yml`. While one node has changed and another has not, the
/// two skip each other; connections last over that.
fn the_backend_changes_under_a_connection(lab: &Lab, pods: &[Pod]) {
    let file = lab.shared_dir().join("kube-flannel.yml");
    fs::write(&file, manifest()).unwrap();
    let sed = ["sed", "s/vxlan/host-gw/", "-i", "/run/lab/kube-flannel.yml"];
    lab.fabric().exec(sed).unwrap();

    let pings = Pinger::start(&pods[0].place, pods[1].ips[0], TICK).unwrap();
    let flow = Flow::start(&pods[0].place, &pods[2].place, pods[2].ips[0], TICK).unwrap();
    let apply = ["apply", "-f", "/run/lab/kube-flannel.yml"];
    lab.kube().unwrap().kubectl(apply).unwrap();
    roll_out(lab);
    for node in lab.nodes() {
        wait_for("routes as of host-gw", SOON, || {
            let routes = node.exec(["ip", "route"]).unwrap();
            let others = lab.nodes().iter().filter(|o| o.index() != node.index());
            let gateways: Vec<_> = others
                .map(|o| format!("via {} dev eth0", o.ipv4()))
                .collect();
            match gateways.iter().all(|via| routes.contains(via)) && !routes.contains("flannel.1") {
                true => Ok(()),
                false => Err(format!("{}:\n{routes}", node.name())),
            }
        })
        .unwrap();
    }
    they_reach_each_other(pods);
    let (pings, flow) = (pings.stop(), flow.stop());
    eprintln!("vxlan to host-gw, node by node: {pings:?} {flow:?}");
    assert!(flow.broken.is_none(), "{flow:?}");
    assert!(pings.lost < pings.sent, "{pings:?}");
}

/// Starts every flanneld anew, one after the other, and waits for the last.
fn roll_out(lab: &Lab) {
    let kube = lab.kube().unwrap();
    let rollout = |what: &[&str]| {
        let words = ["-n", "kube-flannel", "rollout"];
        kube.kubectl(words.iter().chain(what))
    };
    rollout(&["restart", "daemonset/kube-flannel-ds"]).unwrap();
    rollout(&["status", "--timeout=120s", "daemonset/kube-flannel-ds"]).unwrap_or_else(|e| {
        let pods = kube.kubectl(["get", "pods", "-A", "-o", "wide"]).unwrap();
        panic!("{e}\n{pods}")
    });
}

fn daemon_names(lab: &Lab) -> Vec<String> {
    let names = daemons(lab.kube().unwrap()).into_iter();
    let names = names.filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none());
    names
        .map(|pod| pod["metadata"]["name"].to_string())
        .collect()
}

fn traffic_stays_when_the_manifest_is_deleted(lab: &Lab, pods: &[Pod]) {
    let kube = lab.kube().unwrap();
    let pings = Pinger::start(&pods[0].place, pods[1].ips[0], TICK).unwrap();
    kube.kubectl(["delete", "-f", "/run/lab/kube-flannel.yml", "--timeout=90s"])
        .unwrap();
    assert!(daemons(kube).is_empty());
    they_reach_each_other(pods);
    let pings = pings.stop();
    assert_eq!(pings.lost, 0, "{pings:?}");
}

fn cleanup_leaves_what_was_there_before(lab: &Lab, before: &[Vec<String>]) {
    let kube = lab.kube().unwrap();
    for n in 1..=3 {
        kube.delete_pod(&format!("web{n}")).unwrap();
    }
    for (node, before) in lab.nodes().iter().zip(before) {
        wait_for("the pods' cables are gone", SOON, || {
            let links = node
                .exec(["ip", "-br", "link", "show", "type", "veth"])
                .unwrap();
            match links
                .lines()
                .filter(|line| line.starts_with("veth"))
                .count()
            {
                0 => Ok(()),
                _ => Err(links),
            }
        })
        .unwrap();
        node.exec(["flannelctl", "cleanup", "--yes"]).unwrap();
        let after = traces(node);
        let left: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
        let lost: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
        assert!(
            left.is_empty() && lost.is_empty(),
            "left: {left:#?}\nlost: {lost:#?}"
        );
    }
}

/// All that a network can leave on a node: links, addresses, routes, rules, and files. Not what others leave: kubelet,
/// the plugins portmap and host-local, libcni; nor the plugin itself, which is a program.
fn traces(node: &lab::Node) -> Vec<String> {
    let mut all: Vec<String> = node.picture().unwrap().lines().map(String::from).collect();
    for save in ["iptables-save", "ip6tables-save"] {
        let rules = node.exec([save]).unwrap();
        let rules = rules
            .lines()
            .filter(|line| line.starts_with("-A") || line.starts_with(":"));
        let rules = rules.filter(|line| !line.contains("KUBE-") && !line.contains("CNI-HOSTPORT-"));
        // Without counters.
        all.extend(rules.map(|line| line.split(" [").next().unwrap_or(line).to_string()));
    }
    let places = [
        "/etc/cni",
        "/opt/cni/bin",
        "/run/flannel",
        "/var/lib/cni/flannel",
    ];
    let found = node.output(["find"].iter().chain(&places)).unwrap();
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    all.extend(
        found
            .lines()
            .filter(|file| *file != "/opt/cni/bin/flannel")
            .map(String::from),
    );
    all
}
