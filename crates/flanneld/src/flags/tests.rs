//! Tests of `flags`.

use super::*;

fn given(args: &[&str], env: &[(&str, &str)]) -> Result<Given, clap::Error> {
    let env = |name: &str| {
        env.iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| (*v).to_owned())
    };
    parse(args.iter().map(|s| (*s).to_owned()), env)
}

#[test]
fn every_way_of_writing_a_flag_is_read() {
    for args in [["-iface", "eth1"], ["--iface", "eth1"]] {
        assert_eq!(given(&args, &[]).unwrap().values("iface"), ["eth1"]);
    }
    for arg in ["-iface=eth1", "--iface=eth1"] {
        assert_eq!(given(&[arg], &[]).unwrap().values("iface"), ["eth1"]);
    }
    for (arg, value) in [
        ("-ip-masq", "true"),
        ("--ip-masq=false", "false"),
        ("-ip-masq=true", "true"),
    ] {
        assert_eq!(given(&[arg], &[]).unwrap().value("ip-masq"), value);
    }
    let g = given(
        &[
            "-iface",
            "-x",
            "-v",
            "4",
            "-iface=b",
            "-etcd-prefix=/a=b",
            "-v=5",
        ],
        &[],
    )
    .unwrap();
    assert_eq!(g.values("iface"), ["-x", "b"]);
    assert_eq!((g.value("v"), g.value("etcd-prefix")), ("5", "/a=b"));
}

#[test]
fn the_command_line_beats_the_environment_and_empty_is_unset() {
    let env = [
        ("FLANNELD_ETCD_PREFIX", "/env"),
        ("FLANNELD_IFACE", "eth9"),
        ("FLANNELD_PUBLIC_IP", ""),
    ];
    let g = given(&["-etcd-prefix=/line"], &env).unwrap();
    assert_eq!(g.value("etcd-prefix"), "/line");
    assert_eq!(g.values("iface"), ["eth9"]);
    assert_eq!(g.value("public-ip"), "");
    assert_eq!(g.spelled("iface"), "FLANNELD_IFACE=eth9");
    assert_eq!(g.spelled("etcd-prefix"), "-etcd-prefix /line");
}

#[test]
fn what_is_no_flag_is_a_usage_error() {
    for args in [
        &["-no-such-flag"][..],
        &["-ip-masq", "true"],
        &["stray"],
        &["-iface"],
        &["-v4"],
    ] {
        let error = given(args, &[]).err().unwrap();
        assert_eq!(error.exit_code(), 2, "{args:?}");
    }
    let stray = given(&["-ip-masq", "true"], &[]).err().unwrap().to_string();
    assert!(stray.contains("write -ip-masq=true"), "{stray}");
    for args in [["-h"], ["-help"], ["--help"]] {
        assert_eq!(given(&args, &[]).err().unwrap().exit_code(), 0);
    }
}
