//! The door without a device: what it keeps while its threads cannot be started.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};

use model::object::{PacketLoop, TunnelRouteKey};
use model::{IfName, Object, Op};
use proxy::{Config, Proxy};

use super::*;

thread_local! {
    /// Whether threads can be started.
    static STARTS: Cell<bool> = const { Cell::new(true) };
}

fn start(config: Config) -> std::io::Result<Proxy> {
    if STARTS.get() {
        Proxy::start(config)
    } else {
        Err(std::io::Error::from_raw_os_error(libc::EMFILE))
    }
}

fn name() -> IfName {
    // No device has this name: the loop waits for it.
    "no-such-dev".parse().unwrap()
}

fn listening(mtu: u32) -> Op {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let value = PacketLoop {
        listen,
        mtu,
        keys: None,
    };
    Op::Put(Object::PacketLoop(name(), value))
}

fn route(subnet: u8) -> Object {
    let key = TunnelRouteKey {
        dev: name(),
        dst: format!("10.1.{subnet}.0/24").parse().unwrap(),
    };
    Object::TunnelRoute(key, SocketAddr::from(([192, 0, 2, subnet], 8285)))
}

async fn shown(door: &mut PacketLoops) -> Vec<Object> {
    let mut all = Vec::new();
    door.observe(&mut |object| all.push(object)).await.unwrap();
    all
}

#[tokio::test]
async fn a_loop_that_cannot_be_replaced_keeps_its_routes_until_it_can() {
    let mut door = PacketLoops {
        start,
        ..PacketLoops::default()
    };
    let first = [listening(1400), Op::Put(route(1))];
    let outcomes = door.apply(&first).await;
    assert!(
        matches!(outcomes[..], [Outcome::UnderWay, Outcome::Done]),
        "{outcomes:?}"
    );
    STARTS.set(false);
    for _ in 0..2 {
        let outcomes = door.apply(&[listening(1300), Op::Put(route(2))]).await;
        assert!(
            matches!(&outcomes[..], [Outcome::Refused(error), Outcome::Done] if error.errno == libc::EMFILE),
            "{outcomes:?}"
        );
        assert_eq!(shown(&mut door).await, [route(1), route(2)]);
    }
    door.apply(&[Op::Del(route(1))]).await;
    let the_loop = &door.loops[&name()];
    assert!(the_loop.proxy.is_none() && the_loop.changed);
    STARTS.set(true);
    let outcomes = door.apply(&[listening(1300)]).await;
    assert!(matches!(outcomes[..], [Outcome::UnderWay]), "{outcomes:?}");
    assert_eq!(shown(&mut door).await, [route(2)]);
    // It has them.
    let the_loop = &door.loops[&name()];
    assert!(the_loop.proxy.is_some() && !the_loop.changed);
}
