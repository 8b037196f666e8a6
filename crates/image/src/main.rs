//! `flannel-image`: makes the container image without docker and without a registry.
//!
//! The same programs and the same Debian packages give the same image, bit for bit.
//!
//! | module | holds |
//! |---|---|
//! | `tree` | the files of an image, in memory |
//! | `ours` | our programs in it |
//! | `debian` | the programs that flanneld calls, from this machine's Debian packages |
//! | `crates` | the Rust packages that our programs are made of |
//! | `notices` | the licences of those packages |
//! | `sbom` | what is in it, as a CycloneDX document |
//! | `archive` | a tree as the archive that `ctr images import` and `docker load` take |

#![forbid(unsafe_code)]

mod archive;
mod crates;
mod debian;
mod notices;
mod ours;
mod sbom;
mod tree;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use archive::Image;
use tree::Tree;

/// The image's name, as the manifests name it. It has no registry: who pushes it somewhere adds one.
const NAME: &str = "flannel-rs/flannel";
/// Our programs and all they call, unpacked, in bytes.
const MOST: usize = 20 * 1000 * 1000;

/// Makes flannel's container image from built programs and this machine's Debian packages.
#[derive(Parser)]
#[command(name = "flannel-image", version)]
struct Args {
    /// Where the statically linked programs flanneld, flannel and flannelctl are
    #[arg(long, value_name = "DIR", required_unless_present = "notices")]
    programs: Option<PathBuf>,
    /// Write only the third-party notices, as text, to this file
    #[arg(long, value_name = "FILE", exclusive = true)]
    notices: Option<PathBuf>,
    /// Write the archive and the bill of materials into this directory
    #[arg(long, value_name = "DIR", required_unless_present_any = ["tree", "notices"])]
    out: Option<PathBuf>,
    /// Write the image's files below this directory, for a Containerfile to copy
    #[arg(long, value_name = "DIR", conflicts_with = "out")]
    tree: Option<PathBuf>,
    /// Larger than 20 MB is not an error: for programs that were built for development
    #[arg(long)]
    any_size: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "flannel-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let (rust, crates) = (crates::compiler()?, crates::of_programs()?);
    let notices = notices::document(version, &rust, &crates)?;
    if let Some(file) = &args.notices {
        return write(file, notices.as_bytes());
    }
    let Some(dir) = &args.programs else {
        bail!("--programs is needed");
    };
    let debian = debian::collect()?;
    let mut programs = ours::collect(dir)?;
    let sbom = sbom::document(version, &rust, &crates, &debian.packages)?;
    programs.file("usr/share/flannel-rs/sbom.cdx.json", 0o644, sbom.clone())?;
    legal(&mut programs, &notices)?;

    let size = debian.tree.size() + programs.size();
    if size > MOST && !args.any_size {
        bail!(
            "the image would have {size} bytes, {MOST} at most are allowed: were the programs built with --release?"
        );
    }
    if let Some(dir) = &args.tree {
        debian.tree.write_below(dir)?;
        return programs.write_below(dir);
    }
    let Some(out) = &args.out else {
        bail!("--out or --tree is needed");
    };
    let image = Image {
        name: format!("{NAME}:v{version}"),
        version: version.into(),
        architecture: debian.architecture,
        // What changes least comes first: a new version of ours then brings along its own layer only.
        layers: vec![("Debian packages", debian.tree), ("flannel-rs", programs)],
    };
    let (archive, id) = image.archive()?;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    write(&out.join("flannel-rs.tar"), &archive)?;
    write(&out.join("flannel-rs.cdx.json"), &sbom)?;
    let mut said = io::stdout().lock();
    let path = out.join("flannel-rs.tar");
    let _ = writeln!(
        said,
        "{}\n  {}, id sha256:{id}, {:.1} MB unpacked",
        path.display(),
        image.name,
        size as f64 / 1e6
    );
    Ok(())
}

/// Our licence, and what the licences of others ask to be passed on. Debian's packages have their own files.
fn legal(tree: &mut Tree, notices: &str) -> Result<()> {
    const DIR: &str = "usr/share/doc/flannel-rs";
    for (name, text) in [
        ("LICENSE", include_str!("../../../LICENSE")),
        ("NOTICE", include_str!("../../../NOTICE")),
    ] {
        tree.file(&format!("{DIR}/{name}"), 0o644, text.into())?;
    }
    let name = format!("{DIR}/THIRD-PARTY-NOTICES.gz");
    tree.file(&name, 0o644, tree::packed(notices.as_bytes())?)
}

/// In one step, so that nobody reads half a file.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
