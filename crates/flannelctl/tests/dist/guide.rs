//! A unit as guides have it, word for word, with docker started by it; and docker by our drop-in.

use lab::{Machine, StoreKind};

use crate::machines::{configured, lab, possible, property};
use crate::project;

/// The unit of the user's step-by-step guide, with its variables filled in.
const UNIT: &str = "\
[Unit]
Description=Flanneld overlay address etcd agent
After=network.target
After=network-online.target
Wants=network-online.target
After=etcd.service
Before=docker.service

[Service]
Type=notify
ExecStart=/opt/k8s/bin/flanneld \\
  -etcd-cafile=/etc/kubernetes/cert/ca.pem \\
  -etcd-certfile=/etc/flanneld/cert/flanneld.pem \\
  -etcd-keyfile=/etc/flanneld/cert/flanneld-key.pem \\
  -etcd-endpoints=@ENDPOINTS@ \\
  -etcd-prefix=/kubernetes/network \\
  -iface=eth0 \\
  -ip-masq
ExecStartPost=/opt/k8s/bin/mk-docker-opts.sh -k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker
Restart=always
RestartSec=5
StartLimitInterval=0

[Install]
WantedBy=multi-user.target
RequiredBy=docker.service
";

/// Stands in for docker's unit and daemon: writes down how it was called.
fn stand_in_for_docker(machine: &Machine, lines: &str) {
    let unit = format!("[Service]\nType=exec\n{lines}\n[Install]\nWantedBy=multi-user.target\n");
    machine
        .write("/etc/systemd/system/docker.service", &unit)
        .unwrap();
    machine
        .write(
            "/usr/local/bin/dockerd",
            "#!/bin/sh\necho \"$*\" >/run/dockerd.called\nexec sleep 1000\n",
        )
        .unwrap();
    machine
        .exec(["chmod", "755", "/usr/local/bin/dockerd"])
        .unwrap();
}

/// The options that docker must have been called with for this machine's subnet.
fn options(machine: &Machine) -> String {
    let env = machine.read("/run/flannel/subnet.env").unwrap();
    let mut lines = env.lines();
    let subnet = lines
        .find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))
        .unwrap();
    format!("--bip={subnet} --ip-masq=false --mtu=1450")
}

fn called_with_them(machine: &Machine) {
    let wanted = options(machine);
    let called = lab::wait_for("dockerd was called", crate::SOON, || {
        let called = machine.read("/run/dockerd.called");
        let called = called.map_err(|e| e.to_string())?;
        match called.ends_with('\n') {
            true => Ok(called),
            false => Err(called),
        }
    })
    .unwrap();
    let words = called.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.ends_with(&wanted), "{words:?} for {wanted:?}");
}

#[test]
fn the_guides_own_unit() {
    if !possible() {
        return;
    }
    let lab = lab::Lab::builder()
        .nodes(2)
        .store(StoreKind::Etcd { tls: true })
        .etcd_prefix("/kubernetes/network")
        .build()
        .unwrap();
    let machine = Machine::boot(lab.node(1)).unwrap();
    let copy = "\
        mkdir -p /opt/k8s/bin /etc/kubernetes/cert /etc/flanneld/cert; \
        cp /run/lab/bin/flanneld /opt/k8s/bin/; \
        cp /run/lab/tls/ca.pem /etc/kubernetes/cert/; \
        cp /run/lab/tls/flanneld*.pem /etc/flanneld/cert/";
    machine.exec(["sh", "-ec", copy]).unwrap();
    machine
        .copy_in(
            &project().join("dist/mk-docker-opts.sh"),
            "/opt/k8s/bin/mk-docker-opts.sh",
        )
        .unwrap();
    let endpoint = lab.etcd().unwrap().endpoint();
    machine
        .write(
            "/etc/systemd/system/flanneld.service",
            &UNIT.replace("@ENDPOINTS@", &endpoint),
        )
        .unwrap();
    stand_in_for_docker(
        &machine,
        "EnvironmentFile=-/run/flannel/docker\nExecStart=/usr/local/bin/dockerd $DOCKER_NETWORK_OPTIONS",
    );
    machine.exec(["systemctl", "daemon-reload"]).unwrap();
    machine.exec(["systemctl", "enable", "flanneld"]).unwrap();
    machine.exec(["systemctl", "restart", "flanneld"]).unwrap();
    assert_eq!(property(&machine, "flanneld", "ActiveState"), "active");
    machine.exec(["systemctl", "start", "docker"]).unwrap();
    called_with_them(&machine);

    // RequiredBy: docker alone brings flanneld.
    machine.exec(["systemctl", "stop", "flanneld"]).unwrap();
    machine.exec(["rm", "-f", "/run/dockerd.called"]).unwrap();
    machine.exec(["systemctl", "start", "docker"]).unwrap();
    assert_eq!(property(&machine, "flanneld", "ActiveState"), "active");
    called_with_them(&machine);

    // What the guide looks at in the end.
    let address = machine.exec(["sh", "-c", "ip addr show flannel.1 | grep -w inet"]);
    assert!(address.unwrap().contains("/32 scope global flannel.1"));
}

#[test]
fn our_drop_in() {
    if !possible() {
        return;
    }
    let lab = lab(StoreKind::Directory);
    let machine = configured(&lab, "FLANNELD_IP_MASQ=true\n");
    stand_in_for_docker(&machine, "ExecStart=/usr/local/bin/dockerd -H fd://");
    machine
        .exec([
            "cp",
            "-r",
            "/usr/share/flannel/docker.service.d",
            "/etc/systemd/system/",
        ])
        .unwrap();
    machine.exec(["systemctl", "daemon-reload"]).unwrap();
    machine
        .exec(["systemd-analyze", "verify", "--man=no", "docker.service"])
        .unwrap();
    // It brings flanneld, waits for it, and has its options; twice, and they do not pile up.
    for _ in 0..2 {
        machine.exec(["rm", "-f", "/run/dockerd.called"]).unwrap();
        machine.exec(["systemctl", "restart", "docker"]).unwrap();
        assert_eq!(property(&machine, "flanneld", "ActiveState"), "active");
        called_with_them(&machine);
        let called = machine.read("/run/dockerd.called").unwrap();
        assert_eq!(called.matches("--bip").count(), 1, "{called}");
    }
    // Unlike in the guide's way, containers live on while flanneld is stopped.
    machine.exec(["systemctl", "stop", "flanneld"]).unwrap();
    assert_eq!(property(&machine, "docker", "ActiveState"), "active");
}
