//! The network configuration on stdin, and what becomes of it for the delegate.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::failure::{Code, Failure, note};
use crate::go_json::normalize;
use crate::object::Object;
use crate::ranges::ranges;
use crate::request::{is_identifier, short};
use crate::subnet_env::SubnetEnv;
use crate::version::Version;

const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DEFAULT_DATA_DIR: &str = "/var/lib/cni/flannel";

/// Our network configuration. Only what every command needs is decoded at once; `delegate` and `ipam`
/// are looked at when a delegate's configuration is made of them.
#[derive(Clone, Debug)]
pub struct Network {
    /// `None` where the configuration does not say: it is then of 0.1.0.
    pub version: Option<Version>,
    /// The network's name.
    pub name: String,
    /// Where flanneld's subnet file is.
    pub subnet_file: PathBuf,
    /// Where the delegates' configurations are kept between ADD and DEL.
    pub data_dir: PathBuf,
    /// Whether a bridge with an address of an older lease is to be mended.
    pub repair_bridge: bool,
    object: Object,
}

/// An attachment that a GC is to keep.
#[derive(Clone, Debug)]
pub struct ValidAttachment {
    /// The container.
    pub container: String,
    /// The interface; empty for all of the container's.
    pub ifname: String,
}

impl Network {
    /// Decodes the configuration.
    ///
    /// # Errors
    /// [`Code::Decode`] for what is no JSON object, [`Code::IncompatibleVersion`],
    /// [`Code::InvalidConfig`] with the key by name.
    pub fn parse(bytes: &[u8]) -> Result<Network, Failure> {
        let object = decode_object(bytes, "the network configuration on stdin")?;
        let version = match text(&object, "cniVersion")?.filter(|text| !text.is_empty()) {
            None => None,
            Some(version) => Some(Version::parse(&version).ok_or_else(|| {
                Failure::new(
                    Code::IncompatibleVersion,
                    format!("cniVersion {:?} is not supported", short(&version)),
                )
                .advise(format!("supported are {}", Version::ALL.join(", ")))
            })?),
        };
        let name = text(&object, "name")?.unwrap_or_default();
        if !is_identifier(&name) {
            return Err(if name.is_empty() {
                invalid("\"name\" is missing")
            } else {
                invalid(format!(
                    "\"name\": {:?} is not a network's name",
                    short(&name)
                ))
            }
            .advise("a letter or digit, then letters, digits, '_', '.' and '-'"));
        }
        let path = |key, default: &str| {
            let given = text(&object, key)?.filter(|path| !path.is_empty());
            Ok::<_, Failure>(PathBuf::from(given.unwrap_or_else(|| default.into())))
        };
        Ok(Network {
            version,
            name,
            subnet_file: path("subnetFile", DEFAULT_SUBNET_FILE)?,
            data_dir: path("dataDir", DEFAULT_DATA_DIR)?,
            repair_bridge: object
                .decode("repairBridge")
                .map_err(|_| invalid("\"repairBridge\" must be true or false"))?
                .unwrap_or(false),
            object,
        })
    }

    /// What the runtime says that ADD returned; `None` where it says nothing.
    pub fn previous_result(&self) -> Option<&RawValue> {
        self.object
            .get("prevResult")
            .filter(|value| value.get() != "null")
    }

    /// The attachments that a GC is to keep, decoded and as they were given; `None` where the runtime says
    /// nothing of them. It may use the key of the specification's text or that of its first edition, and a
    /// runtime in Go that has no container left says `null`.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] for what is no such list.
    pub fn valid_attachments(&self) -> Result<Option<(Vec<ValidAttachment>, &RawValue)>, Failure> {
        let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let Some((key, raw)) = keys
            .into_iter()
            .find_map(|key| Some((key, self.object.get(key)?)))
        else {
            return Ok(None);
        };
        let bad = || {
            invalid(format!(
                "{key:?} must be a list of {{\"containerID\", \"ifname\"}}"
            ))
        };
        let list: Option<Vec<Object>> = self.object.decode(key).map_err(|_| bad())?;
        let list = list.unwrap_or_default();
        let attachment = |one: &Object| {
            Some(ValidAttachment {
                container: one.decode("containerID").ok()??,
                ifname: one.decode("ifname").ok()?.unwrap_or_default(),
            })
        };
        let list: Vec<ValidAttachment> = list
            .iter()
            .map(|one| attachment(one).ok_or_else(bad))
            .collect::<Result<_, _>>()?;
        Ok(Some((list, raw)))
    }

    /// The configuration of the delegate: what was given under `delegate` and `ipam`, completed with
    /// what `env` says of this node.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] with the key by name.
    pub fn delegate_config(&self, env: &SubnetEnv) -> Result<Object, Failure> {
        self.complete(
            env,
            ranges(self.merged("ipam")?.get("ranges"), &env.subnets)?,
        )
    }

    /// Returns a configuration that is good enough for a DEL whose own was lost. Address managers find a container by its
    /// identifier and not by the range, so that it does not take a running flanneld.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] with the key by name.
    pub fn delegate_config_for_del(&self) -> Result<Object, Failure> {
        let env = SubnetEnv::read(&self.subnet_file).unwrap_or_else(|failure| {
            note(format_args!("{}: continuing without it", failure.msg));
            SubnetEnv::placeholder()
        });
        self.complete(&env, ranges(None, &env.subnets)?)
    }

    /// Returns the object under `key`. Written twice, it is merged, as Go's decoder does.
    fn merged(&self, key: &str) -> Result<Object, Failure> {
        let mut merged = Object::default();
        for value in self.object.all(key) {
            match serde_json::from_str::<Option<Object>>(value.get()) {
                Ok(Some(object)) => merged.extend(object),
                Ok(None) => merged = Object::default(),
                Err(_) => return Err(invalid(format!("{key:?} must be an object"))),
            }
        }
        Ok(merged)
    }

    fn complete(&self, env: &SubnetEnv, ranges: Vec<Vec<Object>>) -> Result<Object, Failure> {
        let mut delegate = self.merged("delegate")?;
        for key in ["name", "ipam"] {
            // Other spellings of them are overwritten, as with upstream.
            if delegate.keys().any(|given| given == key) {
                return Err(invalid(format!("\"delegate\" must not hold {key:?}"))
                    .advise(format!("write {key:?} beside \"delegate\", not in it")));
            }
        }
        if delegate.has("type") && !matches!(delegate.decode::<String>("type"), Ok(Some(_))) {
            return Err(invalid("\"delegate\": \"type\" must be a string"));
        }

        let made = (|| {
            delegate.set("name", &self.name)?;
            delegate.set_default("type", "bridge")?;
            // If flanneld does not masquerade, the delegate has to.
            delegate.set_default("ipMasq", &!env.ip_masq)?;
            delegate.set_default("mtu", &env.mtu)?;
            if delegate.decode::<String>("type")?.as_deref() == Some("bridge") {
                delegate.set_default("isGateway", &true)?;
            }
            if let Some(version) = self.version {
                delegate.set("cniVersion", version.as_str())?;
            }
            Ok::<_, serde_json::Error>(())
        })();
        let ipam = self.ipam(env, ranges)?;
        made.and_then(|()| delegate.set("ipam", &ipam))
            .map_err(|error| invalid(format!("\"delegate\": {error}")))?;

        let given = |key: &str| {
            self.object
                .get(key)
                .filter(|value| value.get() != "null")
                .map(ToOwned::to_owned)
        };
        if let Some(runtime_config) = given("runtimeConfig") {
            delegate.put("runtimeConfig", runtime_config);
        }
        if let (Some(args), false) = (given("args"), delegate.has("args")) {
            delegate.put("args", args);
        }
        Ok(delegate)
    }

    /// `ipam` as given, with this node's subnets as ranges and a route to every network.
    fn ipam(&self, env: &SubnetEnv, ranges: Vec<Vec<Object>>) -> Result<Object, Failure> {
        #[derive(Serialize)]
        struct Route {
            dst: String,
        }

        let mut ipam = self.merged("ipam")?;
        let mut routes: Vec<Box<RawValue>> = ipam
            .decode("routes")
            .map_err(|_| invalid("\"ipam\": \"routes\" must be a list"))?
            .unwrap_or_default();
        // What is given wins: the same destination twice would have the delegate fail.
        let mut known: Vec<IpNet> = routes
            .iter()
            .filter_map(|route| serde_json::from_str::<Object>(route.get()).ok())
            .filter_map(|route| route.decode::<String>("dst").ok().flatten())
            .filter_map(|dst| dst.parse::<IpNet>().ok())
            .map(|dst| dst.trunc())
            .collect();
        (|| {
            for &dst in &env.networks {
                if !known.contains(&dst) {
                    known.push(dst);
                    routes.push(serde_json::value::to_raw_value(&Route {
                        dst: dst.to_string(),
                    })?);
                }
            }
            ipam.set_default("type", "host-local")?;
            ipam.set("ranges", &ranges)?;
            ipam.set("routes", &routes)
        })()
        .map_err(|error: serde_json::Error| invalid(format!("\"ipam\": {error}")))?;
        Ok(ipam)
    }
}

/// Decodes a JSON object; `what` is its name in messages.
///
/// # Errors
/// [`Code::Decode`] with the place of the fault.
pub fn decode_object(bytes: &[u8], what: &str) -> Result<Object, Failure> {
    let bad = |why: String| Failure::new(Code::Decode, format!("{what} {why}"));
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(bad("is empty".into()));
    }
    serde_json::from_str(&normalize(bytes))
        .map_err(|error| bad(format!("is not a JSON object: {error}")))
}

fn text(object: &Object, key: &str) -> Result<Option<String>, Failure> {
    object
        .decode(key)
        .map_err(|_| invalid(format!("{key:?} must be a string")))
}

fn invalid(msg: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidConfig, msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that are the same in every run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % limit as u64) as usize
        }
    }

    #[test]
    fn no_damage_to_the_input_is_worse_than_an_error() {
        let good = br#"{"cniVersion":"1.1.0","name":"net","subnetFile":"/s","dataDir":"/d","repairBridge":true,"ipam":{"routes":[{"dst":"10.0.0.0/8"}],"ranges":null},"delegate":{"type":"bridge","mtu":1400,"ipMasq":false},"runtimeConfig":{"a":[1,2.5e3]},"prevResult":{"ips":[]},"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}"#;
        let pieces: [&[u8]; 12] = [
            b"{", b"}", b"[", b"]", b"\"", b",", b":", b"null", b"\\u0000", b"\\ud800", b"\xff",
            b"1e999",
        ];
        let env = SubnetEnv {
            networks: vec!["10.0.0.0/8".parse().unwrap()],
            subnets: vec!["10.1.2.0/24".parse().unwrap()],
            mtu: 1450,
            ip_masq: true,
        };
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        let (mut parsed, mut made) = (0, 0);
        for _ in 0..20_000 {
            let mut bytes = good.to_vec();
            for _ in 0..=numbers.below(3) {
                let at = numbers.below(bytes.len());
                let piece = pieces[numbers.below(pieces.len())];
                let end = bytes.len().min(at + numbers.below(8));
                bytes.splice(at..end, piece.iter().copied());
            }
            if let Ok(network) = Network::parse(&bytes) {
                parsed += 1;
                let _ = (network.valid_attachments(), network.previous_result());
                if let Ok(config) = network.delegate_config(&env) {
                    made += 1;
                    // Whatever was accepted is JSON when it is handed on.
                    let text = serde_json::to_vec(&config).unwrap();
                    serde_json::from_slice::<Object>(&text).unwrap();
                }
            }
        }
        assert!(parsed >= made && made > 100, "{parsed} {made}");
    }

    #[test]
    fn fuzzed_configurations() {
        fuzz::run(
            "CNI network configuration",
            &[
                br#"{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","subnetFile":"/run/flannel/subnet.env","dataDir":"/var/lib/cni/flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true,"mtu":1400.0},"ipam":{"type":"host-local","routes":[{"dst":"10.0.0.0/8"}]},"runtimeConfig":{"portMappings":[]}}"#,
                br#"{"name":"n","type":"flannel","prevResult":{"ips":[{"address":"10.1.2.2/24","gateway":"10.1.2.1"}],"routes":[{"dst":"::/0"}]}}"#,
            ],
            |input| Network::parse(input).map(|_| ()).map_err(|failure| failure.msg.len()),
        );
        fuzz::run(
            "JSON of Go's kind",
            &[br#"{"a":1e3,"b":[1.50,"\ud83d\ude00","\ud800"],"c":{"d":-0.0}}"#],
            |input| {
                let once = crate::go_json::normalize(input).into_owned();
                let twice = crate::go_json::normalize(once.as_bytes()).into_owned();
                assert_eq!(once, twice);
                once.len()
            },
        );
        fuzz::run(
            "CNI version request",
            &[br#"{"cniVersion":"1.1.0"}"#],
            |input| crate::upkeep::version(input).len(),
        );
    }
}
