//! Cost against the number of peers, as an SVG: both axes logarithmic.

use std::fmt::Write;

use crate::COLD;
use crate::figure::{Figure, thousands};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 55.0;

/// One line of the plot: its name, its colour, and milliseconds by number of peers.
struct Line {
    name: &'static str,
    colour: &'static str,
    points: Vec<(f64, f64)>,
}

/// The time from exec to the last object in the kernel; `None` if it was not measured.
pub fn cold_start(figures: &[Figure]) -> Option<String> {
    let of = |store: &str| {
        figures
            .iter()
            .filter(move |f| f.work == COLD && f.store == store)
            .collect::<Vec<_>>()
    };
    let (etcd, directory) = (of("etcd"), of("directory"));
    let ours = |figures: &[&Figure]| {
        figures
            .iter()
            .map(|f| (f64::from(f.peers), f.ours))
            .collect()
    };
    let beside = etcd
        .iter()
        .filter_map(|f| Some((f64::from(f.peers), f.reference?)))
        .collect();
    let lines = [
        Line {
            name: "ip -batch, bridge -batch",
            colour: "#8a8f98",
            points: beside,
        },
        Line {
            name: "flanneld, etcd",
            colour: "#1f6feb",
            points: ours(&etcd),
        },
        Line {
            name: "flanneld, directory",
            colour: "#1a9850",
            points: ours(&directory),
        },
    ];
    (etcd.len() > 1).then(|| draw(&lines))
}

/// A logarithmic axis: values from `low` to `high`, positions from `from` to `to`.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        self.from + share * (self.to - self.from)
    }
}

fn draw(lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    let most = |pick: fn(&(f64, f64)) -> f64| all().map(pick).fold(f64::MIN, f64::max);
    let least = |pick: fn(&(f64, f64)) -> f64| all().map(pick).fold(f64::MAX, f64::min);
    let x = Axis {
        low: least(|p| p.0) / 1.3,
        high: most(|p| p.0) * 1.3,
        from: LEFT,
        to: WIDTH - RIGHT,
    };
    let low = 10f64.powf(least(|p| p.1).max(0.01).log10().floor());
    let y = Axis {
        low,
        high: most(|p| p.1) * 1.6,
        from: HEIGHT - BOTTOM,
        to: TOP,
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"16\" font-weight=\"bold\" fill=\"#1f2328\">From exec to every route, neighbour and FDB entry in the kernel</text>\n"
    );
    grid(&mut svg, &x, &y, &lines[0].points);
    for line in lines.iter().filter(|line| !line.points.is_empty()) {
        draw_line(&mut svg, line, &x, &y);
    }
    names(&mut svg, lines, &y);
    svg + "</svg>\n"
}

fn grid(svg: &mut String, x: &Axis, y: &Axis, points: &[(f64, f64)]) {
    let (right, bottom) = (x.to, y.from);
    // Writing to a string cannot fail.
    let mut decade = y.low;
    while decade <= y.high {
        for (value, colour) in
            [1.0, 2.0, 5.0].map(|m| (m * decade, if m == 1.0 { "#d0d7de" } else { "#eef1f4" }))
        {
            if value <= y.high {
                let at = y.at(value);
                let _ = writeln!(
                    svg,
                    "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"{colour}\"/>"
                );
                let label = if value >= 1000.0 {
                    format!("{} s", value / 1000.0)
                } else {
                    format!("{value} ms")
                };
                let _ = writeln!(
                    svg,
                    "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#57606a\">{label}</text>",
                    LEFT - 8.0,
                    at + 4.0
                );
            }
        }
        decade *= 10.0;
    }
    for (peers, _) in points {
        let at = x.at(*peers);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#eef1f4\"/>"
        );
        let label = thousands(*peers as u32);
        let _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#57606a\">{label}</text>",
            bottom + 20.0
        );
    }
    let middle = (LEFT + right) / 2.0;
    let _ = writeln!(
        svg,
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" fill=\"#57606a\">peers</text>",
        bottom + 42.0
    );
}

fn draw_line(svg: &mut String, line: &Line, x: &Axis, y: &Axis) {
    let at: Vec<(f64, f64)> = line
        .points
        .iter()
        .map(|(peers, ms)| (x.at(*peers), y.at(*ms)))
        .collect();
    let path: Vec<String> = at.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let colour = line.colour;
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\"/>",
        path.join(" ")
    );
    for ((x, y), (peers, ms)) in at.iter().zip(&line.points) {
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"><title>{}: {ms:.1} ms, {} peers</title></circle>",
            line.name,
            thousands(*peers as u32)
        );
    }
}

/// The lines' names beside their last points, kept apart.
fn names(svg: &mut String, lines: &[Line], y: &Axis) {
    let mut ends: Vec<(f64, &Line, f64)> = lines
        .iter()
        .filter_map(|line| line.points.last().map(|(_, ms)| (y.at(*ms), line, *ms)))
        .collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free = TOP;
    for (at, line, ms) in ends {
        let at = at.max(free);
        free = at + 34.0;
        let (x, colour) = (WIDTH - RIGHT + 10.0, line.colour);
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{at:.1}\" fill=\"{colour}\" font-weight=\"bold\">{}</text>",
            line.name
        );
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{:.1}\" fill=\"{colour}\">{ms:.0} ms</text>",
            at + 15.0
        );
    }
}
