//! The Ansible role, run by the real `ansible-playbook` from the example's own playbook, on machines
//! with systemd, an etcd with mutual TLS, and the CNI plugins of Debian.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod control;
mod defaults;
mod site;

use std::time::Duration;

use lab::Machine;
use serde_json::{Value, json};

use site::{Play, Site};

const SOON: Duration = Duration::from_secs(20);

/// One story, for every machine and every play takes its time.
#[test]
fn a_site_from_nothing_to_a_changed_setting() {
    if !lab::real_root_for("the Ansible role on machines with systemd") {
        return;
    }
    let mut site = Site::build();

    site.play(&["--check"]).must_succeed();
    for machine in &site.machines[..1] {
        for path in [
            "/usr/local/sbin/flanneld",
            "/etc/flannel",
            "/var/lib/kubernetes",
        ] {
            assert!(machine.read(path).is_err(), "--check made {path}");
        }
    }
    assert!(
        site.etcd()
            .ctl(&["get", "--prefix", "/"])
            .unwrap()
            .is_empty()
    );

    site.play(&[]).must_succeed();
    installed_as_the_variables_say(&site);
    let addresses: Vec<String> = site.machines.iter().map(pod).collect();
    site.pods_reach_each_other(&addresses);

    let again = site.play(&[]);
    again.must_succeed();
    assert_eq!(again.changed(), [0, 0], "{}", again.output);

    only_what_changed_is_restarted(&mut site);
    site.pods_reach_each_other(&addresses);

    what_is_wrong_is_told(&site);
    site.pods_reach_each_other(&addresses);
}

fn installed_as_the_variables_say(site: &Site) {
    let config = site.etcd().ctl(&[
        "get",
        "--print-value-only",
        "/kubernetes-cluster/network/config",
    ]);
    let config: Value = serde_json::from_str(&config.unwrap()).unwrap();
    assert_eq!(
        config,
        json!({"Network": "10.200.0.0/16", "Backend": {"Type": "vxlan"}})
    );
    assert_eq!(site.lab.leases().unwrap().len(), 2);

    for (machine, node) in site.machines.iter().zip(site.lab.nodes()) {
        let show = |property: &str| property_of(machine, property);
        assert_eq!(show("ActiveState"), "active");
        assert_eq!(show("UnitFileState"), "enabled");
        assert_eq!(show("RestartUSec"), "5s");
        assert_eq!(show("LimitNOFILE"), "40000");
        assert_eq!(show("LimitNPROC"), "1048576");
        let ours = machine.exec(["/usr/local/sbin/flanneld", "-version"]);
        assert!(ours.unwrap().contains("flannel-rs"));
        assert!(show("ExecStartPre").contains("/bin/mkdir -p /run/flannel"));
        assert_eq!(show("ExecStartPost"), "");
        assert_eq!(show("CapabilityBoundingSet"), "cap_net_admin cap_net_raw");

        let environment = machine
            .read(&format!("/proc/{}/environ", show("MainPID")))
            .unwrap();
        let given: Vec<&str> = environment
            .split('\0')
            .filter(|v| v.starts_with("FLANNELD_"))
            .collect();
        let public_ip = format!("FLANNELD_PUBLIC_IP={}", node.ipv4());
        let mut wanted = vec![
            "FLANNELD_ETCD_CAFILE=/var/lib/kubernetes/ca-etcd.pem",
            "FLANNELD_ETCD_CERTFILE=/var/lib/kubernetes/cert-etcd.pem",
            "FLANNELD_ETCD_ENDPOINTS=https://192.168.78.254:2379",
            "FLANNELD_ETCD_KEYFILE=/var/lib/kubernetes/cert-etcd-key.pem",
            "FLANNELD_ETCD_PREFIX=/kubernetes-cluster/network",
            "FLANNELD_HEALTHZ_IP=0.0.0.0",
            "FLANNELD_HEALTHZ_PORT=0",
            "FLANNELD_IFACE=eth0",
            "FLANNELD_IP_MASQ=true",
            &public_ip,
            "FLANNELD_SUBNET_FILE=/run/flannel/subnet.env",
        ];
        wanted.sort_unstable();
        assert_eq!(sorted(given), wanted);

        let subnet = machine.read("/run/flannel/subnet.env").unwrap();
        assert!(subnet.contains("FLANNEL_NETWORK=10.200.0.0/16"), "{subnet}");
        assert!(subnet.contains("FLANNEL_IPMASQ=true"), "{subnet}");
        let listening = machine.exec(["ss", "-Hltnp"]).unwrap();
        assert!(
            !listening.contains("flanneld"),
            "healthz-port 0 is off: {listening}"
        );

        let modes = "cd /var/lib/kubernetes; stat -c '%n %a %U' *; stat -c '%n %a %U' /etc/flannel/flanneld.env";
        assert_eq!(
            machine.exec(["sh", "-c", modes]).unwrap(),
            "ca-etcd-key.pem 400 root\nca-etcd.pem 644 root\ncert-etcd-key.pem 400 root\ncert-etcd.pem 644 root\n\
             /etc/flannel/flanneld.env 600 root\n"
        );
        assert_eq!(conflist(machine)["cniVersion"], "1.0.0");
    }
}

/// A container's network, made by the configuration that the role wrote: with the real plugins, and
/// port 8080 of the host led to it. Returns its address.
fn pod(machine: &Machine) -> String {
    machine.exec(["ip", "netns", "add", "pod"]).unwrap();
    let ports = r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#;
    let add = format!(
        "CNI_PATH=/opt/cni/bin NETCONFPATH=/etc/cni/net.d CAP_ARGS='{ports}' cnitool add cni0 /run/netns/pod"
    );
    let result = machine.exec(["sh", "-c", &add]).unwrap();
    let result: Value = serde_json::from_str(&result).unwrap();
    assert_eq!(result["cniVersion"], "1.0.0");
    let rules = machine.exec(["iptables", "-t", "nat", "-S"]).unwrap();
    assert!(
        rules.contains("--dport 8080"),
        "portmap did not run: {rules}"
    );
    let address = result["ips"][0]["address"].as_str().unwrap();
    let subnet = machine.read("/run/flannel/subnet.env").unwrap();
    let (ip, _) = address.split_once('/').unwrap();
    let network = ip.rsplit_once('.').unwrap().0;
    assert!(
        subnet.contains(&format!("FLANNEL_SUBNET={network}.1/24")),
        "{address} is not of {subnet}"
    );
    ip.to_owned()
}

fn only_what_changed_is_restarted(site: &mut Site) {
    let before: Vec<String> = site.machines.iter().map(main_pid).collect();
    site.set(
        "n1",
        json!({
            "flannel_settings_user": {
                "healthz-ip": "127.0.0.1", "healthz-port": 8285,
                "kubeconfig-file": "/etc/k8s/k8s.cfg", "ip-masq": false,
            },
            "flannel_systemd_execstartpost": "/sbin/ethtool -K flannel.1 tx off",
        }),
    );
    site.set("n2", json!({"flannel_cni_spec_version": "1.0.0"}));
    let [n1, n2] = &site.machines[..] else {
        panic!()
    };
    let offload = || n1.exec(["ethtool", "-k", "flannel.1"]).unwrap();
    assert!(offload().contains("tx-checksumming: on"), "{}", offload());

    let preview = site.play(&["--check", "--diff", "--limit", "n1"]);
    preview.must_succeed();
    let line = "+FLANNELD_IP_MASQ=\"false\"";
    assert!(preview.output.contains(line), "{}", preview.output);
    assert_eq!(main_pid(n1), before[0]);

    let changed = site.play(&[]);
    changed.must_succeed();
    assert_ne!(main_pid(n1), before[0], "{}", changed.output);
    assert_eq!(main_pid(n2), before[1], "{}", changed.output);
    assert_eq!(conflist(n2)["cniVersion"], "1.0.0");
    assert_eq!(conflist(n1)["cniVersion"], "1.0.0");

    assert!(offload().contains("tx-checksumming: off"), "{}", offload());
    assert!(
        n1.read("/run/flannel/subnet.env")
            .unwrap()
            .contains("FLANNEL_IPMASQ=false")
    );
    let health = n1.exec([
        "python3",
        "-c",
        "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8285/readyz').status)",
    ]);
    assert_eq!(health.unwrap(), "200\n");
    let environment = n1.read(&format!("/proc/{}/environ", main_pid(n1))).unwrap();
    assert!(environment.contains("FLANNELD_KUBECONFIG_FILE=/etc/k8s/k8s.cfg"));
}

fn what_is_wrong_is_told(site: &Site) {
    let [n1, n2] = &site.machines[..] else {
        panic!()
    };
    let before = [main_pid(n1), main_pid(n2)];
    let set = |key: &str, value: Value| json!({key: value}).to_string();
    let told = |extra: &str, words: &[&str]| {
        let play = site.play(&["--limit", "n2", "--extra-vars", extra]);
        assert!(!play.succeeded, "{extra} was taken:\n{}", play.output);
        for word in words {
            assert!(
                play.output.contains(word),
                "{extra}: no {word} in\n{}",
                play.output
            );
        }
    };
    told(
        &set("flannel_ip_range", json!("10.201.0.0/16")),
        &["etcd holds another network config", "10.200.0.0/16"],
    );
    told(
        &set("flannel_settings_user", json!({"etcd-prefx": "/x"})),
        &["etcd-prefx"],
    );
    assert_eq!([main_pid(n1), main_pid(n2)], before);

    // A value that only flanneld knows to be wrong: it is down after that, and the network is not.
    told(
        &set(
            "flannel_settings_user",
            json!({"subnet-lease-renew-margin": 0}),
        ),
        &["flanneld is not ready on n2", "minutes from 1 to 1439"],
    );
    assert_eq!(property_of(n2, "ActiveState"), "failed");
}

fn conflist(machine: &Machine) -> Value {
    serde_json::from_str(&machine.read("/etc/cni/net.d/10-flannel.conflist").unwrap()).unwrap()
}

fn main_pid(machine: &Machine) -> String {
    property_of(machine, "MainPID")
}

fn property_of(machine: &Machine, property: &str) -> String {
    let shown = machine.exec([
        "systemctl",
        "show",
        "flanneld",
        "--value",
        "--property",
        property,
    ]);
    shown.unwrap().trim().to_owned()
}

fn sorted(mut words: Vec<&str>) -> Vec<&str> {
    words.sort_unstable();
    words
}

/// What a play said, and how it ended.
impl Play {
    fn must_succeed(&self) {
        assert!(self.succeeded, "{}", self.output);
    }
}
