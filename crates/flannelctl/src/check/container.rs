//! What a container does not see of its host.

use std::fs;
use std::path::Path;

use super::report::Report;

/// Files that container runtimes leave in a container's root, and the variable that every pod has.
const MARKS: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];
const POD: &str = "KUBERNETES_SERVICE_HOST";
/// The host's directories that an image has only as places to mount them.
const OF_THE_HOST: [&str; 2] = ["/etc/cni/net.d", "/opt/cni/bin"];

/// Returns whether this process is in a container, as far as that shows.
pub(crate) fn inside() -> bool {
    std::env::var_os(POD).is_some() || MARKS.iter().any(|mark| Path::new(mark).exists())
}

/// Returns whether `dir` is a directory of the host that was not mounted into this container: nothing is in
/// it here, whatever is in it there.
pub(crate) fn lacks(dir: &Path) -> bool {
    let empty = || fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    OF_THE_HOST.iter().any(|of| dir == Path::new(of)) && inside() && empty()
}

/// Reports such a directory.
pub(crate) fn skip(report: &mut Report, about: &'static str, dir: &Path) {
    report.skip(
        about,
        format!("{} of the host is not mounted into this container", dir.display()),
        "run flannelctl check on the host itself, or name the place where it is mounted (--cni-conf-dir, --cni-bin-dir)",
    );
}
