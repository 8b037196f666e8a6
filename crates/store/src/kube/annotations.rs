//! The annotations under which nodes publish their leases on their Nodes, and the prefix before them.

use super::settings::KubeSettingsError;

/// An annotation of ours, without its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// "true" on a Node that runs flannel.
    Managed,
    /// The backend's name.
    BackendType,
    /// Its data for an IPv4 underlay, JSON.
    BackendData,
    /// The same for IPv6.
    BackendV6Data,
    /// What else it serves, JSON.
    BackendAlso,
    /// What peers send to.
    PublicIp,
    /// The same for IPv6.
    PublicIpv6,
    /// What an administrator wants published in place of it.
    PublicIpOverwrite,
    /// The same for IPv6.
    PublicIpv6Overwrite,
    /// What an administrator wants the node to use as its public address.
    NodePublicIp,
    /// The same for IPv6.
    NodePublicIpv6,
}

impl Key {
    /// All of them; the first [`Key::PUBLISHED`] are what a node publishes.
    pub(super) const ALL: [Key; 11] = [
        Key::Managed,
        Key::BackendType,
        Key::BackendData,
        Key::BackendV6Data,
        Key::BackendAlso,
        Key::PublicIp,
        Key::PublicIpv6,
        Key::PublicIpOverwrite,
        Key::PublicIpv6Overwrite,
        Key::NodePublicIp,
        Key::NodePublicIpv6,
    ];
    /// How many of [`Key::ALL`] a node publishes.
    const PUBLISHED: usize = 7;

    /// Returns what a node publishes.
    pub(super) fn published() -> impl Iterator<Item = Key> {
        Key::ALL.into_iter().take(Key::PUBLISHED)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Key::Managed => "kube-subnet-manager",
            Key::BackendType => "backend-type",
            Key::BackendData => "backend-data",
            Key::BackendV6Data => "backend-v6-data",
            Key::BackendAlso => "backend-also",
            Key::PublicIp => "public-ip",
            Key::PublicIpv6 => "public-ipv6",
            Key::PublicIpOverwrite => "public-ip-overwrite",
            Key::PublicIpv6Overwrite => "public-ipv6-overwrite",
            Key::NodePublicIp => "node-public-ip",
            Key::NodePublicIpv6 => "node-public-ipv6",
        }
    }
}

/// The values of our annotations on one Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Annotations<T>([Option<T>; Key::ALL.len()]);

impl<T> Annotations<T> {
    pub(super) fn get(&self, key: Key) -> Option<&T> {
        self.0.get(key as usize).and_then(Option::as_ref)
    }

    pub(super) fn set(&mut self, key: Key, value: Option<T>) {
        if let Some(place) = self.0.get_mut(key as usize) {
            *place = value;
        }
    }

    /// Takes in an annotation by its name on the Node, if it is one of ours.
    pub(super) fn take_in(&mut self, prefix: &Prefix, name: &str, value: impl FnOnce() -> T) {
        if let Some(name) = name.strip_prefix(prefix.0.as_str())
            && let Some(key) = Key::ALL.into_iter().find(|key| key.name() == name)
        {
            self.set(key, Some(value()));
        }
    }

    pub(super) fn map<U>(&self, f: impl Fn(&T) -> U) -> Annotations<U> {
        Annotations(std::array::from_fn(|i| self.0[i].as_ref().map(&f)))
    }
}

/// The prefix of the name of each annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefix(String);

impl Prefix {
    /// Parses the flag: `flannel.alpha.coreos.com` is followed by `/`, `example.com/net` by `-`.
    pub(super) fn parse(text: &str) -> Result<Prefix, KubeSettingsError> {
        let bad = |problem| Err(KubeSettingsError::Prefix(text.into(), problem));
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '/');
        let domain = text.split('/').next().unwrap_or_default();
        let slashes = text.matches('/').count();
        if !is_domain(domain) || !text.chars().all(plain) {
            return bad(
                "expected a domain such as flannel.alpha.coreos.com, in lower case, of letters, digits, - and .",
            );
        }
        if slashes > 1 {
            return bad("expected at most one /");
        }
        Ok(Prefix(match slashes {
            0 => format!("{text}/"),
            _ if text.ends_with(['/', '-']) => text.into(),
            _ => format!("{text}-"),
        }))
    }

    /// Returns the whole name of an annotation.
    pub(super) fn name(&self, key: Key) -> String {
        format!("{}{}", self.0, key.name())
    }
}

/// Whether Kubernetes takes the domain for the first part of an annotation's name.
fn is_domain(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        let ends = bytes.first().into_iter().chain(bytes.last());
        !bytes.is_empty()
            && ends.copied().all(inner)
            && bytes.iter().all(|c| inner(*c) || *c == b'-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_joined_as_the_contract_says() {
        for (text, name) in [
            (
                "flannel.alpha.coreos.com",
                "flannel.alpha.coreos.com/public-ip",
            ),
            ("example.com/", "example.com/public-ip"),
            ("example.com/net", "example.com/net-public-ip"),
            ("example.com/net-", "example.com/net-public-ip"),
        ] {
            assert_eq!(Prefix::parse(text).unwrap().name(Key::PublicIp), name);
        }
        for text in [
            "", "/", "/a", "a/b/c", "a b", "a\"b", "a_b", "A", "-a/b", "a-", "a..b", "a.",
        ] {
            let error = Prefix::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("-kube-annotation-prefix"), "{error}");
        }
    }

    #[test]
    fn keys_stand_where_their_number_says() {
        assert!(
            Key::ALL
                .iter()
                .enumerate()
                .all(|(i, key)| *key as usize == i)
        );
        let prefix = Prefix::parse("a").unwrap();
        let mut all = Annotations::default();
        for name in [
            "a/public-ip",
            "a/other",
            "b/backend-type",
            "public-ip",
            "a/",
        ] {
            all.take_in(&prefix, name, || name);
        }
        assert_eq!(all.get(Key::PublicIp), Some(&"a/public-ip"));
        assert_eq!(all.get(Key::BackendType), None);
    }
}
