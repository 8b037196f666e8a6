//! What can be told without a machine: that the role is well formed, and that its defaults are those
//! which users of the guide rely on.

use std::process::Command;

use serde_json::{Value, json};

use crate::control::{CHECKOUT, Control};

#[test]
fn the_files_are_well_formed() {
    let control = Control::new();
    let deploy = format!("{CHECKOUT}/deploy/ansible");
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&text)
        );
    };
    run(control
        .ansible("yamllint")
        .current_dir(&deploy)
        .args(["--strict", "."]));
    let mut syntax = control.ansible("ansible-playbook");
    run(syntax.current_dir(&deploy).args([
        "--syntax-check",
        "--inventory",
        "inventory",
        "site.yml",
    ]));
}

/// The role can be taken out of the checkout, so it has copies of what packages hold.
#[test]
fn the_role_s_copies_are_those_of_the_packages() {
    let copies = format!("{CHECKOUT}/deploy/ansible/roles/flanneld/files");
    let compare = ["-rq", &copies, &format!("{CHECKOUT}/dist")];
    let output = Command::new("diff").args(compare).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // Not everything in dist is for the role.
    let differ: Vec<&str> = text
        .lines()
        .filter(|l| !l.starts_with("Only in ") || l.contains(&copies))
        .collect();
    assert!(differ.is_empty(), "copy them anew: {differ:#?}");
}

/// Every variable of the guide's role, with its default, as Ansible itself understands them.
#[test]
fn the_variables_and_their_defaults_are_the_guide_s() {
    let control = Control::new();
    let role = format!("{CHECKOUT}/deploy/ansible/roles/flanneld");
    // Facts as a node with that interface has them.
    let given = json!({
        "ansible_facts": {"tap0": {"ipv4": {"address": "10.8.0.111"}}},
    });
    let wanted = json!({
        "k8s_interface": "tap0",
        "k8s_conf_dir": "/var/lib/kubernetes",
        "k8s_cni_conf_dir": "/etc/cni/net.d",
        "k8s_ca_conf_directory": "/home/admin/k8s/certs",
        "etcd_bin_dir": "/usr/local/bin",
        "etcd_client_port": 2379,
        "etcd_certificates": ["ca-etcd.pem", "ca-etcd-key.pem", "cert-etcd.pem", "cert-etcd-key.pem"],
        "flannel_version": "v0.16.1",
        "flannel_etcd_prefix": "/kubernetes-cluster/network",
        "flannel_ip_range": "10.200.0.0/16",
        "flannel_backend_type": "vxlan",
        "flannel_cni_interface": "cni0",
        "flannel_subnet_file_dir": "/run/flannel",
        "flannel_options_dir": "/etc/flannel",
        "flannel_bin_dir": "/usr/local/sbin",
        "flannel_cni_conf_file": "10-flannel",
        // The guide says 0.3.1; upstream's own files say 1.0.0 since August 2026.
        "flannel_cni_spec_version": "1.0.0",
        "flannel_systemd_restartsec": "5",
        "flannel_systemd_limitnofile": "40000",
        "flannel_systemd_limitnproc": "1048576",
        "flannel_systemd_execstartpre": "/bin/mkdir -p /run/flannel",
        "flannel_systemd_execstartpost": "not set",
        "flannel_settings": {
            "etcd-cafile": "/var/lib/kubernetes/ca-etcd.pem",
            "etcd-certfile": "/var/lib/kubernetes/cert-etcd.pem",
            "etcd-keyfile": "/var/lib/kubernetes/cert-etcd-key.pem",
            "etcd-prefix": "/kubernetes-cluster/network",
            "iface": "tap0",
            "public-ip": "10.8.0.111",
            "subnet-file": "/run/flannel/subnet.env",
            "ip-masq": "true",
            "healthz-ip": "0.0.0.0",
            "healthz-port": "0",
        },
        "flannel_cni_conf": {
            "name": "cni0",
            "cniVersion": "1.0.0",
            "plugins": [
                {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        },
    });
    let names: Vec<&String> = wanted.as_object().unwrap().keys().collect();
    let each = names.iter().map(|name| match name.as_str() {
        "flannel_cni_conf" => {
            format!("'{name}': ({name} | from_json if {name} is string else {name})")
        }
        _ => format!("'{name}': {name} | default('not set')"),
    });
    let play = json!([{
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": false,
        "vars": given,
        "vars_files": [format!("{role}/defaults/main.yml")],
        "tasks": [{"copy": {
            "content": format!("{{{{ {{ {} }} | to_json }}}}", each.collect::<Vec<_>>().join(", ")),
            "dest": control.path("read.json"),
        }}],
    }]);
    let file = control.path("defaults.yml");
    std::fs::write(&file, play.to_string()).unwrap();
    let output = control
        .ansible("ansible-playbook")
        .env("HOME", "/home/admin")
        .arg(&file)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
    );
    let read = std::fs::read_to_string(control.path("read.json")).unwrap();
    let read: Value = serde_json::from_str(&read).unwrap();
    assert_eq!(read, wanted);
}
