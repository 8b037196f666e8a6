//! One look at charon, and what it takes to make it hold the connections that are wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use model::object::{IkeConnection, IkeKey};
use tokio::time::Instant;

use super::vici::{Client, Section};

/// How both sides agree on the keys for their own messages; upstream's.
const IKE: &str = "aes256-sha256-modp4096";

/// New keys long before a counter of 32 bits ends.
const REKEY_PACKETS: &str = "2000000000";
const REKEY_TIME: &str = "1h";

/// How long connections are set up in one look; the others follow in the next one. So what was done is known even if
/// charon stops to answer.
const SLICE: Duration = Duration::from_secs(5);

/// How long the side that was asked for a connection takes it to be unused by the other: that one gets the answer later
/// than this one has the keys.
const ANSWERED: u64 = 3;

/// How often a silent peer is asked whether it lives.
const DPD_DELAY: &str = "30s";

/// What is to be so.
pub(super) struct Plan {
    pub(super) socket: PathBuf,
    pub(super) wanted: BTreeMap<IkeKey, IkeConnection>,
    /// Connections to end.
    pub(super) unwanted: BTreeSet<IkeKey>,
    /// What charon was told by this process.
    pub(super) loaded: BTreeMap<IkeKey, IkeConnection>,
    /// Connections that the peer is to begin: in any case, or if it has begun one.
    pub(super) yielded: BTreeMap<IkeKey, bool>,
    /// Names of connections that earlier looks ended.
    pub(super) lingering: BTreeSet<String>,
    /// Connections that carried packets at the last look.
    pub(super) up: BTreeSet<IkeKey>,
}

/// What is so.
pub(super) struct Found {
    /// The process that answered.
    pub(super) process: Option<i32>,
    /// What charon was told by this process.
    pub(super) loaded: BTreeMap<IkeKey, IkeConnection>,
    /// Connections that carry packets.
    pub(super) up: BTreeSet<IkeKey>,
    /// Why a connection could not be set up.
    pub(super) failed: BTreeMap<IkeKey, String>,
    /// Names of connections that were ended and still have keys. A peer that ends one at the same moment makes charon begin
    /// it again.
    pub(super) lingering: BTreeSet<String>,
    /// There was no time for the rest.
    pub(super) is_part: bool,
}

/// Returns the names of all connections.
pub(super) async fn names(client: &mut Client) -> io::Result<Vec<String>> {
    let answer = client.call("get-conns", &Section::default()).await?;
    Ok(answer.list("conns").to_vec())
}

/// Why a look did not come to its end.
pub(super) struct Unfinished {
    /// What went wrong.
    pub(super) error: io::Error,
    /// charon answers, but not everything: a list of connections waits for each that is just computing its keys.
    pub(super) answers: bool,
}

/// Makes charon hold what is wanted.
///
/// # Errors
/// It cannot be reached, or does not answer.
pub(super) async fn sync(plan: Plan) -> Result<Found, Unfinished> {
    let unfinished = |answers| move |error| Unfinished { error, answers };
    let connected = Client::connect(&plan.socket).await;
    let mut client = connected.map_err(unfinished(false))?;
    let names = names(&mut client).await.map_err(unfinished(false))?;
    let followed = follow(plan, &mut client, &names).await;
    followed.map_err(unfinished(true))
}

async fn follow(plan: Plan, client: &mut Client, names: &[String]) -> io::Result<Found> {
    let mut found = Found {
        process: client.process(),
        loaded: plan.loaded,
        up: BTreeSet::new(),
        failed: BTreeMap::new(),
        lingering: plan.lingering,
        is_part: false,
    };
    let began = Instant::now();
    for name in names {
        let Some(key) = IkeConnection::key_of(name) else {
            continue;
        };
        let ended = match plan.wanted.get(&key) {
            // With another address.
            Some(wanted) => wanted.name(&key) != *name,
            None => plan.unwanted.contains(&key),
        };
        if ended {
            unload(client, name).await?;
            found.loaded.remove(&key);
            found.lingering.insert(name.clone());
        }
    }
    found.loaded.retain(|key, connection| {
        plan.wanted.contains_key(key) && names.contains(&connection.name(key))
    });
    let Associations { states, begun } = associations(client).await?;
    let is_wanted = |name: &String| {
        let key = IkeConnection::key_of(name);
        let wanted = key.and_then(|key| Some((key, plan.wanted.get(&key)?)));
        wanted.is_some_and(|(key, wanted)| wanted.name(&key) == *name)
    };
    found
        .lingering
        .retain(|name| states.contains_key(name) && !is_wanted(name));
    for name in &found.lingering {
        // What is ending waits for the peer's answer.
        if states.get(name) > Some(&State::Ending) {
            terminate(client, name).await?;
        }
    }
    let state = |key: &IkeKey, wanted: &IkeConnection| states.get(&wanted.name(key)).copied();
    let up = found.loaded.iter();
    let up = up.filter(|(key, loaded)| {
        // With new keys of a connection that is up the peer can still use the former ones.
        let least = if plan.up.contains(*key) {
            State::Answered
        } else {
            State::Up
        };
        plan.wanted.get(*key) == Some(*loaded) && state(key, loaded) >= Some(least)
    });
    found.up = up.map(|(key, _)| *key).collect();
    for (key, wanted) in &plan.wanted {
        if found.up.contains(key) {
            continue;
        }
        if began.elapsed() >= SLICE {
            found.is_part = true;
            break;
        }
        let name = wanted.name(key);
        let mut done = Ok(());
        if found.loaded.get(key) != Some(wanted) {
            done = load(client, &name, key, wanted).await;
            if done.is_ok() {
                let before = found.loaded.insert(*key, wanted.clone());
                if before.is_some_and(|before| is_outdated(before, wanted)) {
                    // By itself charon keeps to what the connection began with, also for all later keys.
                    terminate(client, &name).await?;
                }
            }
        }
        if state(key, wanted) == Some(State::Empty) {
            // Its next agreement would fail like the one before: a connection that begins needs none for its first keys.
            terminate(client, &name).await?;
        }
        let yields = plan
            .yielded
            .get(key)
            .is_some_and(|in_any_case| *in_any_case || begun.contains(&wanted.remote.to_string()));
        if state(key, wanted) <= Some(State::Ending) && !yields && done.is_ok() {
            done = initiate(client, &name, key).await;
        }
        match done {
            Err(error) if error.kind() == io::ErrorKind::Other => {
                found.failed.insert(*key, error.to_string());
            }
            done => done?,
        }
    }
    Ok(found)
}

/// Returns whether a connection that began as `before` must begin again to be as `wanted`. A new secret is used when it
/// begins the next time.
fn is_outdated(before: IkeConnection, wanted: &IkeConnection) -> bool {
    let same_secret = IkeConnection {
        psk: wanted.psk.clone(),
        ..before
    };
    same_secret != *wanted
}

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Ending,
    /// Without what carries packets, and nobody is about to change that: an agreement on new keys failed.
    Empty,
    Beginning,
    /// This side has keys, and it is not known yet whether the peer has them.
    Answered,
    Up,
}

/// What has begun.
#[derive(Default)]
struct Associations {
    /// How far each connection is.
    states: BTreeMap<String, State>,
    /// Addresses that ask for a connection and have not said yet for which.
    begun: BTreeSet<String>,
}

/// Returns how far each connection is that has begun.
async fn associations(client: &mut Client) -> io::Result<Associations> {
    let mut found = Associations::default();
    for event in client.list("list-sas", "list-sa").await? {
        for (name, ike) in event.sections() {
            if IkeConnection::key_of(name).is_none() {
                if ike.text("state") == "CONNECTING" {
                    found.begun.insert(ike.text("remote-host").to_owned());
                }
                continue;
            }
            let children = ike.section("child-sas").into_iter();
            let children: Vec<&Section> = children
                .flat_map(Section::sections)
                .map(|(_, child)| child)
                .collect();
            let asked = ike.text("initiator") == "yes";
            let ike_state = ike.text("state");
            let state = if ike_state == "DELETING" {
                State::Ending
            } else if children.iter().any(|child| works(child, asked)) {
                State::Up
            } else if children
                .iter()
                .any(|child| child.text("state") == "INSTALLED")
            {
                State::Answered
            } else if !children.is_empty() || ike_state != "ESTABLISHED" || is_busy(ike) {
                State::Beginning
            } else {
                State::Empty
            };
            let best = found.states.entry(name.to_owned()).or_insert(state);
            *best = (*best).max(state);
        }
    }
    Ok(found)
}

/// Returns whether charon has something to agree on, such as new keys.
fn is_busy(ike: &Section) -> bool {
    let tasks = ["tasks-queued", "tasks-active"];
    tasks.iter().any(|list| !ike.list(list).is_empty())
}

/// Returns whether both sides have the keys of a child. `asked`: this side began the connection.
fn works(child: &Section, asked: bool) -> bool {
    match child.text("state") {
        "REKEYING" | "REKEYED" => true,
        "INSTALLED" => {
            let number = |name| child.text(name).parse::<u64>().ok();
            // A charon that does not say it is believed.
            let since = number("install-time").is_none_or(|since| since >= ANSWERED);
            asked || since || number("packets-in") > Some(0)
        }
        _ => false,
    }
}

fn child_name(key: &IkeKey) -> String {
    format!("{}-{}", key.local, key.remote)
}

async fn load(
    client: &mut Client,
    name: &str,
    key: &IkeKey,
    wanted: &IkeConnection,
) -> io::Result<()> {
    let mut secret = Section::default()
        .with("id", name)
        .with("type", "IKE")
        .with("data", &*wanted.psk.0);
    let owners = vec![wanted.local_id.to_string(), wanted.remote.to_string()];
    secret
        .0
        .push(("owners".into(), super::vici::Value::List(owners)));
    client.order("load-shared", &secret).await?;
    let child = Section::default()
        .with_list("local_ts", key.local.to_string())
        .with_list("remote_ts", key.remote.to_string())
        .with_list("esp_proposals", &*wanted.esp)
        .with("mode", "tunnel")
        .with("reqid", model::object::IPSEC_REQUEST.to_string())
        .with("policies", "no")
        // Begun by a look: where both sides begin, each connection is there twice.
        .with("start_action", "none")
        .with("close_action", "start")
        .with("dpd_action", "restart")
        .with("rekey_time", REKEY_TIME)
        .with("rekey_packets", REKEY_PACKETS);
    let psk = || Section::default().with("auth", "psk");
    let connection = Section::default()
        .with("version", "2")
        .with_list("local_addrs", wanted.local.to_string())
        .with_list("remote_addrs", wanted.remote.to_string())
        .with_list("proposals", IKE)
        .with("keyingtries", "0")
        // Addresses change by leases, and the policies with them. By itself charon would ask every peer about a new way
        // whenever a pod comes or goes.
        .with("mobike", "no")
        .with("dpd_delay", DPD_DELAY)
        .with("encap", if wanted.encap { "yes" } else { "no" })
        .with_section("local", psk().with("id", wanted.local_id.to_string()))
        .with_section("remote", psk().with("id", wanted.remote.to_string()))
        .with_section(
            "children",
            Section::default().with_section(&child_name(key), child),
        );
    let message = Section::default().with_section(name, connection);
    client.order("load-conn", &message).await
}

async fn initiate(client: &mut Client, name: &str, key: &IkeKey) -> io::Result<()> {
    let message = Section::default()
        .with("child", child_name(key))
        .with("ike", name)
        // Not to be waited for.
        .with("timeout", "-1");
    client.order("initiate", &message).await
}

async fn unload(client: &mut Client, name: &str) -> io::Result<()> {
    // What is gone already cannot be removed.
    let named = |key: &str| Section::default().with(key, name);
    client.call("unload-conn", &named("name")).await?;
    terminate(client, name).await?;
    client.call("unload-shared", &named("id")).await?;
    Ok(())
}

async fn terminate(client: &mut Client, name: &str) -> io::Result<()> {
    let message = Section::default().with("ike", name).with("timeout", "-1");
    client.call("terminate", &message).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_asked_for_a_connection_takes_it_to_be_up_when_the_other_side_has_the_keys() {
        let child = |state: &str, since: &str, packets: &str| {
            Section::default()
                .with("state", state)
                .with("install-time", since)
                .with("packets-in", packets)
        };
        let fresh = child("INSTALLED", "0", "0");
        assert!(works(&fresh, true) && !works(&fresh, false));
        assert!(works(&child("INSTALLED", "0", "1"), false));
        assert!(works(&child("INSTALLED", "3", "0"), false));
        assert!(works(&child("REKEYING", "0", "0"), false));
        assert!(!works(&child("CREATED", "", ""), true));
    }
}
