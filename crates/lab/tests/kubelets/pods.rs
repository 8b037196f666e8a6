//! Pods that reach each other, and what is not a pod.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use lab::{Lab, Namespace, bulk};

use crate::SOON;

/// What people apply.
pub(crate) fn manifest() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kube-flannel.yml");
    fs::read_to_string(file).unwrap()
}

/// A pod of the cluster, and what we know of it.
pub(crate) struct Pod {
    pub(crate) place: Namespace,
    /// The first one is of the cluster's first family.
    pub(crate) ips: Vec<IpAddr>,
}

impl Pod {
    /// The pod of that name, when it is Ready.
    pub(crate) fn ready(lab: &Lab, name: &str) -> Pod {
        let pod = lab.kube().unwrap().wait_pod_ready(name, SOON).unwrap();
        let ips = pod["status"]["podIPs"].as_array().unwrap();
        let ips = ips
            .iter()
            .map(|ip| ip["ip"].as_str().unwrap().parse().unwrap());
        Pod {
            place: lab.kube_pod(&pod).unwrap(),
            ips: ips.collect(),
        }
    }
}

/// By ping and by 20 MB of TCP, each to each, every family.
pub(crate) fn they_reach_each_other(pods: &[Pod]) {
    for (from, to) in pods.iter().flat_map(|a| pods.iter().map(move |b| (a, b))) {
        for ip in &to.ips {
            from.place
                .exec(["ping", "-c1", "-W2", &ip.to_string()])
                .unwrap();
            if from.ips != to.ips {
                let took = bulk(&from.place, &to.place, *ip, 20_000_000).unwrap();
                assert!(took < SOON, "20 MB took {took:?}");
            }
        }
    }
}

/// Which knows nothing of pods, so that only masqueraded packets are answered: the fabric, and the API server by its
/// service's address.
pub(crate) fn they_reach_the_outside(lab: &Lab, pods: &[Pod]) {
    let server = lab.kube().unwrap().server().ip();
    let service = match server {
        IpAddr::V4(_) => "10.96.0.1:443",
        IpAddr::V6(_) => "[fd00:96::1]:443",
    };
    let service: SocketAddr = service.parse().unwrap();
    for pod in pods {
        pod.place
            .exec(["ping", "-c1", "-W2", &server.to_string()])
            .unwrap();
        let connect = || TcpStream::connect_timeout(&service, Duration::from_secs(5));
        pod.place.run(connect).unwrap().unwrap();
    }
}
