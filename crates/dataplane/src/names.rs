//! Which devices are flannel's, by what they are called and what they are.

/// Whether a device of this name and kind is one that a flannel made: `None` for a name that no
/// flannel gives, `Some(false)` for a device that bears such a name and is something else.
///
/// `vni` is the number of a vxlan device, which is part of its name.
pub fn is_flannels(name: &str, kind: &str, vni: Option<u32>) -> Option<bool> {
    let number = |prefix| name.strip_prefix(prefix).and_then(numbered);
    if let Some(named) = number("flannel.").or_else(|| number("flannel-v6.")) {
        return Some(kind == "vxlan" && vni == Some(named));
    }
    match name {
        "flannel.ipip" => Some(kind == "ipip"),
        // In user space a TUN device.
        "flannel-wg" | "flannel-wg-v6" => Some(kind == "wireguard" || kind == "tun"),
        // The udp backend's; it goes with its daemon, unless somebody made it last.
        _ => number("flannel").map(|_| kind == "tun"),
    }
}

/// A number as flannel writes it: no sign, no zeros before it.
fn numbered(text: &str) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_kinds_must_agree() {
        for (name, kind, vni, wanted) in [
            ("flannel.1", "vxlan", Some(1), Some(true)),
            ("flannel-v6.4096", "vxlan", Some(4096), Some(true)),
            ("flannel.1", "vxlan", Some(2), Some(false)),
            ("flannel.1", "dummy", None, Some(false)),
            ("flannel.01", "vxlan", Some(1), None),
            ("flannel.1", "", None, Some(false)),
            ("flannel.ipip", "ipip", None, Some(true)),
            ("flannel.ipip", "sit", None, Some(false)),
            ("flannel-wg", "wireguard", None, Some(true)),
            ("flannel-wg-v6", "wireguard", None, Some(true)),
            ("flannel-wg", "tun", None, Some(true)),
            ("flannel0", "tun", None, Some(true)),
            ("flannel0", "veth", None, Some(false)),
            ("flannel", "vxlan", Some(1), None),
            ("flannelx", "vxlan", Some(1), None),
            ("my-flannel.1", "vxlan", Some(1), None),
            ("vxlan1", "vxlan", Some(1), None),
            ("flannel.+1", "vxlan", Some(1), None),
        ] {
            assert_eq!(is_flannels(name, kind, vni), wanted, "{name} {kind}");
        }
    }
}
