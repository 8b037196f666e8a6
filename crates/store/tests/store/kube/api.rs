//! As much of an API server as the store uses, over plain HTTP/1.1: Nodes to get, list, watch and patch,
//! events to create.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// What happens to a request instead of an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is carried out, and the connection breaks before the answer.
    LoseAnswer,
    /// It is refused with this status and reason.
    Refuse(u16, &'static str, &'static str),
}

#[derive(Default)]
pub struct State {
    pub version: u64,
    pub nodes: BTreeMap<String, Value>,
    history: Vec<(u64, Value)>,
    /// What is older than this has been compacted.
    oldest: u64,
    /// For requests whose `METHOD path` begins so, in order.
    pub faults: VecDeque<(&'static str, Fault)>,
    /// `METHOD path?query`, of all requests.
    pub requests: Vec<String>,
    pub headers: Vec<BTreeMap<String, String>>,
    pub events: Vec<Value>,
    /// The token that is asked for.
    pub token: Option<String>,
    /// An annotation that an admission webhook removes from every patch.
    pub removed: Option<String>,
}

/// A server on loopback; ends with this value.
pub struct Api {
    pub url: String,
    state: Arc<Mutex<State>>,
    /// Changes with the state; watches that began at another generation end.
    news: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.task.abort();
        self.news.send_modify(|generation| *generation += 1);
    }
}

impl Api {
    pub fn start() -> Api {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            version: 100,
            ..State::default()
        }));
        let news = watch::Sender::new(0);
        let (served, told) = (state.clone(), news.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, news) = (served.clone(), told.clone());
                tokio::spawn(async move {
                    let service =
                        service_fn(move |request| answer(request, state.clone(), news.clone()));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Api {
            url,
            state,
            news,
            task,
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Creates or replaces a Node; the server adds what it always adds.
    pub fn put(&self, name: &str, uid: &str, mut node: Value) {
        let mut state = self.state();
        state.version += 1;
        node["metadata"]["name"] = name.into();
        node["metadata"]["uid"] = uid.into();
        node["metadata"]["resourceVersion"] = state.version.to_string().into();
        if node["metadata"]["creationTimestamp"].is_null() {
            node["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        let kind = if state.nodes.insert(name.into(), node.clone()).is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        state.tell(kind, node);
        drop(state);
        self.news.send_modify(|_| {});
    }

    /// Sends a state of a Node that is older than what was sent before, as a server that lags behind does.
    pub fn send_stale(&self, node: Value) {
        let mut state = self.state();
        state.version += 1;
        state.tell("MODIFIED", node);
        drop(state);
        self.news.send_modify(|_| {});
    }

    pub fn delete(&self, name: &str) {
        let mut state = self.state();
        state.version += 1;
        let mut node = state.nodes.remove(name).unwrap();
        node["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.tell("DELETED", node);
        drop(state);
        self.news.send_modify(|_| {});
    }

    /// Ends all watches.
    pub fn end_watches(&self) {
        self.news.send_modify(|generation| *generation += 1);
    }

    /// A watch from before now is too old.
    pub fn compact(&self) {
        let mut state = self.state();
        state.version += 1;
        state.oldest = state.version;
        state.history.clear();
    }

    /// Goes back to an earlier version, as an etcd that was restored does.
    pub fn restore(&self, version: u64) {
        let mut state = self.state();
        state.version = version;
        state.history.clear();
        for node in state.nodes.values_mut() {
            node["metadata"]["resourceVersion"] = version.to_string().into();
        }
    }

    pub fn fail(&self, request: &'static str, fault: Fault) {
        self.state().faults.push_back((request, fault));
    }

    pub fn annotation(&self, node: &str, name: &str) -> Option<String> {
        let state = self.state();
        let value = &state.nodes.get(node)?["metadata"]["annotations"]
            [format!("flannel.alpha.coreos.com/{name}")];
        value.as_str().map(str::to_owned)
    }

    pub fn asked(&self, request: &str) -> usize {
        let state = self.state();
        let all = state.requests.iter();
        all.filter(|asked| asked.starts_with(request)).count()
    }
}

impl State {
    fn tell(&mut self, kind: &str, node: Value) {
        let event = json!({"type": kind, "object": node});
        self.history.push((self.version, event));
    }

    fn fault(&mut self, request: &str) -> Option<Fault> {
        let (prefix, _) = self.faults.front()?;
        request
            .starts_with(prefix)
            .then(|| self.faults.pop_front().unwrap().1)
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// An error ends the connection without an answer.
async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    news: watch::Sender<u64>,
) -> Result<Answer, std::io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let param = |name: &str| {
        let mut all = query.split('&').filter_map(|pair| pair.split_once('='));
        all.find(|(key, _)| *key == name)
            .map(|(_, value)| value.replace("%3D", "="))
    };
    let asked = format!("{} {path}?{query}", parts.method);
    let mut locked = state.lock().unwrap();
    locked.requests.push(asked.clone());
    let headers = parts.headers.iter();
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()));
    let headers: BTreeMap<String, String> = headers.collect();
    let bearer = headers.get("authorization").cloned();
    locked.headers.push(headers);
    if let Some(token) = &locked.token
        && bearer != Some(format!("Bearer {token}"))
    {
        return Ok(status(401, "Unauthorized", "Unauthorized"));
    }
    let fault = locked.fault(&asked);
    if let Some(Fault::Refuse(code, reason, message)) = fault {
        return Ok(status(code, reason, message));
    }
    let name = path.strip_prefix("/api/v1/nodes/").map(str::to_owned);
    let done = match (&parts.method, name) {
        (&Method::GET, None) if path == "/api/v1/nodes" && param("watch").is_some() => {
            let from: u64 = param("resourceVersion").unwrap().parse().unwrap();
            if from > locked.version {
                return Ok(status(504, "Timeout", "Too large resource version"));
            }
            if from < locked.oldest {
                return Ok(status(410, "Expired", "too old resource version"));
            }
            let only = param("fieldSelector").map(|f| f.replace("metadata.name=", ""));
            drop(locked);
            return Ok(watch_nodes(state, news.subscribe(), from, only));
        }
        (&Method::GET, None) if path == "/api/v1/nodes" => {
            let wanted = param("resourceVersion").and_then(|v| v.parse::<u64>().ok());
            if wanted.is_some_and(|wanted| wanted > locked.version) {
                return Ok(status(504, "Timeout", "Too large resource version"));
            }
            let items: Vec<&Value> = locked.nodes.values().collect();
            let version = locked.version.to_string();
            json!({"kind": "NodeList", "metadata": {"resourceVersion": version}, "items": items})
        }
        (&Method::GET, Some(name)) => match locked.nodes.get(&name) {
            Some(node) => node.clone(),
            None => return Ok(status(404, "NotFound", "nodes not found")),
        },
        (&Method::PATCH, Some(name)) => {
            let name = name.trim_end_matches("/status").to_owned();
            let patch: Value = serde_json::from_slice(&body).unwrap();
            let version = (locked.version + 1).to_string();
            let removed = locked.removed.clone();
            let Some(node) = locked.nodes.get_mut(&name) else {
                return Ok(status(404, "NotFound", "nodes not found"));
            };
            let required = |field: &str| Some(&patch["metadata"][field]).filter(|v| !v.is_null());
            if required("uid").is_some_and(|uid| *uid != node["metadata"]["uid"]) {
                return Ok(status(422, "Invalid", "metadata.uid: field is immutable"));
            }
            if required("resourceVersion")
                .is_some_and(|v| *v != node["metadata"]["resourceVersion"])
            {
                let text =
                    "the object has been modified; please apply your changes to the latest version";
                return Ok(status(409, "Conflict", text));
            }
            merge(node, &patch);
            if let (Some(name), Some(all)) =
                (&removed, node["metadata"]["annotations"].as_object_mut())
            {
                all.remove(name);
            }
            node["metadata"]["resourceVersion"] = version.into();
            let node = node.clone();
            locked.version += 1;
            locked.tell("MODIFIED", node.clone());
            news.send_modify(|_| {});
            node
        }
        (&Method::PATCH, None) if path.contains("/events/") => {
            let patch: Value = serde_json::from_slice(&body).unwrap();
            let name = path.rsplit('/').next().unwrap();
            let mut events = locked.events.iter_mut();
            let Some(event) = events.find(|event| event["metadata"]["name"] == name) else {
                return Ok(status(404, "NotFound", "events not found"));
            };
            for (key, value) in patch.as_object().unwrap() {
                event[key] = value.clone();
            }
            event.clone()
        }
        (&Method::POST, _) if path.ends_with("/events") => {
            let event: Value = serde_json::from_slice(&body).unwrap();
            let name = &event["metadata"]["name"];
            if locked
                .events
                .iter()
                .any(|known| known["metadata"]["name"] == *name)
            {
                return Ok(status(409, "AlreadyExists", "the event exists"));
            }
            locked.events.push(event.clone());
            event
        }
        _ => return Ok(status(404, "", "page not found")),
    };
    if matches!(fault, Some(Fault::LoseAnswer)) {
        return Err(std::io::Error::other("the answer is lost"));
    }
    Ok(whole(StatusCode::OK, &done))
}

/// A strategic merge patch, as far as it is used here.
fn merge(node: &mut Value, patch: &Value) {
    for (name, value) in patch["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten()
    {
        if value.is_null() {
            if let Some(all) = node["metadata"]["annotations"].as_object_mut() {
                all.remove(name);
            }
        } else {
            node["metadata"]["annotations"][name] = value.clone();
        }
    }
    if let Some(conditions) = patch["status"]["conditions"].as_array() {
        node["status"]["conditions"] = conditions.clone().into();
    }
}

fn watch_nodes(
    state: Arc<Mutex<State>>,
    mut news: watch::Receiver<u64>,
    from: u64,
    only: Option<String>,
) -> Answer {
    let (send, receive) = mpsc::unbounded_channel();
    let generation = *news.borrow_and_update();
    tokio::spawn(async move {
        let mut told = from;
        while *news.borrow_and_update() == generation {
            let events: Vec<(u64, Value)> = {
                let state = state.lock().unwrap();
                let all = state.history.iter();
                all.filter(|(version, _)| *version > told)
                    .cloned()
                    .collect()
            };
            for (version, event) in events {
                told = version;
                let name = event["object"]["metadata"]["name"].as_str();
                if only.is_none() || only.as_deref() == name {
                    let line = Bytes::from(format!("{event}\n"));
                    if send.send(Ok(Frame::data(line))).is_err() {
                        return;
                    }
                }
            }
            if news.changed().await.is_err() {
                return;
            }
        }
    });
    let body = StreamBody::new(UnboundedReceiverStream::new(receive));
    let mut response = Response::new(BodyExt::boxed(body));
    let json = "application/json".parse().unwrap();
    response.headers_mut().insert("content-type", json);
    response
}

fn status(code: u16, reason: &str, message: &str) -> Answer {
    let body = json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message});
    whole(StatusCode::from_u16(code).unwrap(), &body)
}

fn whole(code: StatusCode, body: &Value) -> Answer {
    let body = http_body_util::Full::from(body.to_string());
    let mut response = Response::new(BodyExt::boxed(body));
    *response.status_mut() = code;
    let json = "application/json".parse().unwrap();
    response.headers_mut().insert("content-type", json);
    response
}
