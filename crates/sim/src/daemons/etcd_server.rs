//! A simulated etcd's answers over gRPC, and what goes wrong on the way.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Request, Response};
use prost::Message;
use store::etcd::proto::{
    LeaseGrantRequest, LeaseId, LeaseResponse, RangeRequest, TxnRequest, WatchCreate, WatchRequest,
    WatchResponse, path,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::etcd_data::{EtcdData, Refusal};

/// etcd gives up on a request that the others of the cluster do not confirm after so long.
const REQUEST: Duration = Duration::from_secs(7);
/// A watch that shows nothing says so this often, if it is asked to.
const PROGRESS: Duration = Duration::from_secs(600);

const TIMED_OUT: Refusal = Refusal {
    code: 14,
    text: "etcdserver: request timed out",
};
const NO_LEADER: Refusal = Refusal {
    code: 14,
    text: "etcdserver: no leader",
};
const UNKNOWN_CALL: Refusal = Refusal {
    code: 12,
    text: "unknown service",
};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is answered.
    Answered,
    /// It is lost, and the connection with it.
    Lost,
    /// It is carried out, and its answer is lost with the connection.
    AnswerLost,
    /// It is carried out after this time, whoever still waits.
    Late(Duration),
}

/// A simulated etcd cluster.
#[derive(Clone)]
pub struct EtcdServer {
    data: Arc<Mutex<EtcdData>>,
    changed: watch::Sender<()>,
    has_quorum: watch::Sender<bool>,
    began: Instant,
}

impl EtcdServer {
    /// Returns an empty cluster.
    pub fn new() -> EtcdServer {
        EtcdServer {
            data: Arc::default(),
            changed: watch::Sender::new(()),
            has_quorum: watch::Sender::new(true),
            began: Instant::now(),
        }
    }

    /// Returns the time since the simulation began.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Reads the data.
    pub fn read<T>(&self, how: impl FnOnce(&EtcdData) -> T) -> T {
        how(&self.lock())
    }

    /// Changes the data.
    pub fn change<T>(&self, how: impl FnOnce(&mut EtcdData) -> T) -> T {
        let done = how(&mut self.lock());
        self.changed.send_replace(());
        done
    }

    /// Sets whether enough members are there to answer.
    pub fn set_quorum(&self, there: bool) {
        self.has_quorum.send_replace(there);
    }

    /// Ends etcd leases whose time is over.
    pub fn expire(&self) {
        let now = self.now();
        if self.lock().expire(now) {
            self.changed.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, EtcdData> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers one request. `fate` decides what becomes of it; `cut` ends the connection.
    pub async fn answer(
        self,
        request: Request<Incoming>,
        fate: Fate,
        cut: impl Fn(),
    ) -> Result<Response<Body>, Infallible> {
        let path = request.uri().path().to_owned();
        if path == path::WATCH {
            return Ok(self.watch(request.into_body()).await);
        }
        let message = first_message(request.into_body()).await;
        let mut has_quorum = self.has_quorum.subscribe();
        if timeout(REQUEST, has_quorum.wait_for(|there| *there))
            .await
            .is_err()
        {
            return Ok(refused(TIMED_OUT));
        }
        Ok(match fate {
            Fate::Answered => unary(self.carry_out(&path, &message)),
            Fate::Lost => {
                cut();
                refused(TIMED_OUT)
            }
            Fate::AnswerLost => {
                drop(self.carry_out(&path, &message));
                cut();
                refused(TIMED_OUT)
            }
            Fate::Late(by) => {
                // The request's own future ends with its sender's patience.
                let carried_out = tokio::spawn(async move {
                    sleep(by).await;
                    self.carry_out(&path, &message)
                });
                unary(carried_out.await.unwrap_or(Err(TIMED_OUT)))
            }
        })
    }

    fn carry_out(&self, path: &str, message: &[u8]) -> Result<Bytes, Refusal> {
        let now = self.now();
        let bad = |_| UNKNOWN_CALL;
        match path {
            path::RANGE => {
                let query = RangeRequest::decode(message).map_err(bad)?;
                self.read(|data| Ok(framed(&data.range(&query)?)))
            }
            path::TXN => {
                let txn = TxnRequest::decode(message).map_err(bad)?;
                self.change(|data| Ok(framed(&data.transact(&txn)?)))
            }
            path::LEASE_GRANT => {
                let LeaseGrantRequest { ttl, id } =
                    LeaseGrantRequest::decode(message).map_err(bad)?;
                self.change(|data| {
                    let ttl = data.grant(id, ttl, now)?;
                    Ok(lease_answer(data, id, ttl))
                })
            }
            path::LEASE_KEEP_ALIVE => {
                let LeaseId { id } = LeaseId::decode(message).map_err(bad)?;
                self.change(|data| {
                    let ttl = data.keep_alive(id, now);
                    Ok(lease_answer(data, id, ttl))
                })
            }
            path::LEASE_REVOKE => {
                let LeaseId { id } = LeaseId::decode(message).map_err(bad)?;
                self.change(|data| {
                    data.revoke(id);
                    Ok(lease_answer(data, id, 0))
                })
            }
            _ => Err(UNKNOWN_CALL),
        }
    }

    async fn watch(self, mut body: Incoming) -> Response<Body> {
        let message = next_message(&mut body).await;
        let query = WatchRequest::decode(message.as_ref()).ok();
        let Some(create) = query.and_then(|query| query.create) else {
            return refused(UNKNOWN_CALL);
        };
        let (answers, stream) = mpsc::channel(16);
        tokio::spawn(async move {
            tokio::select! {
                () = self.show(&create, &answers) => {}
                // The client closes its side when it needs the watch no more.
                _ = next_message(&mut body) => {}
            }
        });
        response(StreamBody::new(ReceiverStream::new(stream)).boxed_unsync())
    }

    async fn show(
        &self,
        create: &WatchCreate,
        answers: &mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
    ) {
        let (mut changed, mut has_quorum) = (self.changed.subscribe(), self.has_quorum.subscribe());
        let (header, compacted) = self.read(|data| (data.header(), data.compacted()));
        let mut next = match create.start_revision {
            0 => header.revision + 1,
            revision => revision,
        };
        let answer = |answer: WatchResponse| answers.send(Ok(Frame::data(framed(&answer))));
        let created = WatchResponse {
            header: Some(header.clone()),
            created: true,
            ..WatchResponse::default()
        };
        if answer(created).await.is_err() {
            return;
        }
        if next <= compacted {
            let canceled = WatchResponse {
                header: Some(header),
                canceled: true,
                compact_revision: compacted,
                cancel_reason: "etcdserver: mvcc: required revision has been compacted".into(),
                ..WatchResponse::default()
            };
            drop(answer(canceled).await);
            return;
        }
        loop {
            if !*has_quorum.borrow_and_update() {
                drop(answers.send(Ok(Frame::trailers(status(NO_LEADER)))).await);
                return;
            }
            changed.mark_unchanged();
            let (header, events) = self.read(|data| {
                let events = data.since(next, &create.key, &create.range_end);
                (data.header(), events)
            });
            next = next.max(header.revision + 1);
            let shown = WatchResponse {
                header: Some(header),
                events,
                ..WatchResponse::default()
            };
            if !shown.events.is_empty() && answer(shown).await.is_err() {
                return;
            }
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                changed = has_quorum.changed() => if changed.is_err() { return },
                () = sleep(PROGRESS), if create.progress_notify => {
                    let header = self.read(EtcdData::header);
                    let progress = WatchResponse { header: Some(header), ..WatchResponse::default() };
                    if answer(progress).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

impl Default for EtcdServer {
    fn default() -> EtcdServer {
        EtcdServer::new()
    }
}

fn lease_answer(data: &EtcdData, id: i64, ttl: i64) -> Bytes {
    framed(&LeaseResponse {
        header: Some(data.header()),
        id,
        ttl,
    })
}

/// Returns a message as gRPC frames it.
fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(length + 5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes.put_slice(&message.encode_to_vec());
    bytes.freeze()
}

async fn first_message(mut body: Incoming) -> Bytes {
    next_message(&mut body).await
}

/// Returns the next message of a request; an empty one at its end.
async fn next_message(body: &mut Incoming) -> Bytes {
    let mut arrived = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            arrived.extend_from_slice(&data);
        }
        if let Some(&[_, a, b, c, d]) = arrived.first_chunk::<5>() {
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            if arrived.len() >= length.saturating_add(5) {
                return arrived.split_off(5).freeze();
            }
        }
    }
    Bytes::new()
}

fn unary(answer: Result<Bytes, Refusal>) -> Response<Body> {
    match answer {
        Ok(bytes) => {
            let done = async { Some(Ok(status(Refusal { code: 0, text: "" }))) };
            response(Full::new(bytes).with_trailers(done).boxed_unsync())
        }
        Err(refusal) => refused(refusal),
    }
}

fn refused(refusal: Refusal) -> Response<Body> {
    let mut answer = response(Full::default().boxed_unsync());
    answer.headers_mut().extend(status(refusal));
    answer
}

fn status(refusal: Refusal) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", u16::from(refusal.code).into());
    if let Ok(text) = refusal.text.parse() {
        headers.insert("grpc-message", text);
    }
    headers
}

fn response(body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    let kind = hyper::header::HeaderValue::from_static("application/grpc");
    answer.headers_mut().insert("content-type", kind);
    answer
}
