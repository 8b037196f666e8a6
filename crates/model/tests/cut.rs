//! What a store holds, cut at every byte and with every byte replaced: refused or read, never a panic.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use model::{LeaseAttrs, NetConfig, SubnetKey};

const LEASE: &str = r#"{"PublicIP":"192.168.78.1","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"ce:9c:a9:08:50:03"},"BackendV6Data":{"VNI":1,"VtepMAC":"ce:9c:a9:08:50:04"}}"#;
const CONFIG: &str = r#"{"EnableIPv6":true,"Network":"10.20.0.0/16","SubnetLen":24,"SubnetMin":"10.20.1.0","SubnetMax":"10.20.9.0","IPv6Network":"fd00::/48","IPv6SubnetLen":64,"Backend":{"Type":"vxlan","VNI":1,"Port":8472}}"#;
const KEY: &str = "10.20.5.0-24&fd00:0:0:5::-64";

/// Hands on `text` cut at every byte, and with every byte replaced.
fn damaged(text: &str, mut read: impl FnMut(&[u8], bool)) {
    let bytes = text.as_bytes();
    for end in 0..bytes.len() {
        read(&bytes[..end], true);
    }
    for at in 0..bytes.len() {
        for by in [0, b'"', b'}', b'9', b'-', 0x7f, 0xff] {
            let mut bytes = bytes.to_vec();
            bytes[at] = by;
            read(&bytes, false);
        }
    }
}

#[test]
fn a_lease_that_is_cut_off_is_refused() {
    assert!(LeaseAttrs::from_json(LEASE.as_bytes()).is_ok());
    damaged(LEASE, |bytes, cut| {
        let read = LeaseAttrs::from_json(bytes);
        assert!(!cut || read.is_err(), "{bytes:?} was taken");
    });
}

#[test]
fn a_configuration_that_is_cut_off_is_refused() {
    assert!(NetConfig::from_json(CONFIG).is_ok());
    damaged(CONFIG, |bytes, cut| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        let read = NetConfig::from_json(text);
        assert!(!cut || read.is_err(), "{text} was taken");
    });
}

#[test]
fn a_key_that_is_damaged_is_read_or_refused() {
    assert!(KEY.parse::<SubnetKey>().is_ok());
    damaged(KEY, |bytes, _| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        // What is read names the same subnet when it is written.
        if let Ok(key) = text.parse::<SubnetKey>() {
            assert_eq!(key.to_string().parse::<SubnetKey>().unwrap(), key);
        }
    });
}
