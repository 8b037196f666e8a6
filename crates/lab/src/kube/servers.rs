//! The command lines of the control plane's programs.

use std::net::SocketAddr;
use std::process::Command;

use super::audit;
use super::networks::Networks;
use crate::fabric::kernel_has_ipv6;
use crate::{KUBE_BIN_DIR, KUBE_DIR};

/// As clients in pods know it, by its service's address: no other port is needed.
pub(super) const PORT: u16 = 443;

/// kube-apiserver, known as `server`.
pub(super) fn apiserver(networks: &Networks, server: SocketAddr) -> Command {
    let mut command = program("kube-apiserver");
    let bind = if kernel_has_ipv6() { "::" } else { "0.0.0.0" };
    let file = |name: &str| format!("{KUBE_DIR}/{name}");
    for (flag, value) in [
        ("etcd-servers", "http://127.0.0.1:2379"),
        ("bind-address", bind),
        ("secure-port", &PORT.to_string()),
        ("advertise-address", &server.ip().to_string()),
        ("tls-cert-file", &file("apiserver.pem")),
        ("tls-private-key-file", &file("apiserver-key.pem")),
        ("token-auth-file", &file("tokens.csv")),
        ("service-account-issuer", "https://kubernetes.default.svc"),
        ("service-account-key-file", &file("service-account-pub.pem")),
        (
            "service-account-signing-key-file",
            &file("service-account-key.pem"),
        ),
        ("authorization-mode", "Node,RBAC"),
        ("enable-admission-plugins", "NodeRestriction"),
        ("service-cluster-ip-range", &networks.service_ranges()),
        ("kubelet-preferred-address-types", "InternalIP"),
        ("allow-privileged", "true"),
        ("audit-policy-file", &file(audit::POLICY)),
        ("audit-log-path", &file(audit::LOG)),
        // At once: whoever has its answer finds its request in the log.
        ("audit-log-mode", "blocking-strict"),
        // Else a stop waits a minute for watches that nobody ends.
        ("shutdown-watch-termination-grace-period", "1s"),
    ] {
        command.arg(format!("--{flag}={value}"));
    }
    command
}

/// kube-controller-manager, with the kubeconfig file `admin`. Without `kubelets` only what gives Nodes their subnets.
pub(super) fn controller_manager(networks: &Networks, admin: &str, kubelets: bool) -> Command {
    let mut command = program("kube-controller-manager");
    for (flag, value) in [
        ("kubeconfig", admin),
        ("leader-elect", "false"),
        ("secure-port", "0"),
        ("allocate-node-cidrs", "true"),
        ("cluster-cidr", &networks.pod_networks()),
        ("service-cluster-ip-range", &networks.service_ranges()),
        (
            "service-account-private-key-file",
            &format!("{KUBE_DIR}/service-account-key.pem"),
        ),
        ("root-ca-file", &format!("{KUBE_DIR}/ca.pem")),
        // Else it makes one in /usr/libexec, of the whole machine.
        (
            "flex-volume-plugin-dir",
            &format!("{KUBE_DIR}/volume-plugins"),
        ),
        // Its defaults make a hundred new Nodes wait for seconds.
        ("kube-api-qps", "200"),
        ("kube-api-burst", "400"),
    ] {
        command.arg(format!("--{flag}={value}"));
    }
    command.args(networks.mask_sizes());
    if !kubelets {
        // Without kubelets Nodes have no heartbeats: nobody is to be told that they are dead.
        command.arg("--controllers=node-ipam-controller,namespace-controller,serviceaccount-controller,root-ca-certificate-publisher-controller,validatingadmissionpolicy-status-controller");
    }
    command
}

/// kube-scheduler, with the kubeconfig file `admin`.
pub(super) fn scheduler(admin: &str) -> Command {
    let mut command = program("kube-scheduler");
    command.arg(format!("--kubeconfig={admin}"));
    command.args(["--leader-elect=false", "--secure-port=0"]);
    command
}

fn program(name: &str) -> Command {
    Command::new(format!("{KUBE_BIN_DIR}/{name}"))
}
