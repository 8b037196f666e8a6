//! What people and other programs write into a store: read without a panic, and read again as written.

use model::{LeaseAttrs, NetConfig, SubnetKey};

fn text(input: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(input)
}

#[test]
fn fuzzed_network_configurations() {
    fuzz::run(
        "network configuration",
        &[
            br#"{"Network":"10.244.0.0/16","SubnetLen":24,"SubnetMin":"10.244.1.0","SubnetMax":"10.244.9.0","Backend":{"Type":"vxlan","VNI":1,"Port":8472,"DirectRouting":true,"MTU":1450,"GBP":false,"Learning":false}}"#,
            br#"{"EnableIPv4":true,"EnableIPv6":true,"EnableNFTables":true,"Network":"10.0.0.0/8","IPv6Network":"fd00::/48","IPv6SubnetLen":64,"IPv6SubnetMin":"fd00:0:0:1::","Backend":{"Type":"host-gw"}}"#,
            br#"{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard","PSK":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","ListenPort":51820,"ListenPortV6":51821,"PersistentKeepaliveInterval":25,"Mode":"auto"}}"#,
            br#"{"Network":"10.0.0.0/8","Backend":{"Type":"ipsec","PSK":"0123456789abcdef","UDPEncap":true,"ESPProposal":"aes128gcm16-sha256"}}"#,
            br#"{"Network":"10.0.0.0/8","Backend":{"Type":"extension","PreStartupCommand":"ip link","PostStartupCommand":"echo","SubnetAddCommand":"a","SubnetRemoveCommand":"b"}}"#,
            br#"{"Network":"10.0.0.0/8","Backend":{"Type":"udp","Port":8285}}"#,
            br#"{"Network":"10.0.0.0/8","Backend":{"Type":"ipip","DirectRouting":1}}"#,
        ],
        |input| match NetConfig::check(&text(input)) {
            Ok(config) => {
                let key: SubnetKey = "10.244.3.0-24".parse().unwrap();
                let mut picks = 0;
                let picked = model::pool::choose_among(100, &config, &[key], Some(&key), |n| {
                    picks += 1;
                    n / 2
                });
                if let Ok(picked) = picked {
                    assert!(config.fits(&picked), "{picked} does not fit");
                }
                (true, config.fits(&key), picks)
            }
            Err(faults) => {
                let length = |fault: model::ConfigError| fault.to_string().len();
                (false, false, faults.into_all().map(length).sum())
            }
        },
    );
}

#[test]
fn fuzzed_lease_values() {
    fuzz::run(
        "lease value",
        &[
            br#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#,
            br#"{"PublicIP":"10.0.0.1","PublicIPv6":"fd00::1","BackendType":"wireguard","BackendData":{"PublicKey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},"BackendV6Data":{}}"#,
            br#"{"PublicIP":"10.0.0.1","BackendType":"vxlan","BackendData":null,"Also":[{"BackendType":"host-gw","BackendData":{}}],"Claimant":"00000000000000ff"}"#,
        ],
        |input| match LeaseAttrs::from_json(input) {
            Ok(attrs) => {
                let json = attrs.to_json();
                let again = LeaseAttrs::from_json(json.as_bytes()).unwrap();
                assert_eq!(again, attrs, "{json}");
                (true, attrs.data.iter().count(), attrs.backend_type.is_some())
            }
            Err(bad) => (false, bad.to_string().len(), false),
        },
    );
}

#[test]
fn fuzzed_subnet_keys() {
    fuzz::run(
        "subnet key",
        &[
            b"172.30.80.0-24",
            b"172.30.80.0-24&fd00:1:2::-64",
            b"0.0.0.0-0&fd00:1:2::-64",
        ],
        |input| {
            let key: Option<SubnetKey> = text(input).parse().ok();
            if let Some(key) = &key {
                assert_eq!(key.to_string().parse().as_ref(), Ok(key));
                assert!(key.overlaps(key));
            }
            key.map(|key| (key.nets().v4.is_some(), key.nets().v6.is_some()))
        },
    );
}
