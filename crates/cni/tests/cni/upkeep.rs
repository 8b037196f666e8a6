//! STATUS and GC against recorders.

use std::fs;

use serde_json::{Value, json};

use crate::scene::Scene;

const SPEAKS_1_1: &str = r#"{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}"#;

#[test]
fn status_says_why_an_add_would_fail() {
    let scene = Scene::new();
    let config = scene.config(json!({"cniVersion": "1.1.0"}));
    scene.write("bin/answer.VERSION", SPEAKS_1_1);
    scene.run("STATUS", &config).succeeded();
    assert_eq!(scene.calls(), "VERSION c1\nSTATUS c1\n");
    assert!(scene.read("bin/stdin.STATUS").contains("172.30.80.0/24"));

    scene.write("bin/answer.STATUS", "{\"code\":51,\"msg\":\"limited\"}");
    scene.write("bin/exit.STATUS", "1");
    assert_eq!(
        scene.run("STATUS", &config).text(),
        "{\"code\":51,\"msg\":\"limited\"}"
    );

    // A delegate that would refuse the configuration's version, and one that does not say.
    scene.write(
        "bin/answer.VERSION",
        r#"{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}"#,
    );
    let said = scene.run("STATUS", &config).failed(50);
    assert!(
        said.contains("bridge does not speak CNI 1.1.0") && said.contains("0.4.0, 1.0.0"),
        "{said}"
    );
    scene.write("bin/answer.VERSION", "hello");
    scene.run("STATUS", &config).succeeded();

    fs::remove_file(scene.path("bin/bridge")).unwrap();
    assert!(
        scene
            .run("STATUS", &config)
            .failed(50)
            .contains("no plugin \"bridge\"")
    );
    scene.write("subnet.env", "FLANNEL_NETWORK=x\n");
    assert!(
        scene
            .run("STATUS", &config)
            .failed(50)
            .contains("FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ missing")
    );
    fs::remove_file(scene.path("subnet.env")).unwrap();
    let said = scene.run("STATUS", &config).failed(50);
    assert!(
        said.contains("subnet.env does not exist") && said.contains("flanneld"),
        "{said}"
    );

    // A wrong configuration is wrong, not unavailable.
    scene.write("subnet.env", crate::scene::ENV_V4);
    let wrong = json!({"cniVersion": "1.1.0", "delegate": {"type": "a/b"}});
    scene.run("STATUS", &scene.config(wrong)).failed(7);
    scene
        .run(
            "STATUS",
            &scene.config(json!({"cniVersion": "1.1.0", "name": "/"})),
        )
        .failed(7);
    for command in ["STATUS", "GC"] {
        assert!(
            scene
                .run(command, &scene.config(json!({})))
                .failed(1)
                .contains("1.0.0")
        );
    }
}

/// A scene with the containers a, b and c of the network "net" and f of another.
fn with_containers(scene: &Scene) -> Value {
    let config = scene.config(json!({"cniVersion": "1.1.0"}));
    let foreign = scene.config(json!({"cniVersion": "1.1.0", "name": "foreign"}));
    for (container, config) in [
        ("a", &config),
        ("b", &config),
        ("c", &config),
        ("f", &foreign),
    ] {
        let mut vars = scene.vars("ADD");
        vars.insert("CNI_CONTAINERID".into(), container.into());
        scene
            .run_with(&vars, config.to_string().as_bytes())
            .succeeded();
    }
    scene.write("bin/calls", "");
    config
}

fn kept(scene: &Scene) -> Vec<String> {
    let entries = fs::read_dir(scene.path("data")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn gc_forgets_the_containers_of_this_network_that_are_no_more() {
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let scene = Scene::new();
        let mut config = with_containers(&scene);
        scene.write("bin/answer.VERSION", SPEAKS_1_1);
        config[key] = json!([{"containerID": "b", "ifname": "eth0"}, {"containerID": "zz", "ifname": "eth0"}]);
        scene.run("GC", &config).succeeded();
        assert_eq!(kept(&scene), ["b", "f"]);
        let asked: Vec<String> = scene.calls().lines().map(ToOwned::to_owned).collect();
        assert_eq!(asked, ["DEL a", "DEL c", "VERSION c1", "GC c1"]);
        assert!(
            scene.read("bin/env.DEL").contains("CNI_NETNS=\n"),
            "the namespace is gone"
        );
        let given: Value = serde_json::from_str(&scene.read("bin/stdin.GC")).unwrap();
        assert_eq!(given["cni.dev/valid-attachments"], config[key]);
        assert_eq!(
            given["ipam"]["ranges"],
            json!([[{"subnet": "172.30.80.0/24"}]])
        );

        config[key] = json!([]);
        scene.run("GC", &config).succeeded();
        assert_eq!(kept(&scene), ["f"], "an empty list is a list");
    }
}

#[test]
fn gc_without_a_proper_list_removes_nothing() {
    let scene = Scene::new();
    let mut config = with_containers(&scene);
    for list in [json!({}), json!(""), json!([{"id": "a"}]), json!(["a"])] {
        config["cni.dev/valid-attachments"] = list;
        assert!(
            scene
                .run("GC", &config)
                .failed(7)
                .contains("cni.dev/valid-attachments")
        );
    }
    config
        .as_object_mut()
        .unwrap()
        .remove("cni.dev/valid-attachments");
    let answer = scene.run("GC", &config).succeeded();
    assert!(
        answer.stderr.contains("nothing is removed"),
        "{}",
        answer.stderr
    );
    assert_eq!(kept(&scene), ["a", "b", "c", "f"]);
    assert_eq!(scene.calls(), "");

    // What a runtime in Go makes of an empty list.
    config["cni.dev/valid-attachments"] = json!(null);
    scene.run("GC", &config).succeeded();
    assert_eq!(kept(&scene), ["f"]);

    // What a runtime in Go makes of an empty list.
    config["cni.dev/valid-attachments"] = json!(null);
    scene.run("GC", &config).succeeded();
    assert_eq!(kept(&scene), ["f"]);
}

#[test]
fn gc_goes_on_after_a_failure_and_works_without_flanneld() {
    let scene = Scene::new();
    let mut config = with_containers(&scene);
    config["cni.dev/valid-attachments"] = json!([]);
    // The delegate refuses a alone.
    scene.plugin("bridge", "#!/bin/sh\ncat >/dev/null\n[ \"$CNI_CONTAINERID\" != a ] || { echo '{\"code\":11,\"msg\":\"busy\"}'; exit 1; }\n");
    fs::remove_file(scene.path("subnet.env")).unwrap();
    let answer = scene.run("GC", &config);
    assert_eq!(
        answer.text(),
        "{\"code\":11,\"msg\":\"busy\"}\n",
        "the first failure"
    );
    assert!(
        answer.stderr.contains("GC: a: {\"code\":11"),
        "{}",
        answer.stderr
    );
    assert!(
        answer.stderr.contains("subnet.env does not exist"),
        "{}",
        answer.stderr
    );
    assert_eq!(kept(&scene), ["a", "f"]);
}

#[test]
fn gc_clears_broken_files_only_where_no_other_network_keeps_its_own() {
    let scene = Scene::new();
    let mut config = with_containers(&scene);
    config["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    scene.write("data/broken", "{");
    scene.write("data/.new-1-1", "somebody is writing this");
    fs::create_dir(scene.path("data/directory")).unwrap();
    scene.run("GC", &config).succeeded();
    assert_eq!(kept(&scene), [".new-1-1", "b", "broken", "directory", "f"]);
    fs::remove_file(scene.path("data/f")).unwrap();
    scene.run("GC", &config).succeeded();
    assert_eq!(kept(&scene), [".new-1-1", "b", "directory"]);

    let long_ago = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    let temporary = fs::File::options()
        .write(true)
        .open(scene.path("data/.new-1-1"))
        .unwrap();
    temporary.set_times(long_ago).unwrap();
    scene.run("GC", &config).succeeded();
    assert_eq!(kept(&scene), ["b", "directory"]);
}
