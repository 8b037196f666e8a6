//! `/metrics` as Prometheus and its tools read it, and the alerts that follow from it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lab::{Lab, Node, Process, StoreKind, wait_for};
use model::Family;
use serde_json::Value;

use crate::scene::{self, SOON, mesh};

fn root(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(file)
}

/// Name and type of each metric that a daemon has.
fn types(metrics: &str) -> BTreeMap<String, String> {
    let lines = metrics.lines().filter_map(|l| l.strip_prefix("# TYPE "));
    let pairs = lines.filter_map(|line| line.split_once(' '));
    pairs
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect()
}

/// The same of docs/metrics.md, with the label names that its third column has.
fn documented() -> BTreeMap<String, (String, String)> {
    let text = fs::read_to_string(root("docs/metrics.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`').to_owned();
        (name, (cells[2].to_owned(), cells[3].to_owned()))
    })
    .collect()
}

fn promtool(args: &[&str], input: &str) {
    let mut child = Command::new("promtool")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool: scripts/setup test installs it");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(
        output.status.success(),
        "promtool {args:?}: {text}\n{input}"
    );
}

fn metrics(node: &Node) -> String {
    let (status, text) = node.flanneld().http_get("/metrics").unwrap();
    assert_eq!(status, 200);
    text
}

/// Waits until the node's metrics have a line that begins with each of these.
fn wait_lines(node: &Node, wanted: &[&str]) {
    wait_for(&format!("{wanted:?}"), SOON, || {
        let text = metrics(node);
        let has = |start: &&&str| text.lines().any(|line| line.starts_with(**start));
        match wanted.iter().find(|start| !has(start)) {
            None => Ok(()),
            Some(missing) => Err(format!("no {missing} in\n{text}")),
        }
    })
    .unwrap();
}

/// Deletes the route of `node` to the subnet of `other`.
fn delete_route(node: &Node, other: &Node) -> Result<String, lab::Error> {
    let subnet = other.subnet_env()?.cidr(Family::V4);
    let subnet = subnet.unwrap().trunc().to_string();
    node.exec(["ip", "route", "del", &subnet, "proto", "241"])
}

#[test]
fn every_metric_is_documented_and_clean() {
    let lab = scene::lab()
        .nodes(2)
        .store(StoreKind::Etcd { tls: true })
        .build()
        .unwrap();
    let node = lab.node(1);
    let conf = r#"{"name": "cbr0", "cniVersion": "1.0.0", "plugins": [{"type": "flannel"}]}"#;
    node.write("/run/cni-conf.json", conf).unwrap();
    node.flanneld().set_args([
        "--cni-conf-source=/run/cni-conf.json",
        "--cni-conf-file=/run/net.d/10-flannel.conflist",
    ]);
    lab.start().unwrap();
    mesh(&lab);
    let lease = r#"{"PublicIP":"192.168.78.77","BackendType":"host-gw"}"#;
    lab.put_lease("172.30.200.0-24", lease).unwrap();
    delete_route(node, lab.node(2)).unwrap();
    wait_lines(
        node,
        &[
            "flannel_ready 1",
            "flannel_rules_in_place 1",
            "flannel_guard_in_place 1",
            "flannel_cni_configuration_installed 1",
            "flannel_peers 1",
            "flannel_refused_leases 1",
            "flannel_peers_by_state{state=\"installed\"} 1",
            "flannel_peers_by_state{state=\"refused\"} 1",
            "flannel_store_up 1",
            "flannel_store_requests_total{verb=\"Range\",code=\"Ok\"} ",
            "flannel_store_requests_total{verb=\"Watch\",code=\"Ok\"} ",
            "flannel_certificate_expiry_timestamp_seconds{file=\"-etcd-certfile\"} ",
            "flannel_kernel_repairs_total{kind=\"route\"} 1",
            "flannel_node_info{backend=\"vxlan\",interface=\"eth0\",public_ip=",
            "flannel_build_info{version=\"",
        ],
    );
    let text = metrics(node);
    promtool(&["check", "metrics"], &text);
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse().unwrap()
    };
    // A lease of a day, renewed when an hour is left.
    assert!((3600.0..=86400.0).contains(&value("flannel_lease_left_seconds ")));
    assert!(value("flannel_store_contact_age_seconds ") < 60.0);
    assert!(value("process_resident_memory_bytes ") > 1e6);
    assert!(value("process_open_fds ") > 3.0);
    assert!(value("flannel_reconcile_duration_seconds_count ") > 1.0);

    let (found, documented) = (types(&text), documented());
    let in_docs: BTreeMap<_, _> = documented
        .iter()
        .map(|(name, (kind, _))| (name.clone(), kind.clone()))
        .collect();
    assert_eq!(found, in_docs, "docs/metrics.md");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, labels)) = line.split_once('{') else {
            continue;
        };
        let (_, labels_documented) = &documented[name.trim_end_matches("_bucket")];
        for label in labels
            .split("\",")
            .filter_map(|label| label.split('=').next())
        {
            let label = format!("`{}`", label.trim());
            assert!(labels_documented.contains(&label), "{name}: {label}");
        }
    }
    // The status socket has the same.
    let socket = node.exec([
        "curl",
        "-sS",
        "--unix-socket",
        "/run/flannel/flanneld.sock",
        "http://flanneld/v1/metrics",
    ]);
    assert_eq!(types(&socket.unwrap()), found);
}

/// The alerts, firing as soon as they are true.
fn impatient_rules() -> String {
    let text = fs::read_to_string(root("deploy/chart/alerts.yaml")).unwrap();
    let lines = text.lines().map(|line| {
        if line.trim_start().starts_with("for: ") {
            "        for: 0s"
        } else {
            line
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Waits until these alerts fire, each for the node with this address.
fn fires(lab: &Lab, wanted: &[(&str, String)]) {
    wait_for(&format!("{wanted:?} fire"), SOON, || {
        let url = "http://127.0.0.1:9090/api/v1/alerts";
        let place = lab.node(1);
        let text = place
            .exec(["curl", "-sS", url])
            .map_err(|e| e.to_string())?;
        let json: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let alerts = json["data"]["alerts"].as_array().cloned();
        let alerts = alerts.unwrap_or_default();
        let firing = |(name, instance): &&(&str, String)| {
            alerts.iter().any(|alert| {
                let labels = &alert["labels"];
                alert["state"] == "firing"
                    && labels["alertname"] == *name
                    && labels["instance"] == **instance
            })
        };
        match wanted.iter().find(|wanted| !firing(wanted)) {
            None => Ok(()),
            Some(missing) => Err(format!("{missing:?} is not among {text}")),
        }
    })
    .unwrap();
}

#[test]
fn a_prometheus_scrapes_two_daemons_and_alerts() {
    let rules = root("deploy/chart/alerts.yaml");
    promtool(&["check", "rules", rules.to_str().unwrap()], "");
    let lab = scene::lab().nodes(2).store(scene::ETCD).build().unwrap();
    for node in lab.nodes() {
        node.flanneld().set_args(["--healthz-ip=0.0.0.0"]);
    }
    lab.start().unwrap();
    mesh(&lab);
    let (node, other) = (lab.node(1), lab.node(2));
    let instances = [
        "127.0.0.1:10471".to_owned(),
        format!("{}:10471", other.ipv4()),
    ];
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let _prometheus = prometheus(&lab, &instances, &impatient_rules(), &log);

    let both = |alert| instances.clone().map(|instance| (alert, instance));
    let lease = r#"{"PublicIP":"192.168.78.77","BackendType":"host-gw"}"#;
    lab.put_lease("172.30.200.0-24", lease).unwrap();
    fires(&lab, &both("FlannelRefusedLeases"));

    let first = instances[0].clone();
    wait_for("the first node repairs again and again", SOON, || {
        // It may be missing just now.
        let _ = delete_route(node, other);
        let text = metrics(node);
        let start = "flannel_kernel_repairs_total{kind=\"route\"} ";
        let line = text.lines().find_map(|line| line.strip_prefix(start));
        match line.and_then(|count| count.parse::<u64>().ok()) {
            Some(count) if count > 40 => Ok(()),
            count => Err(format!("{count:?}")),
        }
    })
    .unwrap();
    fires(&lab, &[("FlannelRepairs", first.clone())]);

    lab.etcd().unwrap().stop().unwrap();
    fires(&lab, &both("FlannelStoreDown"));

    node.exec(["ip", "link", "set", "eth0", "down"]).unwrap();
    fires(
        &lab,
        &[
            ("FlannelNotReady", first),
            ("FlannelDown", instances[1].clone()),
        ],
    );
}

/// Waits until a metric of the node has such a value.
fn wait_value(node: &Node, name: &str, is_it: impl Fn(f64) -> bool) {
    wait_for(name, SOON, || {
        let text = metrics(node);
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|value| value.trim().parse::<f64>().ok());
        if value.is_some_and(&is_it) {
            Ok(())
        } else {
            Err(format!("{value:?} in\n{text}"))
        }
    })
    .unwrap();
}

/// Begins to scrape `instances` with these rules, from the first node.
fn prometheus(lab: &Lab, instances: &[String], rules: &str, log: &Path) -> Process {
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [alerts.yaml]\n\
         scrape_configs: [{{job_name: flannel, static_configs: [{{targets: {instances:?}}}]}}]\n"
    );
    let node = lab.node(1);
    node.write("/run/prometheus/prometheus.yml", &config)
        .unwrap();
    node.write("/run/prometheus/alerts.yaml", rules).unwrap();
    let mut command = Command::new("prometheus");
    command.args([
        "--config.file=/run/prometheus/prometheus.yml",
        "--storage.tsdb.path=/run/prometheus/data",
        "--web.listen-address=127.0.0.1:9090",
    ]);
    Process::start("prometheus", node, &mut command, log).unwrap()
}

/// Makes the authority's file of the lab's etcd end in three days: a second authority in it does.
fn shorten_certificates(lab: &Lab, node: &Node) {
    let args = lab.etcd().unwrap().flanneld_args();
    let file = args
        .iter()
        .find_map(|arg| arg.strip_prefix("--etcd-cafile="));
    let script = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /dev/null \
         -subj /CN=old -days 3 >>{}",
        file.unwrap()
    );
    node.exec(["sh", "-c", &script]).unwrap();
}

/// The alerts whose thresholds are hours and days away: the same expressions with thresholds of seconds.
fn hasty_rules() -> String {
    let mut text = impatient_rules();
    for (patient, hasty) in [
        (
            "flannel_store_contact_age_seconds > 1800",
            "flannel_store_contact_age_seconds > 5",
        ),
        // A lease of a day that is not renewed yet.
        (
            "flannel_lease_left_seconds < 300",
            "flannel_lease_left_seconds < 86390",
        ),
    ] {
        assert!(text.contains(patient), "{patient}");
        text = text.replace(patient, hasty);
    }
    text
}

#[test]
fn the_other_alerts_fire_when_the_lab_breaks_what_they_watch() {
    let lab = scene::lab()
        .nodes(2)
        .dual()
        .store(StoreKind::Etcd { tls: true })
        .build()
        .unwrap();
    let (node, other) = (lab.node(1), lab.node(2));
    for node in lab.nodes() {
        let args = ["--ip-masq", "--iptables-resync=1", "--healthz-ip=0.0.0.0"];
        node.flanneld().set_args(args);
    }
    shorten_certificates(&lab, node);
    lab.start().unwrap();
    mesh(&lab);
    wait_value(node, "flannel_probe_peers{state=\"reachable\"} ", |n| {
        n == 1.0
    });
    let instances = [
        "127.0.0.1:10471".to_owned(),
        format!("{}:10471", other.ipv4()),
    ];
    let dir = tempfile::tempdir().unwrap();
    let _prometheus = prometheus(&lab, &instances, &hasty_rules(), &dir.path().join("log"));
    let both = |alert| instances.clone().map(|instance| (alert, instance));
    fires(&lab, &both("FlannelCertificateEnds"));
    fires(&lab, &both("FlannelLeaseEnds"));

    // A program that makes rules and fails: nobody can repair them.
    let first = instances[0].clone();
    let broken = "for t in iptables-restore iptables-nft-restore iptables-legacy-restore; do \
        mount --bind /bin/false $(readlink -f $(command -v $t)); done; \
        nft flush chain ip nat FLANNEL-POSTRTG";
    node.exec(["sh", "-c", broken]).unwrap();
    fires(&lab, &[("FlannelRulesMissing", first.clone())]);

    // A device of IPv6 on which the kernel takes no address of IPv6.
    let refused = "sysctl -qw net.ipv6.conf.default.disable_ipv6=1 && ip link del flannel-v6.1";
    node.exec(["sh", "-c", refused]).unwrap();
    fires(&lab, &[("FlannelPendingOperations", first.clone())]);

    for rule in [
        "add table ip t",
        "add chain ip t in { type filter hook input priority -300; }",
        "add rule ip t in udp dport 8472 drop",
    ] {
        other.exec(["nft", rule]).unwrap();
    }
    fires(&lab, &[("FlannelPeerUnreachable", first)]);

    lab.etcd().unwrap().freeze().unwrap();
    fires(&lab, &both("FlannelStoreSilent"));
}

/// Every alert of the chart is fired by a test of this file, and every metric of the documentation is in the dashboard.
#[test]
fn no_alert_is_untested_and_the_dashboard_has_every_metric() {
    let tests = include_str!("metrics.rs");
    let rules = fs::read_to_string(root("deploy/chart/alerts.yaml")).unwrap();
    let alerts = rules
        .lines()
        .filter_map(|line| line.split("- alert: ").nth(1));
    let alerts: Vec<&str> = alerts.collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        assert!(
            tests.contains(&format!("\"{alert}\"")),
            "{alert} is fired by no test"
        );
    }
    let text = fs::read_to_string(root("deploy/chart/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let exprs: Vec<&str> = targets
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    // What is of use on the node alone.
    let unseen = ["flannel_mtu_bytes", "flannel_kernel_audits_total"];
    for name in documented().keys() {
        if name.starts_with("flannel_") && !unseen.contains(&name.as_str()) {
            let shown = exprs.iter().any(|expr| expr.contains(name.as_str()));
            assert!(shown, "{name} is in no panel");
        }
    }
    // Prometheus parses each of them, once Grafana has put in its variables.
    let rules: Vec<String> = exprs
        .iter()
        .enumerate()
        .map(|(at, expr)| {
            let expr = expr.replace("$instance", ".*");
            format!(
                "  - {{record: 'panel:{at}', expr: {}}}\n",
                Value::from(expr)
            )
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("panels.yaml");
    let text = format!("groups:\n- name: panels\n  rules:\n{}", rules.concat());
    fs::write(&file, &text).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()], "");
    let places: Vec<_> = panels
        .iter()
        .map(|panel| panel["gridPos"].clone())
        .collect();
    for (at, place) in places.iter().enumerate() {
        let overlaps = |other: &Value| {
            let span = |place: &Value, key: &str, len: &str| {
                let start = place[key].as_u64().unwrap();
                start..start + place[len].as_u64().unwrap()
            };
            ["x", "y"].iter().zip(["w", "h"]).all(|(key, len)| {
                let (a, b) = (span(place, key, len), span(other, key, len));
                a.start < b.end && b.start < a.end
            })
        };
        assert!(!places[at + 1..].iter().any(overlaps), "{place} is hidden");
    }
}
