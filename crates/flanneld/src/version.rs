//! Which flannel-rs this is.

/// The version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that the program was built from, where `FLANNEL_COMMIT` named it when it was built.
pub const COMMIT: Option<&str> = option_env!("FLANNEL_COMMIT");

/// Returns version and commit, such as `0.1.0 (commit 1f2e…)`.
pub fn with_commit() -> String {
    match COMMIT {
        Some(commit) => format!("{VERSION} (commit {commit})"),
        None => VERSION.to_owned(),
    }
}
