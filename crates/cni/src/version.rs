//! The versions of the CNI specification.

/// A version that this plugin speaks; a later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(usize);

impl Version {
    /// All of them, oldest first.
    pub const ALL: [&str; 7] = [
        "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
    ];
    /// What a configuration that says nothing is of.
    pub const OLDEST: Version = Version(0);
    /// The newest.
    pub const NEWEST: Version = Version(Version::ALL.len() - 1);
    /// The first with CHECK.
    pub const WITH_CHECK: Version = Version(4);
    /// The first with STATUS and GC.
    pub const WITH_STATUS: Version = Version(6);

    /// Finds a version by its exact text.
    pub fn parse(text: &str) -> Option<Version> {
        Version::ALL
            .iter()
            .position(|known| *known == text)
            .map(Version)
    }

    /// Its text.
    pub fn as_str(self) -> &'static str {
        Version::ALL.get(self.0).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn the_marks_are_where_they_say() {
        assert_eq!(Version::OLDEST.as_str(), "0.1.0");
        assert_eq!(Version::WITH_CHECK.as_str(), "0.4.0");
        assert_eq!(Version::WITH_STATUS.as_str(), "1.1.0");
        assert_eq!(Version::NEWEST.as_str(), "1.1.0");
        assert_eq!(Version::parse("1.0"), None);
        assert!(Version::parse("0.3.1") < Version::parse("1.0.0"));
    }
}
