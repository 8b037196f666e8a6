//! The picture: what fits, the most important first.

use std::time::{SystemTime, UNIX_EPOCH};

use flanneld::report::{EventReport, NodeReport, PeerReport};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::model::{Device, Health, Model, health, loss, reason, rtt};
use super::rates::Rate;
use crate::output::{self, visible};

/// Lines that the table gets before anything else but the first line.
const LEAST_TABLE: usize = 4;

/// Most lines of the chosen node's reason.
const REASON: usize = 3;

/// Lines of the log, on a terminal of 24 lines.
const EVENTS: usize = 6;

const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);

fn style(health: Health) -> Style {
    match health {
        Health::Broken => BAD,
        Health::Pending | Health::Silent => Style::new().fg(Color::Yellow),
        Health::Unknown => DIM,
        Health::Good => Style::new().fg(Color::Green),
    }
}

/// Draws all of it.
pub(super) fn draw(model: &mut Model, buffer: &mut Buffer) {
    let area = *buffer.area();
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let mut head = head(model, width);
    let mut keys = keys(model);
    let reason = chosen(model, width);
    let events = events(model, width, height);
    // The first line, the table and the keys are there as long as there is room for anything.
    let mut left = height.saturating_sub(2 + LEAST_TABLE);
    let mut share = |wanted: usize| {
        let got = wanted.min(left);
        left -= got;
        got
    };
    let in_head = share(head.len().saturating_sub(1));
    let in_reason = share(reason.len());
    let in_events = share(events.len());
    head.truncate(1 + in_head);
    let events = events.get(..in_events).unwrap_or_default();
    let below = in_reason + in_events + 1;
    let rows = height.saturating_sub(head.len() + below);
    let mut lines = head;
    let (table, part) = table(model, width, rows);
    lines.extend(table);
    keys.push_span(part);
    // What is below the table stays where it is, however few nodes there are.
    lines.resize(
        height.saturating_sub(below).max(lines.len()),
        Line::default(),
    );
    lines.extend(reason.into_iter().take(in_reason));
    lines.extend(events.iter().cloned());
    lines.push(keys);
    for (line, y) in lines.iter().zip(area.top()..area.bottom()) {
        buffer.set_line(area.left(), y, line, area.width);
        if line.style.add_modifier.contains(Modifier::REVERSED) {
            buffer.set_style(Rect::new(area.left(), y, area.width, 1), line.style);
        }
    }
}

/// Returns how many lines show all nodes.
pub(super) fn lines_for_all(model: &Model) -> u16 {
    let (shown, _) = model.counts();
    u16::try_from(shown.saturating_add(24)).unwrap_or(u16::MAX)
}

/// The node, the most important first.
fn head(model: &Model, width: usize) -> Vec<Line<'static>> {
    let node = model.node();
    let mut lines = vec![first(node)];
    let problems = model.problem().into_iter();
    let problems = problems.chain(node.problems.iter().map(String::as_str));
    let problems = problems.chain(node.mesh.as_ref().and_then(|mesh| mesh.problem.as_deref()));
    for problem in problems.take(3) {
        let wrapped = wrap(&visible(problem), width, 2).into_iter();
        lines.extend(wrapped.map(|line| Line::styled(line, BAD)));
    }
    if let Some(what) = &node.degraded {
        let text = format!("not served: {}", visible(what));
        lines.push(Line::styled(cut(&text, width), style(Health::Pending)));
    }
    lines.push(nodes(node));
    lines.extend(model.devices().iter().take(4).map(device));
    let counts = &node.counts;
    let kinds: Vec<String> = counts
        .repairs_by_kind
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(kind, count)| format!("{count} {}", visible(kind)))
        .collect();
    let kinds = if kinds.is_empty() {
        String::new()
    } else {
        format!(" ({})", kinds.join(", "))
    };
    lines.push(Line::raw(format!(
        "repairs    {}{kinds}, {} of traffic rules; {} operations refused",
        counts.repairs, counts.rules_repairs, counts.pending_operations
    )));
    lines.push(Line::from(vec![
        Span::raw(format!("store      {}, ", visible(&node.store))),
        if node.store_reachable {
            Span::raw("reachable")
        } else {
            Span::styled("unreachable", BAD)
        },
    ]));
    lines
}

fn first(node: &NodeReport) -> Line<'static> {
    let name = node.network.as_ref().map_or_else(
        || "no subnet yet".to_owned(),
        |network| {
            format!(
                "{}  {}, MTU {}",
                visible(&network.subnets.join(",")),
                visible(&network.backend),
                network.mtu
            )
        },
    );
    let ready = if node.ready {
        Span::styled("ready", style(Health::Good))
    } else {
        Span::styled("NOT READY", BAD)
    };
    Line::from(vec![
        Span::styled(name, Style::new().add_modifier(Modifier::BOLD)),
        Span::raw("  "),
        ready,
        Span::raw(format!(
            "  flanneld {}, up {}",
            visible(&node.version),
            duration(node.uptime_seconds)
        )),
    ])
}

fn nodes(node: &NodeReport) -> Line<'static> {
    let counts = &node.counts;
    let mut spans = vec![Span::raw(format!("nodes      {} used, ", counts.peers))];
    let unused = format!("{} not used", counts.refused_leases);
    spans.push(if counts.refused_leases > 0 {
        Span::styled(unused, BAD)
    } else {
        Span::raw(unused)
    });
    match &node.mesh {
        None => spans.push(Span::raw("; probes are turned off")),
        Some(mesh) => {
            spans.push(Span::raw(format!("; {} reachable, ", mesh.reachable)));
            let failing = format!("{} failing", mesh.failing);
            spans.push(if mesh.failing > 0 {
                Span::styled(failing, BAD)
            } else {
                Span::raw(failing)
            });
            let rest = format!(", {} silent, {} unknown", mesh.silent, mesh.unknown);
            spans.push(Span::raw(rest));
        }
    }
    Line::from(spans)
}

fn device(device: &Device) -> Line<'static> {
    let name = visible(&device.name);
    let Some((received, sent)) = &device.rates else {
        return Line::raw(format!("{name:<10} -"));
    };
    let side = |rate: &Rate| {
        format!(
            "{:>10}/s {:>7} pkt/s",
            bytes(rate.bytes),
            count(rate.packets)
        )
    };
    let mut line = Line::raw(format!(
        "{name:<10} in {}  out {}",
        side(received),
        side(sent)
    ));
    let lost = received.lost + sent.lost;
    if lost > 0.0 {
        let text = format!("  {} dropped/s", count(lost));
        line.push_span(Span::styled(text, BAD));
    }
    line
}

/// The reason of the chosen node, below a line with its name.
fn chosen(model: &Model, width: usize) -> Vec<Line<'static>> {
    let Some(peer) = model.chosen() else {
        return Vec::new();
    };
    let Some(reason) = reason(peer) else {
        return Vec::new();
    };
    let text = format!("{}: {}", peer.subnets.join(","), reason);
    let lines = wrap(&visible(&text), width, REASON);
    let style = style(health(peer));
    lines
        .into_iter()
        .map(|line| Line::styled(line, style))
        .collect()
}

/// The last lines of the log, the latest first.
fn events(model: &Model, width: usize, height: usize) -> Vec<Line<'static>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs());
    let line = |event: &EventReport| {
        let age = duration(now.saturating_sub(event.unix_seconds));
        let text = format!("{age:>8} ago  {}", visible(&event.text));
        let text = cut(&text, width);
        if event.level == "info" {
            Line::raw(text)
        } else {
            Line::styled(text, style(Health::Pending))
        }
    };
    let most = EVENTS.max(height / 4);
    let latest = model.events().iter().rev().take(most);
    let mut lines: Vec<Line<'static>> = latest.map(line).collect();
    if !lines.is_empty() {
        lines.insert(0, Line::styled("THE LOG, the latest first", DIM));
    }
    lines
}

fn keys(model: &Model) -> Line<'static> {
    if model.is_typing() {
        return Line::styled(
            format!(
                "/{}_   Enter keeps it, Esc shows all",
                visible(model.filter())
            ),
            Modifier::BOLD,
        );
    }
    let (order, is_reversed) = model.order();
    let reversed = if is_reversed { ", reversed" } else { "" };
    let filter = if model.filter().is_empty() {
        "/ filter".to_owned()
    } else {
        format!("/ filter: {}", visible(model.filter()))
    };
    Line::styled(
        format!(
            "q quit  s order: {}{reversed}  r reverse  {filter}",
            order.name()
        ),
        DIM,
    )
}

/// A column: its head, and how a node's cell is made.
struct Column {
    head: &'static str,
    cell: fn(&PeerReport) -> String,
}

/// From left to right.
const COLUMNS: [Column; 7] = [
    Column {
        head: "SUBNET",
        cell: |peer| peer.subnets.join(","),
    },
    Column {
        head: "PUBLIC IP",
        cell: |peer| {
            let ips: Vec<String> = peer.public_ips.iter().map(ToString::to_string).collect();
            ips.join(",")
        },
    },
    Column {
        head: "BACKEND",
        cell: |peer| peer.backend.clone(),
    },
    Column {
        head: "STATE",
        cell: |peer| peer.state.name().to_owned(),
    },
    Column {
        head: "PROBES",
        cell: |peer| {
            let probe = peer.probe.as_ref();
            probe.map_or("-", |probe| probe.state.name()).to_owned()
        },
    },
    Column {
        head: "RTT",
        cell: |peer| rtt(peer).map_or_else(|| "-".to_owned(), output::milliseconds),
    },
    Column {
        head: "LOSS",
        cell: |peer| {
            let percent = loss(peer).map(|loss| format!("{:.0}%", loss * 100.0));
            percent.unwrap_or_else(|| "-".to_owned())
        },
    },
];

/// Columns that are left out where there is no room, the first first.
const LEFT_OUT: [usize; 6] = [2, 1, 3, 6, 5, 4];

/// The nodes, below a line with the columns' heads; and which of them these are, if they are not all.
fn table(model: &mut Model, width: usize, lines: usize) -> (Vec<Line<'static>>, String) {
    let (shown, all) = model.counts();
    let (first, page) = model.page(lines.saturating_sub(1));
    let cells: Vec<Vec<String>> = page
        .iter()
        .map(|(peer, _)| COLUMNS.iter().map(|c| visible(&(c.cell)(peer))).collect())
        .collect();
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|at| {
            let head = COLUMNS.get(at).map_or(0, |column| column.head.len());
            let cells = cells.iter().filter_map(|row| row.get(at));
            let widest = cells.map(|cell| cell.chars().count()).max();
            head.max(widest.unwrap_or_default())
        })
        .collect();
    let columns = fit(&widths, width);
    let row = |cell: &dyn Fn(usize) -> String| {
        let cells = columns.iter().map(|(at, width)| {
            let cell = cut(&cell(*at), *width);
            format!("{cell:<width$}")
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    let head = row(&|at| {
        COLUMNS
            .get(at)
            .map(|c| c.head.to_owned())
            .unwrap_or_default()
    });
    let last = first + page.len();
    let part = if page.len() < all {
        format!("   {}-{last} of {shown}", (first + 1).min(last))
    } else {
        String::new()
    };
    let reversed = Style::new().add_modifier(Modifier::REVERSED);
    let mut lines = vec![Line::styled(head, reversed)];
    for ((peer, is_chosen), cells) in page.into_iter().zip(cells) {
        let text = row(&|at| cells.get(at).cloned().unwrap_or_default());
        let mark = if is_chosen { ">" } else { " " };
        lines.push(Line::styled(format!("{mark}{text}"), style(health(peer))));
    }
    if let Some(head) = lines.first_mut() {
        head.spans.insert(0, Span::raw(" "));
    }
    if shown == 0 {
        let text = if all == 0 {
            " no other nodes"
        } else {
            " no node's line contains the filter"
        };
        lines.push(Line::styled(text, DIM));
    }
    (lines, part)
}

/// Returns the columns that fit, and how wide each is. The subnets are always there, as far as there is room.
fn fit(widths: &[usize], room: usize) -> Vec<(usize, usize)> {
    let mut columns: Vec<(usize, usize)> = widths.iter().copied().enumerate().collect();
    let needed = |columns: &[(usize, usize)]| -> usize {
        columns.iter().map(|(_, width)| width + 2).sum::<usize>()
    };
    for left_out in LEFT_OUT {
        if needed(&columns) <= room {
            break;
        }
        columns.retain(|(at, _)| *at != left_out);
    }
    if let [(_, width)] = columns.as_mut_slice() {
        *width = (*width).min(room.saturating_sub(1));
    }
    columns
}

/// Returns as much of a text as fits.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let short: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{short}…")
}

/// Returns a text in lines, the last one cut.
fn wrap(text: &str, width: usize, most: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let full = lines.len() == most;
        let Some(line) = lines.last_mut() else {
            break;
        };
        let needed = line.chars().count() + 1 + word.chars().count();
        if line.is_empty() {
            line.push_str(word);
        } else if needed <= width || full {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.iter().map(|line| cut(line, width)).collect()
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

fn bytes(count: f64) -> String {
    let (mut value, mut unit) = (count, "B");
    for larger in ["kB", "MB", "GB"] {
        if value >= 1000.0 {
            (value, unit) = (value / 1000.0, larger);
        }
    }
    if unit == "B" || value >= 100.0 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

fn count(rate: f64) -> String {
    if rate > 0.0 && rate < 10.0 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.0}")
    }
}

#[cfg(test)]
mod tests;
