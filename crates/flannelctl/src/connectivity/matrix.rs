//! What was found of a whole cluster, for people and for programs.

use std::process::ExitCode;

use anyhow::Result;

use super::cluster::{ClusterFound, PairFound};
use super::{Check, ConnectivityArgs, Format, Outcome, junit};
use crate::{output, status};

/// A matrix of more nodes is wider than a terminal.
const MOST: usize = 16;

/// Prints it, and writes `--junit`. Exit status 3: something is lost, or a node could not take part.
///
/// # Errors
/// The file cannot be written.
pub(super) fn print(args: &ConnectivityArgs, found: &ClusterFound) -> Result<ExitCode> {
    match args.output {
        Format::Json => output::line(&serde_json::to_string_pretty(found)?),
        Format::Text => lines(found).iter().for_each(|line| output::line(line)),
    }
    if let Some(file) = &args.junit {
        let failed = found.failed.iter().map(|(node, why)| {
            let check = Check {
                name: "takes part".to_owned(),
                result: Outcome::Fail,
                sent: 0,
                answered: 0,
                rtt_micros: None,
                mbits: None,
                text: Some(why.clone()),
            };
            (node.clone(), vec![check])
        });
        let failed: Vec<(String, Vec<Check>)> = failed.collect();
        let pairs = found.pairs.iter();
        let pairs = pairs.map(|pair| (title(pair), pair.checks.as_slice()));
        let nodes = failed
            .iter()
            .map(|(node, checks)| (node.clone(), checks.as_slice()));
        let suites: Vec<(String, &[Check])> = pairs.chain(nodes).collect();
        junit::write(file, &suites)?;
    }
    let mut checks = found.pairs.iter().flat_map(|pair| &pair.checks);
    Ok(if found.failed.is_empty() && !checks.any(Check::is_bad) {
        ExitCode::SUCCESS
    } else {
        status::no()
    })
}

fn title(pair: &PairFound) -> String {
    format!("{} > {}", pair.from, pair.to)
}

fn lines(found: &ClusterFound) -> Vec<String> {
    let mut lines = Vec::new();
    if found.nodes.len() <= MOST {
        lines.extend(matrix(found));
        lines.push(String::new());
    }
    lines.extend(by_check(found));
    for pair in &found.pairs {
        for check in pair.checks.iter().filter(|check| check.is_bad()) {
            let text = check.text.as_deref().unwrap_or_default();
            let text = format!("{}: {}: {text}", title(pair), check.name);
            lines.push(output::visible(&text));
        }
    }
    for (node, why) in &found.failed {
        lines.push(format!("{node}: {}", output::visible(why)));
    }
    for what in &found.skipped {
        lines.push(format!("not tested: {}", output::visible(what)));
    }
    let checks = || found.pairs.iter().flat_map(|pair| &pair.checks);
    let bad = checks().filter(|check| check.is_bad()).count();
    let end = match (bad, found.failed.len()) {
        (0, 0) => "nothing is lost".to_owned(),
        (bad, 0) => format!("{bad} checks failed"),
        (bad, nodes) => format!("{bad} checks failed, {nodes} nodes could not take part"),
    };
    lines.push(format!(
        "{} nodes, {} of {} pairs, {} checks; full size is {} bytes; {end}",
        found.nodes.len(),
        found.pairs.len(),
        found.of_pairs,
        checks().count(),
        found.full_size
    ));
    lines.into_iter().collect()
}

/// Who asks is in the rows, whom in the columns.
fn matrix(found: &ClusterFound) -> Vec<String> {
    let mut head = vec!["FROM \\ TO".to_owned()];
    head.extend(found.nodes.iter().cloned());
    let mut rows = vec![head];
    for from in &found.nodes {
        let mut row = vec![from.clone()];
        for to in &found.nodes {
            let pair = found.pairs.iter();
            let mut pair = pair.filter(|pair| pair.from == *from && pair.to == *to);
            row.push(match pair.next() {
                Some(pair) => cell(pair),
                None if from == to => String::new(),
                None => "-".to_owned(),
            });
        }
        rows.push(row);
    }
    output::table(&rows)
}

/// The worst of a pair, or its fastest answer.
fn cell(pair: &PairFound) -> String {
    let find = |result| pair.checks.iter().find(|check| check.result == result);
    let worst = find(Outcome::Fail).or_else(|| find(Outcome::Loss));
    let shown = worst.or_else(|| find(Outcome::Good));
    shown.map_or("-".to_owned(), Check::cell)
}

/// One line for each kind of check.
fn by_check(found: &ClusterFound) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    for check in found.pairs.iter().flat_map(|pair| &pair.checks) {
        if !names.contains(&check.name.as_str()) {
            names.push(&check.name);
        }
    }
    let head = ["CHECK", "GOOD", "OF", "FASTEST", "SLOWEST"].map(str::to_owned);
    let mut rows = vec![head];
    for name in names {
        let all = || {
            let checks = found.pairs.iter().flat_map(|pair| &pair.checks);
            checks.filter(move |check| check.name == name)
        };
        let tested = all().filter(|check| check.result != Outcome::Skip).count();
        let good = || all().filter(|check| check.result == Outcome::Good);
        let times = || good().filter_map(|check| check.rtt_micros);
        let flows = || good().filter_map(|check| check.mbits);
        let rate = |mbits: u64| format!("{mbits} Mbit/s");
        let fastest = times().min().map(output::milliseconds);
        let slowest = times().max().map(output::milliseconds);
        let none = || "-".to_owned();
        rows.push([
            output::visible(name),
            good().count().to_string(),
            tested.to_string(),
            fastest.or(flows().max().map(rate)).unwrap_or_else(none),
            slowest.or(flows().min().map(rate)).unwrap_or_else(none),
        ]);
    }
    output::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, result: Outcome) -> Check {
        Check {
            name: name.to_owned(),
            result,
            sent: 5,
            answered: if result == Outcome::Good { 5 } else { 0 },
            rtt_micros: (result == Outcome::Good).then_some(250),
            mbits: None,
            text: Some("why".to_owned()),
        }
    }

    #[test]
    fn what_a_pod_answers_cannot_forge_a_line_and_breaks_nothing() {
        let hostile = Check {
            sent: 0,
            answered: u32::MAX,
            ..check("a\u{1b}[2J\nb", Outcome::Loss)
        };
        let most = Check {
            sent: u32::MAX,
            ..hostile.clone()
        };
        assert_eq!(hostile.cell(), "0 % lost");
        assert_eq!(most.cell(), "0 % lost");
        let found = ClusterFound {
            pairs: vec![PairFound {
                from: "n1".into(),
                to: "n2".into(),
                checks: vec![hostile],
            }],
            ..ClusterFound::default()
        };
        for line in lines(&found) {
            assert!(!line.contains(model::outside::is_unsafe), "{line:?}");
        }
    }

    #[test]
    fn a_pair_is_as_good_as_its_worst_check() {
        let pair = |from: &str, to: &str, result| PairFound {
            from: from.into(),
            to: to.into(),
            checks: vec![check("IPv4 UDP", Outcome::Good), check("IPv4 TCP", result)],
        };
        let mut found = ClusterFound {
            nodes: vec!["n1".into(), "n2".into()],
            of_pairs: 2,
            pairs: vec![
                pair("n1", "n2", Outcome::Good),
                pair("n2", "n1", Outcome::Fail),
            ],
            ..ClusterFound::default()
        };
        found.failed.insert("n3".into(), "no\nimage".into());
        let lines = lines(&found);
        assert_eq!(lines[1], "n1               0.25 ms");
        assert_eq!(lines[2], "n2         LOST");
        assert!(
            lines.contains(&"IPv4 TCP  1     2   0.25 ms  0.25 ms".to_owned()),
            "{lines:#?}"
        );
        assert!(
            lines.contains(&"n2 > n1: IPv4 TCP: why".to_owned()),
            "{lines:#?}"
        );
        assert!(
            lines.contains(&r"n3: no\u{a}image".to_owned()),
            "{lines:#?}"
        );
        assert!(lines[lines.len() - 1].contains("1 checks failed, 1 nodes"));
    }
}
