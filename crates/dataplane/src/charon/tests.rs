//! A charon that works, is slow, hangs or talks nonsense.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{LocalSet, spawn_local};

use super::vici::{Section, Value};
use super::*;

/// How a charon answers.
#[derive(Clone, Copy)]
enum Manner {
    /// Properly, each time after so long.
    After(Duration),
    Never,
    /// It never lists what is up, for that takes long.
    Busy,
    Nonsense,
    /// With events that nobody asked for, without end.
    Flood,
}

/// What a charon was asked for.
#[derive(Default)]
struct Asked {
    loaded: BTreeSet<String>,
    /// Connections that are up.
    up: BTreeSet<String>,
    /// The children that were begun, and when.
    begun: Vec<(String, Instant)>,
    /// How often each connection was ended.
    ended: BTreeMap<String, usize>,
    /// What is up has no keys for packets any more.
    hollow: bool,
    /// The keys of what is up were agreed on just now, and the peer has not used them.
    fresh: bool,
    /// Somebody whose connection has no name yet.
    asks: Option<String>,
}

/// Listens at a path, as charon does; connections that were begun are up.
fn charon(socket: &Path, manner: Manner) -> Rc<RefCell<Asked>> {
    let listener = UnixListener::bind(socket).unwrap();
    let asked = Rc::new(RefCell::new(Asked::default()));
    let names = Rc::clone(&asked);
    spawn_local(async move {
        let mut silent = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            match manner {
                Manner::Never => silent.push(stream),
                Manner::Busy => {
                    spawn_local(answer(stream, Rc::clone(&names), Duration::ZERO, false));
                }
                Manner::After(pause) => {
                    spawn_local(answer(stream, Rc::clone(&names), pause, true));
                }
                Manner::Nonsense => {
                    let mut stream = stream;
                    let _ = stream.write_all(&[0xff; 64]).await;
                }
                Manner::Flood => {
                    let mut stream = stream;
                    spawn_local(async move {
                        while stream.write_all(&[0, 0, 0, 2, 7, 0]).await.is_ok() {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    });
                }
            }
        }
    });
    asked
}

async fn answer(mut stream: UnixStream, asked: Rc<RefCell<Asked>>, pause: Duration, lists: bool) {
    while let Ok(len) = stream.read_u32().await {
        let mut body = vec![0; len as usize];
        stream.read_exact(&mut body).await.unwrap();
        let (kind, rest) = body.split_first().unwrap();
        let (len, rest) = rest.split_first().unwrap();
        let (name, rest) = rest.split_at(usize::from(*len));
        let mut answers = Vec::new();
        match (*kind, std::str::from_utf8(name).unwrap()) {
            (3, _) => answers.push(vec![5]),
            (_, "get-conns") => {
                let names = asked.borrow().loaded.iter().cloned().collect();
                let conns = Section(vec![("conns".into(), Value::List(names))]);
                answers.push(packet(&[1], &conns));
            }
            (_, "list-sas") if !lists => {}
            (_, "list-sas") => {
                let since = if asked.borrow().fresh { "0" } else { "600" };
                let child = Section::default()
                    .with("state", "INSTALLED")
                    .with("install-time", since);
                let children = if asked.borrow().hollow {
                    Section::default()
                } else {
                    Section::default().with_section("child", child)
                };
                let sa = Section::default()
                    .with("state", "ESTABLISHED")
                    .with_section("child-sas", children);
                let asks = asked.borrow().asks.clone().map(|from| {
                    let sa = Section::default().with("state", "CONNECTING");
                    ("(unnamed)".to_owned(), sa.with("remote-host", from))
                });
                let up = asked.borrow().up.clone().into_iter();
                for (name, sa) in up.map(|name| (name, sa.clone())).chain(asks) {
                    let event = Section::default().with_section(&name, sa);
                    answers.push(packet(b"\x07\x07list-sa", &event));
                }
                answers.push(vec![1]);
            }
            (_, command) => {
                let message = Section::read(rest).unwrap();
                let mut asked = asked.borrow_mut();
                let name = message.text("ike").to_owned();
                match command {
                    "load-conn" => {
                        let names = message.sections().map(|(name, _)| name.to_owned());
                        asked.loaded.extend(names);
                    }
                    "unload-conn" => {
                        asked.loaded.remove(message.text("name"));
                    }
                    "initiate" => {
                        let child = message.text("child").to_owned();
                        asked.begun.push((child, Instant::now()));
                        asked.up.insert(name);
                    }
                    "terminate" => {
                        // The first time the peer ends it at the same moment, and it begins again.
                        let times = asked.ended.entry(name.clone()).or_default();
                        *times += 1;
                        if *times > 1 {
                            asked.up.remove(&name);
                            asked.hollow = false;
                        }
                    }
                    _ => {}
                }
                let done = Section::default().with("success", "yes");
                answers.push(packet(&[1], &done));
            }
        }
        tokio::time::sleep(pause).await;
        for answer in answers {
            let len = u32::try_from(answer.len()).unwrap();
            stream.write_u32(len).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    }
}

fn packet(head: &[u8], message: &Section) -> Vec<u8> {
    let mut bytes = head.to_vec();
    message.write(&mut bytes).unwrap();
    bytes
}

fn connection(number: u8) -> Object {
    let key = IkeKey {
        local: "10.1.0.0/24".parse().unwrap(),
        remote: format!("10.1.{number}.0/24").parse().unwrap(),
    };
    let connection = IkeConnection {
        local: [192, 0, 2, 1].into(),
        local_id: [192, 0, 2, 1].into(),
        remote: [192, 0, 2, number].into(),
        esp: "aes".into(),
        encap: false,
        psk: Psk("secret".into()),
    };
    Object::IkeConnection(key, connection)
}

fn is_up(event: &KernelEvent) -> bool {
    matches!(event, KernelEvent::Saw(Object::IkeConnection(..)))
}

/// Returns what a door reports within ten minutes, after it was asked for charon and so many connections.
async fn reports(manner: Manner, connections: u8) -> Vec<KernelEvent> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vici");
    let set = LocalSet::new();
    let run = async {
        charon(&socket, manner);
        let mut door = Charon::new(Some(socket.clone()), None);
        let mut ops = vec![Op::Put(Object::IkeDaemon((), false))];
        ops.extend((2..2 + connections).map(|number| Op::Put(connection(number))));
        door.apply(&ops).await;
        let mut events = Vec::new();
        let end = Instant::now() + Duration::from_secs(600);
        while let Ok(event) = tokio::time::timeout_at(end, door.event()).await {
            events.push(event);
        }
        events
    };
    set.run_until(run).await
}

#[tokio::test(start_paused = true)]
async fn a_charon_that_answers_has_all_connections_up_however_slow_it_is() {
    for pause in [Duration::ZERO, Duration::from_secs(2)] {
        let events = reports(Manner::After(pause), 20).await;
        let up = events.iter().filter(|event| is_up(event));
        assert_eq!(up.count(), 20, "{pause:?}: {events:?}");
        let runs = KernelEvent::Saw(Object::IkeDaemon((), false));
        assert_eq!(events.len(), 21, "{pause:?}: {events:?}");
        assert!(events.contains(&runs));
    }
}

/// It is reported once, and the door stays alive.
#[tokio::test(start_paused = true)]
async fn a_charon_that_hangs_or_talks_nonsense_is_reported_once() {
    for manner in [Manner::Never, Manner::Nonsense, Manner::Flood] {
        let events = reports(manner, 3).await;
        let [KernelEvent::Refused(op, why)] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(op.object(), &Object::IkeDaemon((), false));
        let why = why.to_string();
        assert!(why.contains("charon cannot be reached at"), "{why}");
        assert!(!why.contains("secret"), "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_charon_that_is_busy_does_not_count_as_hung() {
    for (manner, hangs) in [(Manner::Busy, false), (Manner::Never, true)] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vici");
        let run = async {
            charon(&socket, manner);
            let mut door = Charon::new(Some(socket.clone()), None);
            let ops = [
                Op::Put(Object::IkeDaemon((), false)),
                Op::Put(connection(2)),
            ];
            door.apply(&ops).await;
            let mut longest = Duration::ZERO;
            let end = Instant::now() + Duration::from_secs(300);
            loop {
                let step = (Instant::now() + Duration::from_secs(1)).min(end);
                let _ = tokio::time::timeout_at(step, door.event()).await;
                longest = longest.max(door.silent.map_or(Duration::ZERO, |since| since.elapsed()));
                if Instant::now() >= end {
                    break;
                }
            }
            assert_eq!(longest > HUNG / 2, hangs, "{longest:?}");
            let stuck = door.stuck.map(|since| since.elapsed());
            assert!(hangs || stuck > Some(HUNG), "{stuck:?}");
        };
        LocalSet::new().run_until(run).await;
    }
}

/// Has a door hold one connection for a minute, and returns when charon was asked to begin it.
async fn begun(local: u8, remote: u8, asks: Option<&str>) -> Vec<Duration> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vici");
    let run = async {
        let asked = charon(&socket, Manner::After(Duration::ZERO));
        asked.borrow_mut().asks = asks.map(str::to_owned);
        let mut door = Charon::new(Some(socket.clone()), None);
        let Object::IkeConnection(key, mut wanted) = connection(remote) else {
            unreachable!("it is one");
        };
        wanted.local = [192, 0, 2, local].into();
        wanted.local_id = wanted.local;
        let began = Instant::now();
        door.apply(&[Op::Put(Object::IkeConnection(key, wanted))])
            .await;
        let end = began + Duration::from_secs(60);
        while tokio::time::timeout_at(end, door.event()).await.is_ok() {}
        let asked = asked.borrow();
        asked.begun.iter().map(|(_, at)| *at - began).collect()
    };
    LocalSet::new().run_until(run).await
}

#[tokio::test(start_paused = true)]
async fn the_lower_address_begins_and_the_other_one_only_if_nothing_comes() {
    let [at] = begun(1, 2, None).await[..] else {
        panic!("begun more than once");
    };
    assert!(at < YIELD / 2, "{at:?}");
    let [at] = begun(2, 1, None).await[..] else {
        panic!("begun more than once");
    };
    assert!(at >= YIELD, "{at:?}");
    // The peer has begun and has not said yet for which connection: its keys take that long.
    assert_eq!(begun(2, 1, Some("192.0.2.1")).await, []);
    assert_eq!(begun(2, 1, Some("192.0.2.3")).await.len(), 1);
    // Nor is that believed where the peer need not begin: somebody else may use its address.
    assert_eq!(begun(1, 2, Some("192.0.2.2")).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_begins_again_while_it_ends_is_ended_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vici");
    let run = async {
        let asked = charon(&socket, Manner::After(Duration::ZERO));
        let mut door = Charon::new(Some(socket.clone()), None);
        door.apply(&[Op::Put(connection(2))]).await;
        while !is_up(&door.event().await) {}
        door.apply(&[Op::Del(connection(2))]).await;
        let end = Instant::now() + Duration::from_secs(600);
        while tokio::time::timeout_at(end, door.event()).await.is_ok() {}
        let asked = asked.borrow();
        assert_eq!(asked.ended.values().collect::<Vec<_>>(), [&2]);
        assert!(asked.up.is_empty() && asked.loaded.is_empty());
        assert!(door.is_idle());
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_got_no_new_keys_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vici");
    let run = async {
        let asked = charon(&socket, Manner::After(Duration::ZERO));
        let mut door = Charon::new(Some(socket.clone()), None);
        door.apply(&[Op::Put(connection(2))]).await;
        while !is_up(&door.event().await) {}
        asked.borrow_mut().hollow = true;
        while !is_up(&door.event().await) {}
        let asked = asked.borrow();
        assert_eq!(asked.begun.len(), 2);
        assert!(!asked.ended.is_empty());
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_up_stays_so_while_the_peer_has_not_used_its_new_keys() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vici");
    let run = async {
        let asked = charon(&socket, Manner::After(Duration::ZERO));
        let mut door = Charon::new(Some(socket.clone()), None);
        door.apply(&[Op::Put(connection(2))]).await;
        while !is_up(&door.event().await) {}
        asked.borrow_mut().fresh = true;
        let end = Instant::now() + 6 * LATER;
        let event = tokio::time::timeout_at(end, door.event()).await;
        assert!(event.is_err(), "{event:?}");
        // After a restart of the daemon it is not known whether there are former keys.
        let mut door = Charon::new(Some(socket.clone()), None);
        door.apply(&[Op::Put(connection(2))]).await;
        let end = Instant::now() + 6 * LATER;
        let event = tokio::time::timeout_at(end, door.event()).await;
        assert!(event.is_err(), "{event:?}");
        asked.borrow_mut().fresh = false;
        while !is_up(&door.event().await) {}
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_begins_again_with_new_options_and_goes_on_with_a_new_secret() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vici");
    let run = async {
        let asked = charon(&socket, Manner::After(Duration::ZERO));
        let mut door = Charon::new(Some(socket.clone()), None);
        let Object::IkeConnection(key, mut wanted) = connection(2) else {
            unreachable!("it is one");
        };
        let name = wanted.name(&key);
        let mut put = async |wanted: &IkeConnection| {
            door.apply(&[Op::Put(Object::IkeConnection(key, wanted.clone()))])
                .await;
            while !is_up(&door.event().await) {}
        };
        put(&wanted).await;
        wanted.psk = Psk("another".into());
        put(&wanted).await;
        assert!(asked.borrow().ended.is_empty());
        let changes: [fn(&mut IkeConnection); 3] = [
            |wanted| wanted.esp = "other".into(),
            |wanted| wanted.encap = true,
            |wanted| wanted.local_id = [192, 0, 2, 0].into(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            // The peer does not begin it by itself.
            asked.borrow_mut().ended.insert(name.clone(), 1);
            change(&mut wanted);
            put(&wanted).await;
            let asked = asked.borrow();
            assert_eq!(asked.ended.get(&name), Some(&2));
            assert_eq!(asked.begun.len(), number + 2);
        }
    };
    LocalSet::new().run_until(run).await;
}
