//! What follows from each notice.

use model::Object;
use model::object::{NextHop, Route, RouteTo};
use model::state::FIRST_ID;

use super::{Events, steady};
use crate::KernelEvent;
use crate::netlink::scope::View;
use crate::netlink::socket::Requests;
use crate::netlink::uapi::*;
use crate::netlink::wire::Message;
use crate::netlink::{decode, link, observe};

impl Events {
    /// Takes in one notice.
    pub(super) fn notice(&mut self, message: &Message, view: &mut View, requests: &mut Requests) {
        let gone = message.kind & 1 == 1;
        // A notice that cannot be read tells nothing.
        let _ = match message.kind {
            RTM_NEWLINK | RTM_DELLINK => self.link(message, gone, view, requests),
            RTM_NEWADDR | RTM_DELADDR => self.addr(message, gone, view),
            RTM_NEWNEIGH | RTM_DELNEIGH => self.neigh(message, gone, view),
            RTM_NEWROUTE | RTM_DELROUTE => self.route(message, gone, view, requests),
            RTM_NEWNEXTHOP | RTM_DELNEXTHOP => self.next_hop(message, gone, view),
            _ => None,
        };
    }

    fn link(
        &mut self,
        message: &Message,
        gone: bool,
        view: &mut View,
        requests: &mut Requests,
    ) -> Option<()> {
        // Most are about somebody else's devices: look no further than needed.
        let (index, name) = decode::link_id(message)?;
        if name.is_some() && name == self.changing {
            return None;
        }
        let mut moved = false;
        for device in view.devices.iter_mut().filter(|d| d.index == index) {
            if gone || name != Some(device.name) {
                device.index = 0;
                moved = true;
                match (device.link.take(), device.ours) {
                    (Some(old), true) => self
                        .queue
                        .push_back(KernelEvent::Gone(Object::Link(device.name, old))),
                    (_, ours) => self.host_changed |= !ours,
                }
            }
        }
        let device = view
            .devices
            .iter_mut()
            .find(|d| !gone && name == Some(d.name));
        let raw = decode::link(message);
        if let (Some(device), Some(raw)) = (device, raw) {
            let mut link = raw.link();
            link::look_closer(index, &device.name, &mut link);
            let flapped = device.index != index
                || device.running != raw.running()
                // Into and out of a VRF the kernel drops the device's routes without a word.
                || device.master != raw.master
                || device.link.as_ref().is_none_or(|old| old.up != link.up);
            let changed = flapped || device.link.as_ref() != Some(&link);
            moved |= device.index != index;
            device.index = index;
            device.running = raw.running();
            device.master = raw.master;
            device.link = Some(link.clone());
            self.look_again |= flapped;
            match device.ours {
                true if changed => self
                    .queue
                    .push_back(KernelEvent::Saw(Object::Link(device.name, link))),
                ours => self.host_changed |= changed && !ours,
            }
        }
        if moved {
            view.forget_gone();
            self.look_again = true;
            self.refilter(Some(view));
            self.learn_host(view, requests);
        }
        Some(())
    }

    fn addr(&mut self, message: &Message, gone: bool, view: &View) -> Option<()> {
        let raw = decode::addr(message)?;
        let device = view.at(raw.index)?;
        if device.ours {
            let object = view.addr(&raw)?;
            // With an address go the routes that prefer or need it, some of them unannounced.
            match gone {
                true => self.look_again |= self.gone(object),
                false => self.saw(object),
            }
            return Some(());
        }
        if raw.is_kernels() {
            return Some(());
        }
        let raw = steady(raw);
        let at = self.host_addrs.iter().position(|a| a.net == raw.net);
        match (at, gone) {
            (Some(at), true) => {
                self.host_addrs.swap_remove(at);
                self.look_again = true;
            }
            (Some(at), false) if self.host_addrs[at] == raw => return Some(()),
            (Some(at), false) => self.host_addrs[at] = raw,
            (None, true) => return Some(()),
            (None, false) => self.host_addrs.push(raw),
        }
        self.host_changed = true;
        Some(())
    }

    fn neigh(&mut self, message: &Message, gone: bool, view: &View) -> Option<()> {
        let raw = decode::neigh(message)?;
        if raw.family == AF_BRIDGE && !raw.complete {
            return None;
        }
        let (object, permanent) = view.neigh(&raw)?;
        match (gone, permanent) {
            (false, true) => self.saw(object),
            (true, true) => {
                self.gone(object);
            }
            // Learned, or no longer permanent: whatever is there is none of ours.
            (_, false) => {
                self.gone(object);
            }
        }
        Some(())
    }

    fn route(
        &mut self,
        message: &Message,
        gone: bool,
        view: &mut View,
        requests: &mut Requests,
    ) -> Option<()> {
        let mut raw = decode::route(message)?;
        if let Some(found) = view.kernel_route(&raw) {
            let changed = if gone {
                view.kernel_routes.remove(&found)
            } else {
                view.kernel_routes.insert(found)
            };
            self.host_changed |= changed;
        }
        if let (Some(id), None) = (raw.next_hop, raw.indexes().next()) {
            // With net.ipv4.nexthop_compat_mode=0 only the next hop's number is told.
            let hop = observe::find_next_hop(requests, id);
            raw.index = hop.ok().flatten().and_then(|hop| hop.index);
        }
        if let Some((key, route)) = view.route(&raw) {
            let object = Object::Route(key, route);
            match gone {
                true => {
                    self.gone(object);
                }
                false => self.saw(object),
            }
        } else if !gone && message.flags & NLM_F_REPLACE != 0 && view.inside(&raw) {
            // Another's route took the place of what stood there, which may have been ours.
            let to = RouteTo::Foreign(view.scope.iface);
            self.gone(Object::Route(
                raw.key(),
                Route {
                    to,
                    protocol: raw.protocol,
                },
            ));
        }
        let on_host = raw.indexes().any(|i| view.at(i).is_some_and(|d| !d.ours));
        let on_link = raw.via.is_none() && raw.next_hop.is_none() && raw.rtn == RTN_UNICAST;
        self.host_changed |= on_host && on_link;
        Some(())
    }

    fn next_hop(&mut self, message: &Message, gone: bool, view: &View) -> Option<()> {
        let raw = decode::next_hop(message)?;
        let Some((id, hop)) = view.next_hop(&raw) else {
            if !gone && raw.id >= FIRST_ID {
                // Another's took the place of what may have been ours.
                let via = std::net::Ipv4Addr::UNSPECIFIED.into();
                let dev = view.scope.iface;
                let onlink = false;
                self.gone(Object::NextHop(raw.id, NextHop { via, dev, onlink }));
            }
            return Some(());
        };
        match gone {
            true => {
                // Its routes went with it, unannounced.
                self.look_again = true;
                self.gone(Object::NextHop(id, hop));
            }
            false => self.saw(Object::NextHop(id, hop)),
        }
        Some(())
    }
}
