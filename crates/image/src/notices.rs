//! Third-party notices: under which licences the Rust packages in our programs are, with the texts that those licences
//! ask to be passed on.
//!
//! Where a package offers the Apache License among others, that one is chosen: its text is the project's own `LICENSE`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::crates::Crate;

const APACHE: &str = "Apache-2.0";
/// Texts that packages forgot to include, from their repositories.
const FORGOTTEN: [(&str, &str); 1] = [("boringtun", include_str!("notices/boringtun.txt"))];
/// The standard library is linked into every program, and so is the C library that comes with it for musl targets.
const MUSL: &str = "musl libc, part of the Rust standard library for musl targets";
const MUSL_COPYRIGHT: &str = "Copyright © 2005-2020 Rich Felker, et al.";
const MIT: &str = "\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the \"Software\"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
";

/// Returns the notices as text: a list of the packages, then each distinct licence text with the packages it is of.
/// `rust` is the version of the compiler.
///
/// # Errors
/// A package names no licence, or its licence asks for a text that the package does not contain.
pub fn document(version: &str, rust: &str, crates: &[Crate]) -> Result<String> {
    let mut out = format!(
        "Third-party software in flannel-rs {version}\n\n\
         The programs flanneld, flannel and flannelctl contain the Rust packages below. Where {APACHE} is named, its text\n\
         is in the file LICENSE next to this one; the other texts follow the list.\n\n"
    );
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let _ = writeln!(out, "rust {rust} (standard library): {APACHE}");
    for package in crates.iter().filter(|c| !c.ours) {
        let id = package.id();
        let Some(offered) = &package.licence else {
            bail!("{id} names no licence: it cannot be passed on");
        };
        let chosen = chosen(offered);
        let _ = writeln!(out, "{} {}: {chosen}", package.name, package.version);
        let (mut licences, notices) = files(&package.directory)?;
        let mut wanted = notices;
        if chosen != APACHE {
            if licences.is_empty() {
                let forgotten = FORGOTTEN.iter().filter(|(name, _)| *name == package.name);
                licences.extend(forgotten.map(|(_, text)| (*text).to_owned()));
                if chosen == "MIT" {
                    let by = match package.authors.as_slice() {
                        [] => format!("the {} developers", package.name),
                        authors => authors.join(", "),
                    };
                    licences.push(format!("Copyright {by}\n\n{MIT}"));
                }
            }
            if licences.is_empty() {
                bail!(
                    "{id} is under {chosen}, but there is no licence text in {}",
                    package.directory.display()
                );
            }
            wanted.extend(licences);
        }
        for text in wanted {
            texts.entry(text).or_default().insert(id.clone());
        }
    }
    let musl = format!("{MUSL_COPYRIGHT}\n\n{MIT}");
    texts.entry(musl).or_default().insert(MUSL.to_owned());
    let mut texts: Vec<(BTreeSet<String>, String)> =
        texts.into_iter().map(|(t, ids)| (ids, t)).collect();
    texts.sort();
    for (ids, text) in texts {
        let ids: Vec<String> = ids.into_iter().collect();
        let rule = "-".repeat(80);
        let _ = write!(
            out,
            "\n{rule}\n{}\n{rule}\n\n{}\n",
            ids.join(", "),
            text.trim_matches('\n')
        );
    }
    Ok(out)
}

/// The licence under which a package is used, of an SPDX expression of what it offers.
fn chosen(offered: &str) -> String {
    // An older way to write OR.
    let expression = offered
        .replace('/', " OR ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    if !expression.contains(['(', ')']) && expression.split(" OR ").any(|one| one == APACHE) {
        return APACHE.to_owned();
    }
    expression
}

/// The texts of a package's licence files, and of its NOTICE files, which the Apache License asks to be passed on.
fn files(directory: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let (mut licences, mut notices) = (Vec::new(), Vec::new());
    let read = || format!("cannot read {}", directory.display());
    for entry in fs::read_dir(directory).with_context(read)? {
        let entry = entry.with_context(read)?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        let list = match name.split(['-', '.', '_']).next() {
            Some("LICENSE" | "LICENCE" | "COPYING" | "COPYRIGHT" | "UNLICENSE") => &mut licences,
            Some("NOTICE") => &mut notices,
            _ => continue,
        };
        if entry.path().is_file() {
            let bytes = fs::read(entry.path())
                .with_context(|| format!("cannot read {}", entry.path().display()))?;
            list.push(String::from_utf8_lossy(&bytes).replace("\r\n", "\n"));
        }
    }
    licences.sort();
    notices.sort();
    Ok((licences, notices))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apache_license_is_chosen_where_it_is_offered() {
        for offered in [
            "MIT OR Apache-2.0",
            "Apache-2.0",
            "MIT/Apache-2.0",
            "Apache-2.0 / MIT",
        ] {
            assert_eq!(chosen(offered), APACHE);
        }
        for offered in [
            "MIT",
            "Apache-2.0 AND ISC",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
        ] {
            assert_eq!(chosen(offered), offered);
        }
    }

    #[test]
    fn texts_are_passed_on_once_and_a_missing_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let package = |name: &str, licence: Option<&str>| {
            let directory = dir.path().join(name);
            fs::create_dir_all(&directory).unwrap();
            Crate {
                name: name.into(),
                version: "1.0.0".into(),
                licence: licence.map(Into::into),
                ours: false,
                needs: BTreeSet::new(),
                authors: Vec::new(),
                directory,
            }
        };
        let list = [
            package("a", Some("ISC")),
            package("b", Some("ISC")),
            package("c", Some("MIT OR Apache-2.0")),
        ];
        let said = document("1", "1.0", &list).unwrap_err().to_string();
        assert!(said.starts_with("a@1.0.0 is under ISC, but"), "{said}");
        for name in ["a", "b"] {
            fs::write(
                dir.path().join(name).join("LICENSE-MIT"),
                "do what you like\n",
            )
            .unwrap();
        }
        fs::write(dir.path().join("c/NOTICE"), "c's notice\n").unwrap();
        let text = document("1", "1.0", &list).unwrap();
        assert_eq!(text.matches("do what you like").count(), 1, "{text}");
        assert!(text.contains("a@1.0.0, b@1.0.0\n"), "{text}");
        assert!(
            text.contains("c's notice") && text.contains("c 1.0.0: Apache-2.0\n"),
            "{text}"
        );
        let plain = document("1", "1.0", &[package("e", Some("MIT"))]).unwrap();
        assert!(plain.contains("Copyright the e developers"), "{plain}");
        assert!(document("1", "1.0", &[package("d", None)]).is_err());
    }
}
