//! How the API server is reached, and who we are to it.

use lab::{Instance, wait_for};
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
