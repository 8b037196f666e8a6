//! Checksum offload of the tunnel device: `Backend.TxChecksumOffload`.
//!
//! A tunnel device passes the work of a packet's inner checksum on to the device beneath. Where that
//! one gets it wrong, the outer packet arrives and the inner one is dropped for its checksum: pings
//! pass, TCP and UDP do not. Then the tunnel device has to make the checksums itself.

use model::{ConfigError, Host, NetConfig};

/// The option's name.
pub const OPTION: &str = "TxChecksumOffload";

/// The kinds of device, by the kernel's name, beneath which inner checksums are known to be lost.
const BREAKS_CHECKSUMS: [&str; 1] = ["wireguard"];

/// What an operator may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TxChecksumOffload {
    /// Left as it is, except that it is off above a device known to break it.
    #[default]
    Auto,
    /// Left to the device beneath.
    On,
    /// The tunnel device makes them.
    Off,
}

impl TxChecksumOffload {
    /// Every value as it is written.
    pub const NAMES: [(&'static str, TxChecksumOffload); 3] = [
        ("auto", TxChecksumOffload::Auto),
        ("on", TxChecksumOffload::On),
        ("off", TxChecksumOffload::Off),
    ];

    /// What messages say is expected.
    pub const EXPECTED: &'static str = "auto, on or off";

    /// The value of this name.
    pub fn parse(name: &str) -> Option<TxChecksumOffload> {
        let mut names = Self::NAMES.iter();
        names.find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// As the network configuration asks for it.
    pub(super) fn read(config: &NetConfig) -> Result<TxChecksumOffload, ConfigError> {
        let names = Self::NAMES.map(|(name, _)| name);
        let chosen = config.backend.choice(OPTION, names[0], &names)?;
        Ok(Self::parse(chosen).unwrap_or_default())
    }

    /// What it means for a tunnel over this host's interface; `None` leaves the device alone.
    pub(super) fn over(self, host: &Host) -> Option<bool> {
        match self {
            TxChecksumOffload::On => Some(true),
            TxChecksumOffload::Off => Some(false),
            TxChecksumOffload::Auto => breaks_checksums(&host.kind).then_some(false),
        }
    }
}

/// Whether inner checksums are known to be lost beneath a device of this kind.
pub fn breaks_checksums(kind: &str) -> bool {
    BREAKS_CHECKSUMS.contains(&kind)
}
