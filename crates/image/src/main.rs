//! `flannel-image`: makes the container image without docker and without a registry, and says what is in the packages.
//!
//! The same programs and the same Debian packages give the same image, bit for bit.
//!
//! | module | holds |
//! |---|---|
//! | `tree` | the files of an image, in memory |
//! | `ours` | our programs in it |
//! | `root` | a directory with Debian packages' files: this machine's, or one of another architecture |
//! | `debian` | the programs that flanneld calls, from Debian packages |
//! | `crates` | the Rust packages that our programs are made of |
//! | `notices` | the licences of those packages |
//! | `sbom` | what is in it, as a CycloneDX document |
//! | `archive` | a tree as the archive that `ctr images import` and `docker load` take |
//! | `index` | images for several architectures as one |

#![forbid(unsafe_code)]

mod archive;
mod crates;
mod debian;
mod index;
mod notices;
mod ours;
mod root;
mod sbom;
mod tree;

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use archive::{Image, Platform};
use root::Root;
use sbom::Subject;
use tree::Tree;

/// Where the image's name is written, once for everything: `scripts/image-name` changes it.
const VALUES: &str = include_str!("../../../deploy/chart/values.yaml");
/// Our programs and all they call, unpacked, in bytes.
const MOST: usize = 20 * 1000 * 1000;
/// The same for other architectures, where Debian's libraries are padded to pages of 64 KiB (arm64, ppc64el).
const MOST_ELSEWHERE: usize = 30 * 1000 * 1000;
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Makes flannel's container image from built programs and Debian packages.
#[derive(Parser)]
#[command(name = "flannel-image", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes the archive and the bill of materials into a directory
    Archive {
        #[command(flatten)]
        content: Content,
        /// The directory
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Writes the image's files below a directory, for a Containerfile to copy
    Tree {
        #[command(flatten)]
        content: Content,
        /// The directory
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Makes one OCI archive of the archives for several architectures
    Index {
        /// The archive to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// What `flannel-image archive` wrote
        #[arg(required = true, value_name = "ARCHIVE")]
        archives: Vec<PathBuf>,
    },
    /// Writes the third-party notices, as text
    Notices {
        #[command(flatten)]
        programs: Programs,
        /// The file to write
        file: PathBuf,
    },
    /// Writes a bill of materials, FILE.cdx.json, for each package or archive with our programs
    Sbom {
        #[command(flatten)]
        programs: Programs,
        /// The packages and archives
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

#[derive(Args)]
struct Content {
    /// Where the programs flanneld, flannel and flannelctl are
    #[arg(long, value_name = "DIR")]
    programs: PathBuf,
    /// Where Debian's programs are: this machine, or a directory that scripts/debian-root made for another architecture
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// The Rust target of the programs [default: this machine's with musl]
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// The image's name without its tag; what the chart names by default
    #[arg(long, value_name = "NAME", env = "IMAGE_NAME", default_value = default_name())]
    name: String,
    /// Larger than 20 MB is not an error: for programs that were built for development
    #[arg(long)]
    any_size: bool,
}

#[derive(Args)]
struct Programs {
    /// The Rust target of the programs [default: this machine's with musl]
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// flannelctl has the commands lab and demo, which that of the image has not
    #[arg(long)]
    with_lab: bool,
}

/// Returns the name that the chart, and so the manifest, gives the image.
fn default_name() -> &'static str {
    let mut names = VALUES
        .lines()
        .filter_map(|line| line.trim().strip_prefix("repository: "));
    names.next().unwrap_or_default()
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "flannel-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Archive { content, out } => archive(content, out),
        Command::Tree { content, out } => {
            let image = Files::collect(content)?;
            image.debian.tree.write_below(out)?;
            image.programs.write_below(out)
        }
        Command::Index { out, archives } => {
            let read = |path: &PathBuf| {
                fs::read(path).with_context(|| format!("cannot read {}", path.display()))
            };
            let archives = archives.iter().map(read).collect::<Result<Vec<_>>>()?;
            write(out, &index::index(&archives)?)
        }
        Command::Notices { programs, file } => {
            let target = target(programs.target.as_deref());
            let crates = crates::of_programs(&target, programs.with_lab)?;
            let notices = notices::document(VERSION, &crates::compiler()?, &crates)?;
            write(file, notices.as_bytes())
        }
        Command::Sbom { programs, files } => {
            let target = target(programs.target.as_deref());
            let crates = crates::of_programs(&target, programs.with_lab)?;
            let rust = crates::compiler()?;
            for file in files {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                let bytes =
                    fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
                let subject = Subject::file(VERSION, &name, &bytes);
                let musl = target.contains("musl");
                let sbom = sbom::document(&subject, VERSION, &rust, musl, &crates, &[])?;
                write(&file.with_file_name(format!("{name}.cdx.json")), &sbom)?;
            }
            Ok(())
        }
    }
}

fn target(given: Option<&str>) -> String {
    let own = || format!("{}-unknown-linux-musl", env::consts::ARCH);
    given.map_or_else(own, str::to_owned)
}

/// What is in an image.
struct Files {
    debian: debian::Debian,
    programs: Tree,
    sbom: Vec<u8>,
}

impl Files {
    fn collect(content: &Content) -> Result<Files> {
        let target = target(content.target.as_deref());
        let musl = target.contains("musl");
        let (rust, crates) = (crates::compiler()?, crates::of_programs(&target, false)?);
        let notices = notices::document(VERSION, &rust, &crates)?;
        let (mut programs, libraries) = ours::collect(&content.programs, musl)?;
        let root = Root::new(&content.root);
        let most = if root.is_own() { MOST } else { MOST_ELSEWHERE };
        let debian = debian::collect(&root, &libraries)?;
        let subject = Subject::image(VERSION);
        let sbom = sbom::document(&subject, VERSION, &rust, musl, &crates, &debian.packages)?;
        programs.file("usr/share/flannel-rs/sbom.cdx.json", 0o644, sbom.clone())?;
        legal(&mut programs, &notices)?;
        let files = Files {
            debian,
            programs,
            sbom,
        };
        let size = files.size();
        if size > most && !content.any_size {
            bail!(
                "the image would have {size} bytes, {most} at most are allowed: were the programs built with --release?"
            );
        }
        Ok(files)
    }

    fn size(&self) -> usize {
        self.debian.tree.size() + self.programs.size()
    }
}

fn archive(content: &Content, out: &Path) -> Result<()> {
    let files = Files::collect(content)?;
    let size = files.size();
    let platform = Platform::of_debian(&files.debian.architecture);
    let base = if Root::new(&content.root).is_own() {
        "flannel-rs".to_owned()
    } else {
        format!("flannel-rs-{}", platform.architecture)
    };
    let image = Image {
        name: format!("{}:v{VERSION}", content.name),
        version: VERSION.into(),
        platform,
        // What changes least comes first: a new version of ours then brings along its own layer only.
        layers: vec![
            ("Debian packages", files.debian.tree),
            ("flannel-rs", files.programs),
        ],
    };
    let (archive, id) = image.archive()?;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let path = out.join(format!("{base}.tar"));
    write(&path, &archive)?;
    write(&out.join(format!("{base}.cdx.json")), &files.sbom)?;
    let mut said = io::stdout().lock();
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
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
