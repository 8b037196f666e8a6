//! Kubernetes as a world of the suite: a lease is a Node, the configuration a file.

use model::SubnetKey;
use serde_json::{Value, json};
use store::{AnyStore, KubeSettings, KubeStore, NodeName, Timing};
use tempfile::TempDir;

use super::api::Api;
use super::scene::PREFIX;
use crate::node::CONFIG;
use crate::world::World;

/// An API server, and the directory that holds `net-conf.json`.
pub struct Kubernetes {
    api: Api,
    dir: TempDir,
}

crate::suite!(Kubernetes:
    takes_a_subnet_and_sees_the_others, a_restart_keeps_the_subnet, fifty_daemons_share_sixty_subnets,
    garbage_does_not_hide_the_good_ones, a_change_is_published_to_the_others,
    a_config_heals_without_a_restart, news_survives_being_cancelled, a_value_is_upstreams,
);

impl Kubernetes {
    /// The name of the Node that has the subnet `name`.
    fn node_with(&self, name: &str) -> Option<String> {
        let cidr = cidr(name);
        let state = self.api.state();
        let mut nodes = state.nodes.iter();
        let found = nodes.find(|(_, node)| node["spec"]["podCIDR"] == cidr.as_str());
        found.map(|(name, _)| name.clone())
    }
}

/// A podCIDR that says what the key of another store says, also if that is no subnet.
fn cidr(name: &str) -> String {
    match name.parse::<SubnetKey>() {
        Ok(_) => name.replace('-', "/"),
        Err(_) => name.into(),
    }
}

/// Annotations that say what the value of another store says, also if that is nonsense.
fn annotations(value: &str) -> Value {
    let json: Value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    let text = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
    let ip = match &json["PublicIP"] {
        Value::Null => text(&json),
        ip => text(ip),
    };
    json!({
        format!("{PREFIX}kube-subnet-manager"): "true",
        format!("{PREFIX}backend-type"): json["BackendType"].as_str().unwrap_or_default(),
        format!("{PREFIX}backend-data"): json["BackendData"].to_string(),
        format!("{PREFIX}public-ip"): ip,
    })
}

impl World for Kubernetes {
    const ASSIGNED: bool = true;

    fn new() -> Kubernetes {
        let (api, dir) = (Api::start(), TempDir::new().unwrap());
        let world = Kubernetes { api, dir };
        world.put("config", CONFIG);
        world
    }

    fn store_with(&self, timing: Timing) -> AnyStore {
        self.store_of_with(0, timing)
    }

    fn store_of_with(&self, n: u32, timing: Timing) -> AnyStore {
        let name = format!("node{n}");
        if !self.api.state().nodes.contains_key(&name) {
            let node = json!({
                "metadata": {"annotations": {}},
                "spec": {"podCIDR": format!("10.20.{}.0/24", n + 1)},
            });
            self.api.put(&name, &format!("uid{n}"), node);
        }
        let settings = KubeSettings {
            api_url: self.api.url.clone(),
            kubeconfig: None,
            annotation_prefix: PREFIX.into(),
            net_config: self.dir.path().join("net-conf.json"),
            set_network_condition: true,
            node: NodeName::Given(name),
            timing,
        };
        KubeStore::new(settings, |_| None).unwrap().into()
    }

    fn put(&self, name: &str, value: &str) {
        let Some(subnet) = name.strip_prefix("subnets/") else {
            std::fs::write(self.dir.path().join("net-conf.json"), value).unwrap();
            return;
        };
        let node = json!({
            "metadata": {"annotations": annotations(value)},
            "spec": {"podCIDR": cidr(subnet)},
        });
        let name = self.node_with(subnet).unwrap_or(format!("peer-{subnet}"));
        self.api.put(&name, &name, node);
    }

    fn delete(&self, name: &str) {
        match name.strip_prefix("subnets/") {
            Some(subnet) => self.api.delete(&self.node_with(subnet).unwrap()),
            None => std::fs::remove_file(self.dir.path().join("net-conf.json")).unwrap(),
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        let node = self.node_with(name.strip_prefix("subnets/")?)?;
        let says = |name| self.api.annotation(&node, name);
        Some(format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"{}","BackendData":{}}}"#,
            says("public-ip")?,
            says("backend-type")?,
            says("backend-data")?
        ))
    }

    fn subnets(&self) -> Vec<String> {
        let state = self.api.state();
        let managed = format!("{PREFIX}kube-subnet-manager");
        let nodes = state.nodes.values();
        nodes
            .filter(|node| node["metadata"]["annotations"][&managed] == "true")
            .map(|node| node["spec"]["podCIDR"].as_str().unwrap().replace('/', "-"))
            .collect()
    }

    fn is_reservation(&self, _: &str) -> bool {
        true
    }
}
