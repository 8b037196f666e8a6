//! The kernel brings up a cable in the background: until it has, it drops what is sent.

use std::time::Duration;

use crate::netlink::{Asker, attr, u32_at};
use crate::{Error, Namespace, wait_for};

const RTM_GETLINK: u16 = 18;
const AF_BRIDGE: u8 = 7;
/// `IF_OPER_UP`.
const OPER_UP: u8 = 6;
/// `IF_OPER_UNKNOWN`: a bridge works in this state, and leaves it only a second later.
const OPER_UNKNOWN: u8 = 0;
/// `BR_STATE_FORWARDING`.
const FORWARDING: u8 = 3;

/// Waits until every cable and bridge in `place` that is switched on carries packets.
pub(crate) fn settle(place: &Namespace) -> Result<(), Error> {
    let look = || -> Result<(), String> {
        match place.run(idle).and_then(|idle| idle) {
            Ok(idle) if idle.is_empty() => Ok(()),
            Ok(idle) => Err(format!("not yet: {}", idle.join(", "))),
            Err(e) => Err(e.to_string()),
        }
    };
    wait_for(
        &format!("the links of {} carry packets", place.name()),
        Duration::from_secs(10),
        look,
    )
}

/// Links that are switched on but do not carry packets yet.
fn idle() -> Result<Vec<String>, Error> {
    let asker = Asker::open()?;
    let mut idle = Vec::new();
    let name = |list: &[u8]| {
        attr(list, 3).map(|n| {
            String::from_utf8_lossy(n)
                .trim_end_matches('\0')
                .to_string()
        })
    };
    asker.dump(RTM_GETLINK, &[0; 16], |m| {
        let list = m.get(16..).unwrap_or_default();
        let kind = attr(list, 18)
            .and_then(|info| attr(info, 1))
            .unwrap_or_default();
        let works: &[u8] = match kind.strip_suffix(b"\0").unwrap_or(kind) {
            b"veth" => &[OPER_UP],
            b"bridge" => &[OPER_UP, OPER_UNKNOWN],
            _ => return,
        };
        let on = u32_at(m, 8).is_some_and(|flags| flags & 1 == 1);
        let oper = attr(list, 16).and_then(|state| state.first());
        if on && oper.is_none_or(|state| !works.contains(state)) {
            idle.extend(name(list));
        }
    })?;
    let mut request = [0; 16];
    request[0] = AF_BRIDGE;
    asker.dump(RTM_GETLINK, &request, |m| {
        let list = m.get(16..).unwrap_or_default();
        // A bridge answers for itself too, without the part about a port.
        let state = attr(list, 12)
            .and_then(|port| attr(port, 1))
            .and_then(|state| state.first().copied());
        if state.is_some_and(|state| state != FORWARDING) {
            idle.extend(name(list));
        }
    })?;
    Ok(idle)
}
