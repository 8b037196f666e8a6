//! Where things lie in etcd: `PREFIX/config` and `PREFIX/subnets/172.30.80.0-24`.

use bytes::Bytes;
use ipnet::IpNet;
use model::SubnetKey;

/// The keys of one flannel network.
#[derive(Clone, Debug)]
pub(super) struct Keyspace {
    prefix: String,
    subnets: Bytes,
    subnets_end: Bytes,
}

impl Keyspace {
    /// The keys under `prefix`, which does not end in a slash.
    pub(super) fn new(prefix: String) -> Keyspace {
        let subnets = Bytes::from(format!("{prefix}/subnets/"));
        // '0' follows '/': the first key that does not begin with "PREFIX/subnets/".
        let subnets_end = Bytes::from(format!("{prefix}/subnets0"));
        Keyspace {
            prefix,
            subnets,
            subnets_end,
        }
    }

    pub(super) fn config(&self) -> String {
        format!("{}/config", self.prefix)
    }

    pub(super) fn subnet(&self, key: &SubnetKey) -> String {
        format!("{}/subnets/{key}", self.prefix)
    }

    /// What every subnet's key begins with.
    pub(super) fn below(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    /// What every key with this IPv4 subnet begins with.
    pub(super) fn subnet_v4(&self, net: IpNet) -> String {
        format!(
            "{}/subnets/{}-{}",
            self.prefix,
            net.network(),
            net.prefix_len()
        )
    }

    /// First and end of the range of all subnets.
    pub(super) fn subnets(&self) -> (Bytes, Bytes) {
        (self.subnets.clone(), self.subnets_end.clone())
    }

    /// The subnet that a key names, or the key as text if it names none.
    pub(super) fn parse(&self, key: &[u8]) -> Result<SubnetKey, String> {
        let name = key.strip_prefix(self.subnets.as_ref());
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        name.and_then(|name| name.parse().ok()).ok_or_else(|| {
            String::from_utf8_lossy(key)
                .chars()
                .flat_map(char::escape_debug)
                .take(200)
                .collect()
        })
    }
}
