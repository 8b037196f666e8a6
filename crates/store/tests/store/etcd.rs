//! The etcd store, against a real etcd.

use crate::etcd_server::Etcd;

crate::suite!(Etcd);
