//! Who we are to the API server, while the daemon runs.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::api::Api;
use crate::scene::{Daemon, node};

const CONF: &str = r#"{"Network":"10.244.0.0/16"}"#;

fn kubeconfig(path: &Path, server: &str, user: &str) {
    let text = format!(
        "{{current-context: x, contexts: [{{name: x, context: {{cluster: c, user: u}}}}], \
         clusters: [{{name: c, cluster: {{server: '{server}'}}}}], users: [{{name: u, user: {{{user}}}}}]}}"
    );
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

async fn server() -> Api {
    let api = Api::start().await;
    api.put("n1", "u1", node(&["10.244.1.0/24"], None));
    api
}

/// The program's token expires at the server, not by its own word: it is run again.
#[tokio::test]
async fn a_program_s_token_that_is_refused_is_replaced() {
    let api = server().await;
    api.state().token = Some("first".into());
    let dir = tempfile::tempdir().unwrap();
    let (program, token) = (dir.path().join("login"), dir.path().join("token"));
    std::fs::write(&token, "first").unwrap();
    let script = format!(
        "#!/bin/sh\necho \"{{\\\"apiVersion\\\":\\\"client.authentication.k8s.io/v1\\\",\\\"kind\\\":\\\"ExecCredential\\\",\
         \\\"status\\\":{{\\\"token\\\":\\\"$(cat {})\\\"}}}}\"\n",
        token.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let path = dir.path().join("kubeconfig");
    let user = "exec: {command: ./login, apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never}, \
                as: flannel, as-groups: [nodes]";
    kubeconfig(&path, &api.url, user);
    let mut daemon = Daemon::new("", Some(&path), CONF);
    assert_eq!(daemon.acquire().await, "10.244.1.0-24");
    daemon.knows(&[]).await;
    assert_eq!(api.state().headers[0]["impersonate-user"], "flannel");
    std::fs::write(&token, "second").unwrap();
    api.state().token = Some("second".into());
    api.end_watches();
    api.put("p1", "v1", node(&["10.244.2.0/24"], Some("192.0.2.2")));
    daemon.knows(&[("10.244.2.0-24", "192.0.2.2")]).await;
}

/// Another server in the kubeconfig is followed, although the first one still answers.
#[tokio::test]
async fn another_server_is_followed() {
    let (one, two) = (server().await, server().await);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    kubeconfig(&path, &one.url, "token: t");
    let mut daemon = Daemon::new("", Some(&path), CONF);
    daemon.acquire().await;
    daemon.knows(&[]).await;
    two.put("p1", "v1", node(&["10.244.2.0/24"], Some("192.0.2.2")));
    kubeconfig(&path, &two.url, "token: t");
    daemon.knows(&[("10.244.2.0-24", "192.0.2.2")]).await;
    daemon
        .until("published there", |_| {
            two.annotation("n1", "public-ip").as_deref() == Some("192.0.2.1")
        })
        .await;
}
