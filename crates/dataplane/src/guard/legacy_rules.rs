//! The guard as rules of legacy iptables, for a kernel without nf_tables. They are the first ones of `INPUT` and
//! `FORWARD`, each with a comment that names the network. The kernel tells nobody of changes: they are looked for now
//! and then.

use ipnet::IpNet;
use model::Family;
use model::guard::{DEVICE_PREFIX, Hook, Packets};
use tokio::time::{Duration, sleep};

use crate::rules::RulesError;
use crate::rules::legacy::{self, Briefs};
use crate::rules::place::Place;
use crate::rules::save::{self, Words};
use crate::rules::tools::Tools;
use crate::rules::variant::{self, Variant};

/// How the comments of our rules begin; the network follows.
const COMMENT: &str = "flanneld guard ";
const TABLE: &str = "filter";
/// How often the tables are looked at.
const RESYNC: Duration = Duration::from_secs(5);
/// After so many looks the kernel may have nf_tables, because somebody loaded the module.
const LOOKS: usize = 12;

/// Keeps the rules of one network.
pub(super) struct LegacyRules {
    comment: String,
    tools: Tools,
    briefs: Briefs,
    /// What the tables looked like when all was well.
    seen: Vec<Option<u64>>,
}

impl LegacyRules {
    /// Nothing is read or written yet.
    pub(super) fn new(network: &str) -> LegacyRules {
        LegacyRules {
            comment: format!("{COMMENT}{network}"),
            tools: Tools::new(),
            briefs: Briefs::default(),
            seen: Vec::new(),
        }
    }

    /// Reads the rules and writes what differs, in one transaction for each family. Returns whether it wrote.
    ///
    /// # Errors
    /// The first failure; the other family was seen to nevertheless.
    pub(super) async fn ensure(&mut self, rules: &[(Hook, Packets)]) -> Result<bool, RulesError> {
        let mut ensured = Ok(false);
        for family in Family::ALL {
            match self.ensure_family(family, rules).await {
                Ok(wrote) => ensured = ensured.map(|before| before || wrote),
                Err(error) => ensured = ensured.and(Err(error)),
            }
        }
        self.seen = self.look();
        ensured
    }

    async fn ensure_family(
        &self,
        family: Family,
        rules: &[(Hook, Packets)],
    ) -> Result<bool, RulesError> {
        if rules.is_empty() && !is_present(family, &self.comment)? {
            return Ok(false);
        }
        let saved = read(&self.tools, family).await?;
        let is_ours = |comment: &str| comment == self.comment;
        let wanted = rules.iter().filter(|(_, what)| of(what) == family);
        let wanted = wanted.map(|(hook, what)| spell(*hook, what, &self.comment));
        match patch(&saved, is_ours, &wanted.collect::<Vec<_>>()) {
            None => Ok(false),
            Some(text) => {
                let place = Place::IptablesLegacy;
                place.write(&self.tools, family, &text).await.map(|_| true)
            }
        }
    }

    fn look(&mut self) -> Vec<Option<u64>> {
        let brief = |family| self.briefs.of(family, TABLE).ok().flatten();
        let briefs = Family::ALL.map(brief);
        briefs.map(|brief| brief.map(|b| b.fingerprint)).to_vec()
    }

    /// Waits until the tables are not as they were, or until it is time to try nf_tables again. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        for _ in 0..LOOKS {
            sleep(RESYNC).await;
            if self.look() != self.seen {
                return;
            }
        }
    }
}

/// What would remove the rules of all networks, for each family that has some.
///
/// # Errors
/// The tables cannot be read.
pub(crate) async fn removals(tools: &Tools) -> Result<Vec<(Family, String)>, RulesError> {
    let mut found = Vec::new();
    for family in Family::ALL {
        if is_present(family, COMMENT)? {
            let saved = read(tools, family).await?;
            let text = patch(&saved, is_a_networks, &[]);
            found.extend(text.map(|text| (family, text)));
        }
    }
    Ok(found)
}

/// Whether a comment is one of ours; an administrator's may begin alike.
fn is_a_networks(comment: &str) -> bool {
    let network = comment.strip_prefix(COMMENT);
    network.is_some_and(|network| network.parse::<IpNet>().is_ok())
}

/// Whether the table mentions `comment`. Starts no program, and makes no table.
fn is_present(family: Family, comment: &str) -> Result<bool, RulesError> {
    let look = legacy::look(family, TABLE, &[comment]);
    let look = look.map_err(|error| RulesError::Kernel {
        what: format!("{family} table {TABLE} of legacy iptables"),
        reason: error.to_string(),
    })?;
    Ok(look.is_some_and(|look| look.ours))
}

async fn read(tools: &Tools, family: Family) -> Result<String, RulesError> {
    let program = variant::program(tools, Variant::Legacy, family, "-save");
    tools.run(&program, &["-t", TABLE], None).await
}

fn of(what: &Packets) -> Family {
    match what {
        Packets::Icmp(family, _) => *family,
        Packets::Tunnel { pods, .. } => Family::of_net(pods),
    }
}

fn chain(hook: Hook) -> &'static str {
    match hook {
        Hook::Input => "INPUT",
        Hook::Forward => "FORWARD",
    }
}

/// A rule: its chain, and what follows.
struct Spelled(&'static str, String);

fn spell(hook: Hook, what: &Packets, comment: &str) -> Spelled {
    let conditions = match what {
        Packets::Icmp(Family::V4, kind) => {
            format!("-i {DEVICE_PREFIX}+ -p icmp -m icmp --icmp-type {kind}")
        }
        Packets::Icmp(Family::V6, kind) => {
            format!("-i {DEVICE_PREFIX}+ -p ipv6-icmp -m icmp6 --icmpv6-type {kind}")
        }
        Packets::Tunnel {
            pods,
            port,
            outside,
        } => {
            let outside = if *outside {
                format!(" ! -d {pods}")
            } else {
                String::new()
            };
            format!("-s {pods}{outside} -p udp -m udp --dport {port}")
        }
    };
    let text = format!("{conditions} -m comment --comment \"{comment}\" -j DROP");
    Spelled(chain(hook), text)
}

/// What makes the rules that are ours the wanted ones; `None` if they are. Since all of them drop, their order does not
/// matter.
fn patch(saved: &str, is_ours: impl Fn(&str) -> bool, wanted: &[Spelled]) -> Option<String> {
    let mut present = Vec::new();
    save::each(saved, |table, line| {
        if let save::Line::Rule { in_chain, spelled } = line
            && table == TABLE
            && Words::of(spelled).comment().is_some_and(&is_ours)
        {
            present.push((in_chain, spelled));
        }
    });
    let mut shown: Vec<_> = present.iter().map(|(c, rule)| words(c, rule)).collect();
    let mut asked: Vec<_> = wanted
        .iter()
        .map(|Spelled(c, rule)| words(c, rule))
        .collect();
    shown.sort();
    asked.sort();
    if shown == asked {
        return None;
    }
    let deleted = present.iter().map(|(c, rule)| format!("-D {c} {rule}\n"));
    // The last one inserted is the first one looked at.
    let inserted = wanted.iter().rev();
    let inserted = inserted.map(|Spelled(c, rule)| format!("-I {c} 1 {rule}\n"));
    let lines: String = deleted.chain(inserted).collect();
    Some(format!("*{TABLE}\n{lines}COMMIT\n"))
}

/// The words of a rule, in whichever order and by whichever name a version of iptables shows them.
fn words(chain: &str, spelled: &str) -> Vec<String> {
    let mut words = Words::of(spelled).as_slice().to_vec();
    for word in &mut words {
        if word == "icmpv6" {
            "ipv6-icmp".clone_into(word);
        }
    }
    words.push(chain.to_owned());
    words.sort();
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let pods = "10.1.0.0/16".parse().unwrap();
        let tunnel = Packets::Tunnel {
            pods,
            port: 8472,
            outside: true,
        };
        let comment = format!("{COMMENT}10.1.0.0/16");
        let wanted = [
            spell(Hook::Input, &Packets::Icmp(Family::V4, 5), &comment),
            spell(Hook::Forward, &tunnel, &comment),
        ];
        let is_ours = |text: &str| text == comment;
        let saved = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i flannel+ -p icmp -m icmp --icmp-type 5 -m comment --comment \"flanneld guard 10.1.0.0/16\" -j DROP\n-A FORWARD -s 10.1.0.0/16 ! -d 10.1.0.0/16 -p udp -m udp --dport 8472 -m comment --comment \"flanneld guard 10.1.0.0/16\" -j DROP\nCOMMIT\n";
        assert_eq!(patch(saved, is_ours, &wanted), None);
        // Another network's is left alone, a changed one is replaced.
        let other = saved.replace("guard 10.1.", "guard 10.2.");
        let made = patch(&other, is_ours, &wanted).unwrap();
        assert!(!made.contains("-D"), "{made}");
        let changed = saved.replace("8472", "4789");
        let made = patch(&changed, is_ours, &wanted).unwrap();
        assert!(
            made.contains("-D FORWARD -s 10.1.0.0/16 ! -d 10.1.0.0/16 -p udp -m udp --dport 4789")
        );
        assert!(
            made.contains(
                "-I FORWARD 1 -s 10.1.0.0/16 ! -d 10.1.0.0/16 -p udp -m udp --dport 8472"
            )
        );
        assert!(patch(saved, is_ours, &[]).unwrap().matches("-D").count() == 2);
        assert_eq!(patch("", is_ours, &[]), None);
        assert!(is_a_networks(&comment) && is_a_networks("flanneld guard fd00::/48"));
        assert!(!is_a_networks("flanneld guard by hand") && !is_a_networks("flanneld guard"));
    }
}
