//! The machine against a small store in memory: thousands of random histories, and the named
//! situations that went wrong before.

mod assigned;
mod histories;
mod sim;
mod situations;
