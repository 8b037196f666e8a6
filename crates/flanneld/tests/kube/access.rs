//! How the API server is reached, and who we are to it.

use std::process::{Child, Command};

use lab::{Instance, KUBE_BIN_DIR, Who, wait_for};
use serde_json::json;

use crate::scene::{self, Peer, SOON, asked, says, shows};

/// Which Node is ours is the pod's to say, where NODE_NAME is not set.
#[test]
fn the_pod_tells_which_node_it_is_on() {
    let Some(lab) = scene::lab("POD_NAME", |lab| lab.nodes(1)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let one = lab.node(1);
    let pod = json!({
        "metadata": {"name": "kube-flannel-ds-x", "namespace": "kube-flannel"},
        "spec": {"nodeName": "n1", "serviceAccountName": "flannel",
            "containers": [{"name": "c", "image": "none"}]},
    });
    kube.api()
        .create("/api/v1/namespaces/kube-flannel/pods", &pod)
        .unwrap();
    let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let instance = Instance {
        env: vec![
            env("NODE_NAME", ""),
            env("POD_NAME", "kube-flannel-ds-x"),
            env("POD_NAMESPACE", "kube-flannel"),
            env("EVENT_QUEUE_DEPTH", "5000"),
            env("CONT_WHEN_CACHE_NOT_READY", "false"),
        ],
        ..Instance::default()
    };
    let daemon = one.another(instance);
    daemon.start_ready(SOON).unwrap();
    says(&daemon, &["ours is Node n1"]);
    assert!(asked(kube)[0].starts_with("get /api/v1/namespaces/kube-flannel/pods/"));
    daemon.stop().unwrap();

    let nameless = one.another(Instance {
        env: vec![env("NODE_NAME", "")],
        ..Instance::default()
    });
    nameless.start().unwrap();
    assert!(!nameless.wait_ended(SOON).unwrap().success());
    says(&nameless, &["NODE_NAME", "POD_NAME", "POD_NAMESPACE"]);
}

/// A token that is no longer good is replaced in its file: the daemon goes on.
#[test]
fn a_token_may_change_under_a_running_daemon() {
    let Some(lab) = scene::lab("token rotation", |lab| lab.nodes(1)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let one = lab.node(1);
    let token = || {
        kube.service_account_token("kube-flannel", "flannel", 600)
            .unwrap()
    };
    one.write("/run/token", &token()).unwrap();
    let config = kube.kubeconfig_with_token("TOKEN");
    assert!(config.contains("TOKEN"));
    let config = config
        .replace("\"token\"", "\"tokenFile\"")
        .replace("TOKEN", "token");
    one.write("/run/kubeconfig", &config).unwrap();
    one.flanneld()
        .set_args(["--kubeconfig-file=/run/kubeconfig"]);
    one.flanneld().start_ready(SOON).unwrap();

    // Another service account of that name: the old one's tokens are void, as an expired one would be.
    let account = "/api/v1/namespaces/kube-flannel/serviceaccounts";
    kube.api().delete(&format!("{account}/flannel")).unwrap();
    let new = json!({"metadata": {"name": "flannel", "namespace": "kube-flannel"}});
    kube.api().create(account, &new).unwrap();
    // The watch stands; what needs a request of its own is refused.
    kube.stop().unwrap();
    kube.start().unwrap();
    says(one.flanneld(), &["API server", "Unauthorized"]);
    one.write("/run/token", &token()).unwrap();
    Peer::new(
        "p1",
        "172.30.101.0/24",
        "192.168.78.101",
        "4e:00:00:00:00:01",
    )
    .create(kube);
    shows(one, &["route 172.30.101.0/24", "flannel.1"]);
    let ready = || match one.flanneld().http_get("/readyz") {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    wait_for("ready again", SOON, ready).unwrap();
}

/// A token that a program prints, a server without a scheme, and one whose certificate nobody vouches
/// for: as hand-made kubeconfigs have it.
#[test]
fn a_plugin_and_an_unverified_server_will_do() {
    let Some(lab) = scene::lab("exec plugin", |lab| lab.nodes(1)) else {
        return;
    };
    let (kube, one) = (lab.kube().unwrap(), lab.node(1));
    let token = kube
        .service_account_token("kube-flannel", "flannel", 600)
        .unwrap();
    let config = kube.kubeconfig_with_token("TOKEN");
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let cluster = &mut config["clusters"][0]["cluster"];
    let server = cluster["server"].as_str().unwrap();
    let server = server.strip_prefix("https://").unwrap().to_owned();
    *cluster = json!({"server": server, "insecure-skip-tls-verify": true, "proxy-url": ""});
    let answer = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": token, "expirationTimestamp": "2999-01-01T00:00:00Z"},
    });
    one.write("/run/answer", &answer.to_string()).unwrap();
    config["users"][0]["user"] = json!({"username": "", "exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "cat", "args": ["/run/answer"],
        "interactiveMode": "IfAvailable", "provideClusterInfo": true,
    }});
    one.write("/run/kubeconfig", &config.to_string()).unwrap();
    one.flanneld()
        .set_args(["--kubeconfig-file=/run/kubeconfig"]);
    one.flanneld().start_ready(SOON).unwrap();
    says(one.flanneld(), &["WARN", "insecure-skip-tls-verify"]);
    scene::becomes(kube, "n1", "False");
    assert!(!one.flanneld().log().contains(&token));
}

/// The rights that the network needs are enough: one event is tried, and no other.
#[test]
fn without_rights_for_events_there_are_none() {
    let Some(lab) = scene::lab("no events", |lab| lab.nodes(1)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let one = lab.node(1);
    let binding =
        "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings/flannel-events";
    kube.api().delete(binding).unwrap();
    one.flanneld().start_ready(SOON).unwrap();
    for (name, cidr) in [("b1", "172.30.101.0/24"), ("b2", "172.30.102.0/24")] {
        let broken = Peer::new(name, cidr, "nowhere", "4e:00:00:00:00:01");
        broken.create(kube);
        says(one.flanneld(), &[&format!("Node {name} is not used")]);
    }
    Peer::new(
        "fine",
        "172.30.103.0/24",
        "192.168.78.103",
        "4e:00:00:00:00:03",
    )
    .create(kube);
    shows(one, &["route 172.30.103.0/24", "flannel.1"]);
    let tried = || match kube
        .requests()
        .unwrap()
        .iter()
        .filter(|r| r.forbidden())
        .count()
    {
        1 => Ok(()),
        n => Err(format!("{n} refused")),
    };
    wait_for("one event is refused", SOON, tried).unwrap();
}

/// What keeps pods from this node without keeping it from being announced is on the Node, too.
#[test]
fn a_cni_configuration_that_goes_bad_is_an_event() {
    let Some(lab) = scene::lab("an event about the CNI configuration", |lab| lab.nodes(1)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let one = lab.node(1);
    one.write("/run/cni-conf.json", r#"{"plugins": []}"#)
        .unwrap();
    one.flanneld().set_args([
        "--cni-conf-source=/run/cni-conf.json",
        "--cni-conf-file=/run/net.d/10-flannel.conflist",
    ]);
    one.flanneld().start_ready(SOON).unwrap();
    one.write("/run/cni-conf.json", "{").unwrap();
    let message = scene::event(kube, "n1", "CniConfigurationMissing");
    assert!(
        message.contains("-cni-conf-source /run/cni-conf.json"),
        "{message}"
    );
}

/// Plain HTTP/1.1, as `kubectl proxy` speaks it.
#[test]
fn a_proxy_without_tls_will_do() {
    let Some(lab) = scene::lab("kubectl proxy", |lab| lab.nodes(1)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let one = lab.node(1);
    let mut command = Command::new(format!("{KUBE_BIN_DIR}/kubectl"));
    command.args([
        "proxy",
        "--address=192.168.78.254",
        "--port=8001",
        "--accept-hosts=.*",
    ]);
    command.arg(format!("--kubeconfig={}", kube.kubeconfig(&Who::Flannel)));
    let mut proxy = Running(kube.place().spawn(&mut command).unwrap());
    one.flanneld().set_args([
        "--kubeconfig-file=",
        "--kube-api-url=http://192.168.78.254:8001",
    ]);
    one.flanneld().start_ready(SOON).unwrap();
    says(one.flanneld(), &["Nodes at http://192.168.78.254:8001"]);
    Peer::new(
        "p1",
        "172.30.101.0/24",
        "192.168.78.101",
        "4e:00:00:00:00:01",
    )
    .create(kube);
    shows(one, &["route 172.30.101.0/24", "flannel.1"]);
    scene::becomes(kube, "n1", "False");
    proxy.0.kill().unwrap();
    says(one.flanneld(), &["the API server is unreachable"]);
}

/// Ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
