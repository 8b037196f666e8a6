//! What flanneld would say of a configuration, and how it understands it: its own code, asked for
//! everything at once.

use model::{Family, NetConfig};
use serde_json::{Map, Value, json};

/// A configuration that flanneld would take, and what it would warn of.
pub(crate) struct Judged {
    pub(crate) config: NetConfig,
    pub(crate) warnings: Vec<String>,
}

/// Judges the text of a configuration.
///
/// # Errors
/// Every reason for which flanneld would refuse it.
pub(crate) fn judge(text: &str) -> Result<Judged, Vec<String>> {
    let config = match NetConfig::check(text) {
        Ok(config) => config,
        Err(faults) => {
            let mut reasons: Vec<String> = faults.into_all().map(|f| f.to_string()).collect();
            let backend = backend_alone(text);
            if let Some(Err(refusals)) = backend.as_ref().map(backend::check) {
                reasons.extend(refusals.iter().map(ToString::to_string));
            }
            return Err(reasons);
        }
    };
    let of_backend = backend::check(&config)
        .map_err(|refusals| refusals.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let unknown = config.unknown.iter();
    let mut warnings: Vec<String> = unknown
        .map(|key| format!("key {key} is unknown and ignored"))
        .collect();
    warnings.extend(of_backend);
    Ok(Judged { config, warnings })
}

/// The backend of `text` in a network that is in order; `None` if it cannot be read.
fn backend_alone(text: &str) -> Option<NetConfig> {
    let members: Map<String, Value> = serde_json::from_str(text).ok()?;
    let mut found = members
        .iter()
        .filter(|(k, _)| k.eq_ignore_ascii_case("Backend"));
    let (_, backend) = found.next_back()?;
    NetConfig::check(&json!({"Network": "10.0.0.0/8", "Backend": backend}).to_string()).ok()
}

/// The configuration with its defaults written out; `text` is what it was read from. The options of
/// the backend are those of the text: their defaults are the backend's.
pub(crate) fn effective(config: &NetConfig, text: &str) -> Value {
    let mut all = Map::new();
    for family in Family::ALL {
        let (enable, infix) = match family {
            Family::V4 => ("EnableIPv4", ""),
            Family::V6 => ("EnableIPv6", "IPv6"),
        };
        let pool = config.pools.get(family);
        all.insert(enable.into(), pool.is_some().into());
        if let Some(pool) = pool {
            all.insert(format!("{infix}Network"), pool.network.to_string().into());
            all.insert(format!("{infix}SubnetLen"), pool.subnet_len.into());
            all.insert(format!("{infix}SubnetMin"), json!(pool.min));
            all.insert(format!("{infix}SubnetMax"), json!(pool.max));
        }
    }
    all.insert("EnableNFTables".into(), config.nftables.into());
    let mut backend = Map::new();
    backend.insert("Type".into(), config.backend.kind.as_str().into());
    let members: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let given = members
        .into_iter()
        .rfind(|(k, _)| k.eq_ignore_ascii_case("Backend"));
    if let Some((_, Value::Object(given))) = given {
        let options = given
            .into_iter()
            .filter(|(k, v)| !k.eq_ignore_ascii_case("Type") && !v.is_null());
        backend.extend(options);
    }
    all.insert("Backend".into(), backend.into());
    all.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_told_network_and_backend_alike() {
        let text = r#"{"Network":"10.0.0.0/8","SubnetLen":31,"IPv6Network":"x","EnableIPv6":true,
                       "Backend":{"Type":"vxlan","VNI":0,"Port":"x"}}"#;
        let reasons = judge(text).err().unwrap();
        let keys: Vec<&str> = reasons.iter().filter_map(|r| r.split(' ').next()).collect();
        assert_eq!(
            keys,
            ["SubnetLen", "IPv6Network", "Backend.VNI", "Backend.Port"]
        );
        assert_eq!(judge("[]").err().unwrap().len(), 1);
    }

    #[test]
    fn what_is_effective_is_what_was_meant() {
        let text =
            r#"{"network":"10.5.0.0/16","Nonsense":1,"BACKEND":{"type":"VXLAN","Port":4789}}"#;
        let judged = judge(text).unwrap();
        assert_eq!(judged.warnings, ["key Nonsense is unknown and ignored"]);
        let effective = effective(&judged.config, text);
        let wanted = json!({
            "EnableIPv4": true, "Network": "10.5.0.0/16", "SubnetLen": 24,
            "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.255.0",
            "EnableIPv6": false, "EnableNFTables": false,
            "Backend": {"Type": "vxlan", "Port": 4789},
        });
        assert_eq!(effective, wanted);
        let again = judge(&effective.to_string()).unwrap();
        assert_eq!(again.config.pools, judged.config.pools);
        assert!(again.warnings.is_empty());
    }
}
