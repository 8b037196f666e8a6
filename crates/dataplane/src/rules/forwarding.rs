//! What a host's own rules do to packets that it forwards for a flannel network: for `flannelctl
//! check`. Rules are read, never written.
//!
//! Each set of rules that sees forwarded packets is asked by itself: a packet passes only if all of
//! them let it pass.
//!
//! | module | holds |
//! |---|---|
//! | `packet` | the packet that is asked about, and the verdict of a set of rules on it |
//! | `xtables` | the rules that `iptables-save` prints |
//! | `native` | the base chains that `nft -j list ruleset` shows |

mod native;
mod packet;
mod xtables;

use model::Family;

pub use packet::{Forwarded, Verdict};

use super::legacy;
use super::tools::Tools;
use super::variant::{self, Variant};

/// A set of rules that does not let the packet pass, or may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Where it is, such as `iptables-nft, table filter, chain FORWARD`.
    pub place: String,
    /// The rule or policy that refuses, as the tool prints it.
    pub rule: String,
    /// Nothing before it can let the packet pass. Otherwise some rule might, whose conditions are not
    /// understood.
    pub certain: bool,
}

/// What was read, and what refuses the packet.
#[derive(Debug, Default)]
pub struct Judgement {
    /// The programs that showed rules.
    pub read: Vec<String>,
    /// What could not be read, with the reason.
    pub unread: Vec<String>,
    /// What refuses each packet, by its position among those asked about.
    pub refusals: Vec<(usize, Refusal)>,
}

/// Reads every set of rules of this host and reports which of them refuse one of `packets`.
pub async fn judge(packets: &[Forwarded]) -> Judgement {
    judge_with(&Tools::new(), packets).await
}

async fn judge_with(tools: &Tools, packets: &[Forwarded]) -> Judgement {
    let mut judgement = Judgement::default();
    let families = Family::ALL
        .into_iter()
        .filter(|family| packets.iter().any(|packet| packet.family() == *family));
    for family in families {
        for variant in [Variant::Nft, Variant::Legacy] {
            saved(tools, variant, family, packets, &mut judgement).await;
        }
    }
    tables(tools, packets, &mut judgement).await;
    judgement
}

/// Asks one variant of iptables.
async fn saved(
    tools: &Tools,
    variant: Variant,
    family: Family,
    packets: &[Forwarded],
    judgement: &mut Judgement,
) {
    // The legacy program would load the modules of tables that nobody uses.
    if variant == Variant::Legacy && legacy::tables(family).is_empty() {
        return;
    }
    let program = variant::program(tools, variant, family, "-save");
    // Before 1.8 there was one program for what is now the legacy variant.
    if judgement.read.contains(&program) {
        return;
    }
    if tools.find(&program).is_none() {
        if variant == Variant::Legacy {
            let what = format!("{family} rules of legacy iptables: {program} is not installed");
            judgement.unread.push(what);
        }
        // Those in nf_tables appear, less readable, among the tables of nftables.
        return;
    }
    match tools.run(&program, &[], None).await {
        Ok(text) => {
            let rules = xtables::read(&text);
            for (at, packet) in of_family(packets, family) {
                let refusals = rules.refusals(packet);
                judgement
                    .refusals
                    .extend(refusals.into_iter().map(|(chain, verdict)| {
                        let place = format!("{}, {chain}", program.trim_end_matches("-save"));
                        (at, refusal(place, verdict))
                    }));
            }
            judgement.read.push(program);
        }
        Err(error) => judgement.unread.push(error.to_string()),
    }
}

/// Asks nftables.
async fn tables(tools: &Tools, packets: &[Forwarded], judgement: &mut Judgement) {
    if tools.find("nft").is_none() {
        judgement
            .unread
            .push("tables of nftables: nft is not installed".into());
        return;
    }
    match tools
        .run("nft", &["-j", "-t", "list", "ruleset"], None)
        .await
    {
        Ok(text) => match native::read(&text) {
            Ok(rules) => {
                let shown = |family| {
                    let program = variant::program(tools, Variant::Nft, family, "-save");
                    judgement.read.contains(&program)
                };
                let rules = rules.without_iptables(shown(Family::V4), shown(Family::V6));
                for (at, packet) in packets.iter().enumerate() {
                    let refusals = rules.refusals(packet);
                    let refusals = refusals
                        .into_iter()
                        .map(|(place, verdict)| (at, refusal(place, verdict)));
                    judgement.refusals.extend(refusals);
                }
                judgement.read.push("nft".into());
            }
            Err(error) => judgement
                .unread
                .push(format!("nft -j list ruleset: expected JSON: {error}")),
        },
        Err(error) => judgement.unread.push(error.to_string()),
    }
}

fn of_family(packets: &[Forwarded], family: Family) -> impl Iterator<Item = (usize, &Forwarded)> {
    let numbered = packets.iter().enumerate();
    numbered.filter(move |(_, packet)| packet.family() == family)
}

fn refusal(place: String, verdict: Verdict) -> Refusal {
    let (rule, certain) = match verdict {
        Verdict::Refused(rule) => (rule, true),
        Verdict::Unknown(rule) => (rule, false),
        Verdict::Passes => (String::new(), false),
    };
    Refusal {
        place,
        rule,
        certain,
    }
}

#[cfg(test)]
mod tests;
