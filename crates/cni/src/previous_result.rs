//! The runtime's `prevResult`, made fit for the delegates' CHECK.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::object::Object;

/// Returns `result` with a gateway in each of its routes: where none is given, the address's own, as the plugins do when
/// they add the route. Their CHECK (seen in 1.1.1's bridge) searches the kernel for a route without any, does not find
/// it, and calls every healthy container broken.
pub fn with_gateways(result: &RawValue) -> Box<RawValue> {
    #[derive(Deserialize)]
    struct Address {
        gateway: Option<IpAddr>,
    }
    let complete = || {
        let mut object: Object = serde_json::from_str(result.get()).ok()?;
        let addresses: Vec<Address> = object.decode("ips").ok()??;
        let mut routes: Vec<Object> = object.decode("routes").ok()??;
        for route in &mut routes {
            let given: Option<String> = route.decode("gw").ok()?;
            let dst: IpNet = route.decode::<String>("dst").ok()??.parse().ok()?;
            let own = addresses
                .iter()
                .filter_map(|address| address.gateway)
                .find(|gateway| gateway.is_ipv4() == dst.addr().is_ipv4());
            if let (None | Some(""), Some(own)) = (given.as_deref(), own) {
                route.set("gw", &own.to_string()).ok()?;
            }
        }
        object.set("routes", &routes).ok()?;
        serde_json::value::to_raw_value(&object).ok()
    };
    complete().unwrap_or_else(|| result.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_without_a_gateway_gets_its_familys() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let result = raw(
            r#"{"odd":1.50,"ips":[{"address":"10.1.2.2/24","gateway":"10.1.2.1"},{"address":"fd00::2/64","gateway":"fd00::1"},{"address":"10.9.9.9/32"}],"routes":[{"dst":"10.0.0.0/8","mtu":9},{"dst":"::/0","gw":""},{"dst":"0.0.0.0/0","gw":"10.1.2.9"}]}"#,
        );
        let expected = r#"{"odd":1.50,"ips":[{"address":"10.1.2.2/24","gateway":"10.1.2.1"},{"address":"fd00::2/64","gateway":"fd00::1"},{"address":"10.9.9.9/32"}],"routes":[{"dst":"10.0.0.0/8","mtu":9,"gw":"10.1.2.1"},{"dst":"::/0","gw":"fd00::1"},{"dst":"0.0.0.0/0","gw":"10.1.2.9"}]}"#;
        assert_eq!(with_gateways(&result).get(), expected);

        // What cannot be understood, or needs nothing, stays as it is.
        for text in [
            "7",
            r#"{"ip4":{"ip":"10.1.2.2/24"}}"#,
            r#"{"ips":[{"gateway":"x"}],"routes":[]}"#,
            r#"{"ips":[],"routes":[{"dst":"somewhere"}]}"#,
            r#"{"ips":[],"routes":[{"dst":"10.0.0.0/8"}]}"#,
        ] {
            assert_eq!(with_gateways(&raw(text)).get(), text);
        }
    }

    #[test]
    fn fuzzed_results() {
        fuzz::run(
            "previous result",
            &[br#"{"odd":1.50,"ips":[{"address":"10.1.2.2/24","gateway":"10.1.2.1"},{"address":"fd00::2/64","gateway":"fd00::1"}],"routes":[{"dst":"10.0.0.0/8","mtu":9},{"dst":"::/0","gw":""}]}"#],
            |input| {
                let text = String::from_utf8_lossy(input).into_owned();
                let raw = RawValue::from_string(text).ok()?;
                Some(with_gateways(&raw).get().len())
            },
        );
    }
}
