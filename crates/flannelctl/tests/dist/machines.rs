//! A machine with our package on it.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use lab::{Lab, Machine, StoreKind, wait_for};

use crate::{SOON, script, succeed};

/// Packages are built once for all tests, and not compressed.
static PACKAGES: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

/// Builds the package of `version` in `dir`.
pub(crate) fn build(version: &str, dir: &Path) -> PathBuf {
    let said = succeed(
        script("packages")
            .arg("-o")
            .arg(dir)
            .arg("deb")
            .env("PACKAGE_VERSION", version)
            .env("PACKAGE_COMPRESSION", "none"),
    );
    PathBuf::from(said.trim())
}

/// The package that most tests install.
pub(crate) fn package() -> &'static Path {
    static PACKAGE: LazyLock<PathBuf> = LazyLock::new(|| build("0.1.0", PACKAGES.path()));
    &PACKAGE
}

/// The package that comes after it.
pub(crate) fn next_package() -> &'static Path {
    static PACKAGE: LazyLock<PathBuf> = LazyLock::new(|| build("0.1.1", PACKAGES.path()));
    &PACKAGE
}

/// Whether machines can run here, and packages be built; reports it if not.
pub(crate) fn possible() -> bool {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    lab::real_root_for(&format!("{test}, on a machine with systemd")) && packages_for(&test)
}

/// Whether packages can be built here; reports it if not.
pub(crate) fn packages_for(what: &str) -> bool {
    let nfpm = script("../scripts/nfpm").output().unwrap();
    if nfpm.status.success() {
        return true;
    }
    assert_eq!(nfpm.status.code(), Some(2), "{nfpm:?}");
    let why = String::from_utf8_lossy(&nfpm.stderr).into_owned();
    lab::not_run(what, &lab::Error::Needs(why));
    false
}

/// A lab of two nodes, the first of which is to be a machine.
pub(crate) fn lab(store: StoreKind) -> Lab {
    Lab::builder().nodes(2).store(store).build().unwrap()
}

/// Installs a package.
pub(crate) fn install(machine: &Machine, package: &Path) {
    let to = format!("/root/{}", package.file_name().unwrap().to_string_lossy());
    machine.copy_in(package, &to).unwrap();
    machine
        .exec(["dpkg", "--install", "--force-confold", &to])
        .unwrap();
    machine.exec(["rm", &to]).unwrap();
}

/// A machine with the package, settings for the lab's store, and a unit that may write there.
pub(crate) fn configured(lab: &Lab, settings: &str) -> Machine {
    let machine = Machine::boot(lab.node(1)).unwrap();
    install(&machine, package());
    let settings = match lab.etcd() {
        None => {
            let drop_in = "[Service]\nReadWritePaths=/run/lab/store\n";
            machine
                .write("/etc/systemd/system/flanneld.service.d/store.conf", drop_in)
                .unwrap();
            machine.exec(["systemctl", "daemon-reload"]).unwrap();
            format!("FLANNELD_STORE_DIR=/run/lab/store\n{settings}")
        }
        Some(etcd) => format!(
            "FLANNELD_OPTIONS={}\n{settings}",
            etcd.flanneld_args().join(" ")
        ),
    };
    machine
        .write("/etc/flannel/flanneld.env", &settings)
        .unwrap();
    machine
}

/// A property of a unit, such as `ActiveState`.
pub(crate) fn property(machine: &Machine, unit: &str, name: &str) -> String {
    let value = machine.exec(["systemctl", "show", "--value", "--property", name, unit]);
    value.unwrap().trim().to_string()
}

/// Waits until the journal of flanneld's unit, systemd's own lines included, holds `text`: what a
/// program wrote arrives there later than its end.
pub(crate) fn journal_says(machine: &Machine, text: &str) {
    wait_for(&format!("the journal says {text:?}"), SOON, || {
        let journal = machine.journal("flanneld").map_err(|e| e.to_string())?;
        match journal.contains(text) {
            true => Ok(()),
            false => Err(journal),
        }
    })
    .unwrap();
}

/// What the unit said that is worse than information.
pub(crate) fn complaints(machine: &Machine) -> Vec<String> {
    let journal = machine.journal("flanneld").unwrap();
    let bad = |line: &&str| line.contains("WARN") || line.contains("ERROR");
    journal.lines().filter(bad).map(String::from).collect()
}
