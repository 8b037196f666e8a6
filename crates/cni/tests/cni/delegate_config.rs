//! What the delegate is given: golden files, byte for byte. `UPDATE_GOLDEN=1` writes them anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::json;

use crate::scene::Scene;

#[test]
fn the_delegates_configuration_is_the_golden_one() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<_> = fs::read_dir(&golden)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    assert!(cases.len() >= 10, "{cases:?}");
    for case in cases {
        let scene = Scene::new();
        let input = fs::read_to_string(case.join("stdin.json")).unwrap();
        scene.write("subnet.env", fs::read(case.join("subnet.env")).unwrap());
        // The golden input names the files as "SUBNET_ENV" and "DATA_DIR".
        let input = input
            .replace(
                "SUBNET_ENV",
                &scene.path("subnet.env").display().to_string(),
            )
            .replace("DATA_DIR", &scene.path("data").display().to_string());
        scene
            .run_with(&scene.vars("ADD"), input.as_bytes())
            .succeeded();

        let given = scene.read("bin/stdin.ADD");
        // Beside it, the file says which interface it is for.
        let saved = scene.read("data/c1");
        let (config, origin) = saved.split_once(",\"flannelAttachment\":").unwrap();
        assert!(origin.starts_with("{\"ifname\":\"eth0\""), "{origin}");
        assert_eq!(
            given,
            format!("{config}}}"),
            "{}: saved and given differ",
            case.display()
        );
        let file = case.join("delegate.json");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, format!("{given}\n")).unwrap();
        }
        let expected = fs::read_to_string(&file).unwrap();
        assert_eq!(given, expected.trim_end(), "{}", case.display());
    }
}

#[test]
fn what_contradicts_itself_is_refused_by_name() {
    let scene = Scene::new();
    for (more, named) in [
        (json!({"delegate": {"name": "x"}}), "\"name\""),
        (json!({"delegate": {"ipam": {}}}), "\"ipam\""),
        (
            json!({"delegate": {"type": 1}}),
            "\"type\" must be a string",
        ),
        (
            json!({"delegate": {"type": "../bin/bridge"}}),
            "\"../bin/bridge\" is not a plugin's name",
        ),
        (
            json!({"delegate": {"type": ".."}}),
            "\"..\" is not a plugin's name",
        ),
        (
            json!({"delegate": {"type": ""}}),
            "\"\" is not a plugin's name",
        ),
        (
            json!({"delegate": {"type": "flannel"}}),
            "is flannel itself",
        ),
        (json!({"delegate": []}), "\"delegate\" must be an object"),
        (json!({"ipam": "x"}), "\"ipam\" must be an object"),
        (json!({"ipam": {"routes": {}}}), "\"routes\" must be a list"),
        (json!({"name": null}), "\"name\" is missing"),
        (json!({"name": "../x"}), "\"../x\" is not a network's name"),
        (json!({"name": 7}), "\"name\" must be a string"),
        (json!({"dataDir": 7}), "\"dataDir\" must be a string"),
        (json!({"subnetFile": {}}), "\"subnetFile\" must be a string"),
        (
            json!({"repairBridge": "yes"}),
            "\"repairBridge\" must be true or false",
        ),
    ] {
        let said = scene.run("ADD", &scene.config(more)).failed(7);
        assert!(said.contains(named), "{said}");
    }
    assert_eq!(scene.calls(), "");
    assert!(!scene.path("data").exists(), "nothing was saved");
}

#[test]
fn every_version_is_taken_and_no_other() {
    let scene = Scene::new();
    for version in [
        "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
    ] {
        scene
            .run("ADD", &scene.config(json!({"cniVersion": version})))
            .succeeded();
        assert!(
            scene
                .read("bin/stdin.ADD")
                .contains(&format!("\"cniVersion\":\"{version}\""))
        );
        let answer = scene
            .run("VERSION", &json!({"cniVersion": version}))
            .succeeded()
            .json();
        assert_eq!(answer["cniVersion"], version);
        assert_eq!(answer["supportedVersions"].as_array().unwrap().len(), 7);
    }
    for version in ["1.2.0", "1.0", "v1.0.0", "0.0.1", "x"] {
        let said = scene
            .run("ADD", &scene.config(json!({"cniVersion": version})))
            .failed(1);
        assert!(said.contains(version) && said.contains("1.1.0"), "{said}");
    }
    // A runtime that sends nothing still learns what it needs.
    let vars = BTreeMap::from([("CNI_COMMAND".to_owned(), "VERSION".to_owned())]);
    let answer = scene.run_with(&vars, b"").succeeded().json();
    assert_eq!(answer["cniVersion"], "1.1.0");
}

#[test]
fn an_error_object_is_of_the_configurations_version() {
    let scene = Scene::new();
    for (given, answered) in [(json!("0.3.1"), "0.3.1"), (json!(null), "0.1.0")] {
        let config =
            scene.config(json!({"cniVersion": given, "subnetFile": "/nonexistent/subnet.env"}));
        let answer = scene.run("ADD", &config);
        answer.failed(11);
        assert_eq!(answer.json()["cniVersion"], answered);
    }
}

#[test]
fn what_subnet_env_lacks_is_all_listed() {
    let scene = Scene::new();
    let config = scene.config(json!({}));
    scene.write("subnet.env", "FLANNEL_SUBNET=172.30.80.1/24\nFLANNEL_MT");
    let said = scene.run("ADD", &config).failed(11);
    let file = scene.path("subnet.env").display().to_string();
    assert!(
        said.contains(&file)
            && said.contains("FLANNEL_NETWORK, FLANNEL_MTU, FLANNEL_IPMASQ missing"),
        "{said}"
    );

    scene.write("subnet.env", b"FLANNEL_NETWORK=\xff\n");
    assert!(scene.run("ADD", &config).failed(11).contains(&file));
    let comment = [b"# caf\xe9\n", crate::scene::ENV_V4.as_bytes()].concat();
    scene.write("subnet.env", comment);
    scene.run("ADD", &config).succeeded();
    scene.write("bin/calls", "");
    std::fs::remove_file(scene.path("subnet.env")).unwrap();
    let said = scene.run("ADD", &config).failed(11);
    assert!(
        said.contains(&file) && said.contains("does not exist"),
        "{said}"
    );
    assert_eq!(scene.calls(), "");
}

#[test]
fn keys_and_numbers_are_read_as_upstream_reads_them() {
    let scene = Scene::new();
    let run = |text: &[u8]| {
        scene.run_with(&scene.vars("ADD"), text).succeeded();
        let given = scene.read("bin/stdin.ADD");
        serde_json::from_str::<serde_json::Value>(&given).unwrap()
    };
    let (env, data) = (scene.path("subnet.env"), scene.path("data2"));
    let text = format!(
        r#"{{"CNIVersion":"1.0.0","Name":"n","SUBNETFILE":{env:?},"datadir":{data:?},
            "Delegate":{{"MTU":1400.0,"Type":"other"}},"delegate":{{"mark":1e2}},
            "IPAM":{{"TYPE":"x","Routes":[{{"DST":"172.30.0.0/16"}}]}},"RuntimeConfig":{{"a":2.0}}}}"#
    );
    let given = run(text.as_bytes());
    assert_eq!(
        given,
        json!({"cniVersion": "1.0.0", "name": "n", "MTU": 1400, "Type": "other", "mark": 100,
            "ipMasq": false, "runtimeConfig": {"a": 2},
            "ipam": {"TYPE": "x", "ranges": [[{"subnet": "172.30.80.0/24"}]],
                "routes": [{"DST": "172.30.0.0/16"}]}})
    );
    assert!(data.join("c1").exists());

    // Another spelling of what is ours to set is overwritten, not handed on beside it.
    let given = run(scene
        .config(json!({"delegate": {"NAME": "x", "IPAM": {"type": "y"}}}))
        .to_string()
        .as_bytes());
    assert_eq!(given["name"], "net");
    assert_eq!(given["ipam"]["type"], "host-local");
    assert!(given.get("NAME").is_none() && given.get("IPAM").is_none());

    // Not UTF-8, half a surrogate pair, and a long one.
    let mut text = scene.config(json!({})).to_string().into_bytes();
    text.pop();
    text.extend(b",\"x\":\"\xff\",\"delegate\":{\"a\\ud800\":\"\xfe\"},\"y\":\"");
    text.extend(vec![b'y'; 5 << 20]);
    text.extend(b"\"}");
    assert_eq!(run(&text)["a\u{fffd}"], "\u{fffd}");
}

#[test]
fn given_ranges_are_kept_where_they_lie_in_the_nodes_subnet_and_named_where_not() {
    let scene = Scene::new();
    let config = |start: &str| {
        scene.config(
            json!({"ipam": {"ranges": [[{"subnet": "172.30.0.0/16", "rangeStart": start}]]}}),
        )
    };
    scene.run("ADD", &config("172.30.80.9")).succeeded();
    let given: serde_json::Value = serde_json::from_str(&scene.read("bin/stdin.ADD")).unwrap();
    assert_eq!(
        given["ipam"]["ranges"],
        json!([[{"subnet": "172.30.80.0/24", "rangeStart": "172.30.80.9"}]])
    );
    let said = scene.run("ADD", &config("172.30.81.9")).failed(7);
    assert!(
        said.contains("\"rangeStart\": 172.30.81.9 is not in this node's subnet 172.30.80.0/24"),
        "{said}"
    );
    // A container of before is deleted all the same.
    scene.write("data/c1", "");
    scene.run("DEL", &config("172.30.81.9")).succeeded();
    assert!(!scene.path("data/c1").exists());
}
