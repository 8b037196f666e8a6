//! `ipam.ranges`: this node's subnets, narrowed by what an administrator gave.
//!
//! Ranges that name another subnet are replaced, since one configuration serves all nodes. What narrows a range, such as
//! `rangeStart`, keeps addresses free for somebody: it is kept where it lies in the node's subnet, and otherwise refused.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::value::RawValue;

use crate::failure::{Code, Failure, note};
use crate::object::Object;
use crate::request::short;

/// The keys of a range that hold one address each.
const ADDRESSES: [&str; 3] = ["rangeStart", "rangeEnd", "gateway"];

/// Returns the sets of ranges for `subnets`: for each, the given ones that lie in it, or else all of it.
///
/// # Errors
/// [`Code::InvalidConfig`] with the key and the value that lies elsewhere.
pub fn ranges(given: Option<&RawValue>, subnets: &[IpNet]) -> Result<Vec<Vec<Object>>, Failure> {
    let mut placed: Vec<Vec<Vec<Object>>> = vec![Vec::new(); subnets.len()];
    for set in sets(given) {
        let mut of_set: Vec<Vec<Object>> = vec![Vec::new(); subnets.len()];
        for range in set {
            if let Some((place, range)) = place(range, subnets)?
                && let Some(ranges) = of_set.get_mut(place)
            {
                ranges.push(range);
            }
        }
        for (all, ranges) in placed.iter_mut().zip(of_set) {
            if !ranges.is_empty() {
                all.push(ranges);
            }
        }
    }
    for (sets, subnet) in placed.iter_mut().zip(subnets) {
        if sets.is_empty() {
            sets.push(vec![with_subnet(Object::default(), subnet)?]);
        }
    }
    Ok(placed.into_iter().flatten().collect())
}

/// Returns the given sets. What is no list of ranges says nothing about this node, and is replaced as upstream does.
fn sets(given: Option<&RawValue>) -> Vec<Vec<Object>> {
    let Some(given) = given.filter(|value| value.get() != "null") else {
        return Vec::new();
    };
    let decode = |text| serde_json::from_str::<Vec<Box<RawValue>>>(text).ok();
    let sets = decode(given.get()).and_then(|list| {
        list.iter()
            .map(|set| {
                serde_json::from_str::<Vec<Object>>(set.get())
                    .or_else(|_| serde_json::from_str(set.get()).map(|range| vec![range]))
                    .ok()
            })
            .collect::<Option<Vec<_>>>()
    });
    sets.unwrap_or_else(|| {
        note(format_args!(
            "\"ipam\": \"ranges\" is not a list of lists of ranges: replaced by this node's subnets"
        ));
        Vec::new()
    })
}

/// Finds the subnet that a given range lies in; `None` for a range that is no more than a subnet.
fn place(range: Object, subnets: &[IpNet]) -> Result<Option<(usize, Object)>, Failure> {
    let mut place = None;
    for (key, text) in addresses(&range)? {
        let Some(net) = net(&text) else {
            return Err(Failure::new(
                Code::InvalidConfig,
                format!(
                    "\"ipam\": \"ranges\": {key:?}: {:?} is not an address",
                    short(&text)
                ),
            ));
        };
        let found = subnets.iter().position(|subnet| subnet.contains(&net));
        if found.is_none() || place.is_some_and(|place| Some(place) != found) {
            let subnets: Vec<String> = subnets.iter().map(IpNet::to_string).collect();
            return Err(Failure::new(
                Code::InvalidConfig,
                format!(
                    "\"ipam\": \"ranges\": {key:?}: {text} is not in this node's subnet {}{}",
                    subnets.join(", "),
                    if found.is_some() { " that the range's other addresses are in" } else { "" }
                ),
            )
            .advise("remove it, or give each node a configuration of its own: every node has another subnet"));
        }
        place = found;
    }
    let given: Option<String> = range.decode("subnet").ok().flatten();
    let given = given.as_deref().and_then(net);
    let more = range.keys().any(|key| !key.eq_ignore_ascii_case("subnet"));
    let related = |subnet: &&IpNet| {
        given.is_some_and(|given| given.contains(*subnet) || subnet.contains(&given))
    };
    if place.is_none() {
        match (given, subnets.iter().position(|subnet| related(&subnet))) {
            (Some(given), None) => note(format_args!(
                "\"ipam\": \"ranges\": \"subnet\" {given} is replaced by this node's"
            )),
            (_, found) if more => place = found.or((!subnets.is_empty()).then_some(0)),
            _ => {}
        }
    }
    let Some((place, subnet)) = place.and_then(|place| Some((place, subnets.get(place)?))) else {
        return Ok(None);
    };
    Ok(Some((place, with_subnet(range, subnet)?)))
}

/// Returns what a range says about single addresses, with the key.
fn addresses(range: &Object) -> Result<Vec<(&'static str, String)>, Failure> {
    let not = |key: &str, what: &str| {
        Failure::new(
            Code::InvalidConfig,
            format!("\"ipam\": \"ranges\": {key:?} must be {what}"),
        )
    };
    let mut found = Vec::new();
    for key in ADDRESSES {
        let text: Option<String> = range.decode(key).map_err(|_| not(key, "an address"))?;
        found.extend(text.filter(|text| !text.is_empty()).map(|text| (key, text)));
    }
    let excluded = range
        .decode::<Vec<String>>("exclude")
        .or_else(|_| range.decode("exclude").map(|one| one.map(|one| vec![one])))
        .map_err(|_| not("exclude", "a list of addresses or subnets"))?;
    found.extend(excluded.into_iter().flatten().map(|text| ("exclude", text)));
    Ok(found)
}

/// Returns an address or a subnet; an address is a subnet of one.
fn net(text: &str) -> Option<IpNet> {
    let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(one)
}

fn with_subnet(mut range: Object, subnet: &IpNet) -> Result<Object, Failure> {
    range
        .set("subnet", &subnet.to_string())
        .map_err(|error| Failure::new(Code::InvalidConfig, format!("\"ipam\": {error}")))?;
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(given: &str, subnets: &str) -> Result<String, String> {
        let raw = RawValue::from_string(given.to_owned()).unwrap();
        let subnets: Vec<IpNet> = subnets.split(' ').map(|net| net.parse().unwrap()).collect();
        ranges(Some(&raw), &subnets)
            .map(|sets| serde_json::to_string(&sets).unwrap())
            .map_err(|failure| failure.msg)
    }

    #[test]
    fn what_lies_in_the_nodes_subnet_is_kept() {
        let v4 = "10.1.2.0/24";
        let dual = "10.1.2.0/24 fd00::/64";
        let all = r#"[[{"subnet":"10.1.2.0/24"}]]"#;
        for (given, subnets, expected) in [
            ("null", v4, all),
            ("[]", v4, all),
            ("\"x\"", v4, all),
            (r#"[[{"subnet":"1.2.3.0/24"}]]"#, v4, all),
            (
                r#"[[{"subnet":"10.1.0.0/16"},{"subnet":"fd00::/48"}]]"#,
                v4,
                all,
            ),
            (
                r#"[[{"rangeStart":"10.1.2.50","RangeEnd":"10.1.2.99","x":1}]]"#,
                v4,
                r#"[[{"rangeStart":"10.1.2.50","RangeEnd":"10.1.2.99","x":1,"subnet":"10.1.2.0/24"}]]"#,
            ),
            (
                r#"[{"subnet":"10.1.0.0/16","gateway":"10.1.2.9","exclude":["10.1.2.64/26"]}]"#,
                v4,
                r#"[[{"subnet":"10.1.2.0/24","gateway":"10.1.2.9","exclude":["10.1.2.64/26"]}]]"#,
            ),
            (
                r#"[[{"rangeStart":"fd00::9"}]]"#,
                dual,
                r#"[[{"subnet":"10.1.2.0/24"}],[{"rangeStart":"fd00::9","subnet":"fd00::/64"}]]"#,
            ),
            (
                r#"[[{"rangeStart":"fd00::9"}],[{"rangeEnd":"10.1.2.9"},{"rangeStart":"10.1.2.20"}]]"#,
                dual,
                r#"[[{"rangeEnd":"10.1.2.9","subnet":"10.1.2.0/24"},{"rangeStart":"10.1.2.20","subnet":"10.1.2.0/24"}],[{"rangeStart":"fd00::9","subnet":"fd00::/64"}]]"#,
            ),
        ] {
            assert_eq!(made(given, subnets).as_deref(), Ok(expected), "{given}");
        }
    }

    #[test]
    fn what_lies_elsewhere_is_named() {
        for (given, named) in [
            (
                r#"[[{"rangeStart":"10.9.9.9"}]]"#,
                "\"rangeStart\": 10.9.9.9 is not in this node's subnet 10.1.2.0/24, fd00::/64",
            ),
            (r#"[[{"RangeEnd":"10.1.3.0"}]]"#, "\"rangeEnd\": 10.1.3.0"),
            (
                r#"[[{"gateway":"x"}]]"#,
                "\"gateway\": \"x\" is not an address",
            ),
            (r#"[[{"gateway":7}]]"#, "\"gateway\" must be an address"),
            (
                r#"[[{"exclude":["10.1.0.0/16"]}]]"#,
                "\"exclude\": 10.1.0.0/16",
            ),
            (r#"[[{"exclude":{}}]]"#, "\"exclude\" must be a list"),
            (
                r#"[[{"rangeStart":"10.1.2.9","gateway":"fd00::1"}]]"#,
                "other addresses",
            ),
        ] {
            let said = made(given, "10.1.2.0/24 fd00::/64").unwrap_err();
            assert!(said.contains(named), "{said}");
        }
    }
}
