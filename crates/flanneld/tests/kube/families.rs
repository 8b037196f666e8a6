//! IPv6 alone, and both families: a change of one alone is a change.

use crate::scene::{self, Peer, SOON, annotate, annotations, asked, becomes, data, loses, shows};

#[test]
fn in_dual_stack_either_family_is_followed_alone() {
    let Some(lab) = scene::lab("dual-stack", |lab| lab.dual()) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let mut peer = Peer::new(
        "p1",
        "172.30.101.0/24",
        "192.168.78.101",
        "4e:00:00:00:00:01",
    );
    peer.cidrs.push("fd00:30:0:65::/64");
    peer.annotations
        .push(("backend-v6-data", data("4e:00:00:00:00:61")));
    peer.annotations
        .push(("public-ipv6", "fd78:78::101".into()));
    peer.create(kube);
    lab.start().unwrap();
    lab.wait_mesh(SOON).unwrap();
    let one = lab.node(1);
    let names: Vec<String> = annotations(kube, "n1")
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        names,
        [
            "backend-data",
            "backend-type",
            "backend-v6-data",
            "kube-subnet-manager",
            "public-ip",
            "public-ipv6"
        ]
    );
    becomes(kube, "n1", "False");
    shows(one, &["4e:00:00:00:00:01", "dst 192.168.78.101"]);
    shows(one, &["4e:00:00:00:00:61", "dst fd78:78::101"]);

    annotate(kube, "p1", &[("public-ipv6", Some("fd78:78::111"))]);
    shows(one, &["4e:00:00:00:00:61", "dst fd78:78::111"]);
    loses(one, &["dst fd78:78::101"]);
    annotate(
        kube,
        "p1",
        &[("backend-v6-data", Some(&data("4e:00:00:00:00:62")))],
    );
    shows(one, &["4e:00:00:00:00:62", "dst fd78:78::111"]);
    loses(one, &["4e:00:00:00:00:61"]);
    annotate(kube, "p1", &[("public-ip", Some("192.168.78.111"))]);
    shows(one, &["4e:00:00:00:00:01", "dst 192.168.78.111"]);
    loses(one, &["dst 192.168.78.101"]);
    annotate(
        kube,
        "p1",
        &[("backend-data", Some(&data("4e:00:00:00:00:02")))],
    );
    shows(one, &["4e:00:00:00:00:02", "dst 192.168.78.111"]);
    loses(one, &["4e:00:00:00:00:01"]);
    asked(kube);
}

#[test]
fn ipv6_alone() {
    let Some(lab) = scene::lab("IPv6 alone", |lab| lab.ipv4(false).ipv6(true)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    lab.start().unwrap();
    lab.wait_mesh(SOON).unwrap();
    let all = annotations(kube, "n1");
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "backend-type",
            "backend-v6-data",
            "kube-subnet-manager",
            "public-ipv6"
        ]
    );
    becomes(kube, "n1", "False");
    asked(kube);
}
