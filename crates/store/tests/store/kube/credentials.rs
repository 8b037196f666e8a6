//! Who we are to the API server, while the daemon runs.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::api::Api;
use super::scene::{Daemon, node};

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
    let api = Api::start();
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

/// `proxy-url`: the API server is reached through it, also if that is on this machine.
#[tokio::test]
async fn the_kubeconfig_s_proxy_is_used() {
    let api = server().await;
    let proxy = Proxy::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    kubeconfig(&path, &api.url, "token: t");
    let text = std::fs::read_to_string(&path).unwrap();
    let with_proxy = format!("proxy-url: 'http://{}', server:", proxy.address);
    std::fs::write(&path, text.replace("server:", &with_proxy)).unwrap();
    let mut daemon = Daemon::new("", Some(&path), CONF);
    daemon.acquire().await;
    daemon.knows(&[]).await;
    let asked = proxy.asked.lock().unwrap().clone();
    let connect = format!("CONNECT {} ", api.url.trim_start_matches("http://"));
    assert!(!asked.is_empty(), "nothing went through the proxy");
    assert!(
        asked.iter().all(|line| line.starts_with(&connect)),
        "{asked:?}"
    );
}

/// An HTTP proxy that connects to whatever it is asked for.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Proxy {
    async fn start() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let seen = seen.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(client.read_u8().await?);
                    }
                    let head = String::from_utf8(head).unwrap();
                    let line = head.lines().next().unwrap().to_owned();
                    let to = line.split(' ').nth(1).unwrap().to_owned();
                    seen.lock().unwrap().push(line);
                    let mut server = TcpStream::connect(to).await?;
                    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Proxy {
            address,
            asked,
            task,
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
