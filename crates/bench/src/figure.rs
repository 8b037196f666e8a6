//! One line of the result: what was measured, against what, and whether it is good enough.

use serde::Serialize;

/// What a figure is held against.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Goal {
    /// It must not be more than this.
    pub must: f64,
    /// It should not be more than this.
    pub aim: f64,
}

/// How a figure stands against its goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As good as aimed at.
    Aim,
    /// Good enough.
    Must,
    /// Not good enough.
    Missed,
    /// There is no goal: for information.
    None,
}

/// One line of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured, in a few words.
    pub work: &'static str,
    /// The store.
    pub store: &'static str,
    /// The number of peers.
    pub peers: u32,
    /// The figure, in `unit`: a median, unless `work` says otherwise.
    pub ours: f64,
    /// What it is held beside, in the same unit.
    pub reference: Option<f64>,
    /// What is held against the goal: `ours`, or `ours` against `reference` as `judged_as` says.
    pub judged: f64,
    /// `ms`, `MiB`, `requests`, `%`.
    pub unit: &'static str,
    /// How `judged` follows from the others.
    pub judged_as: JudgedAs,
    /// The goal, if there is one.
    pub goal: Option<Goal>,
    /// How `judged` stands against it.
    pub verdict: Verdict,
    /// Single measurements behind `ours`, where they are few.
    pub samples: Vec<f64>,
}

/// How a figure is held against its goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JudgedAs {
    /// As it is.
    Value,
    /// As a share of the reference.
    Ratio,
    /// By what it has more than the reference.
    Difference,
}

impl Figure {
    /// A figure; `goal` is held against it as `judged_as` says.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        work: &'static str,
        (store, peers): (&'static str, u32),
        (ours, unit): (f64, &'static str),
        reference: Option<f64>,
        judged_as: JudgedAs,
        goal: Option<Goal>,
    ) -> Figure {
        let judged = match (judged_as, reference) {
            (JudgedAs::Ratio, Some(reference)) if reference > 0.0 => ours / reference,
            (JudgedAs::Difference, Some(reference)) => ours - reference,
            _ => ours,
        };
        Figure {
            work,
            store,
            peers,
            ours,
            reference,
            judged,
            unit,
            judged_as,
            goal,
            verdict: verdict(judged, goal),
            samples: Vec::new(),
        }
    }

    /// Judged by `judged` instead: by what neighbouring runs say of each other, for instance.
    pub fn judged(self, judged: f64) -> Figure {
        let verdict = verdict(judged, self.goal);
        Figure {
            judged,
            verdict,
            ..self
        }
    }

    /// With the single measurements.
    pub fn samples(mut self, samples: &[f64]) -> Figure {
        self.samples = samples.to_vec();
        self
    }

    /// The columns of a table: work, store, peers, ours, beside, judged, must, aim, verdict.
    pub fn columns(&self) -> [String; 9] {
        let with_unit = |x: f64| format!("{} {}", digits(x), self.unit);
        let judged = |x: f64| match self.judged_as {
            JudgedAs::Value => with_unit(x),
            JudgedAs::Ratio => format!("{x:.2} ×"),
            JudgedAs::Difference => {
                format!("{}{}", if x >= 0.0 { "+" } else { "−" }, with_unit(x.abs()))
            }
        };
        let goal = |pick: fn(&Goal) -> f64| {
            self.goal
                .as_ref()
                .map(|g| format!("≤ {}", judged(pick(g))))
                .unwrap_or_default()
        };
        [
            self.work.into(),
            self.store.into(),
            thousands(self.peers),
            with_unit(self.ours),
            self.reference.map(with_unit).unwrap_or_default(),
            if self.reference.is_some() {
                judged(self.judged)
            } else {
                String::new()
            },
            goal(|g| g.must),
            goal(|g| g.aim),
            match self.verdict {
                Verdict::Aim => "✓ aim",
                Verdict::Must => "✓",
                Verdict::Missed => "MISSED",
                Verdict::None => "",
            }
            .into(),
        ]
    }
}

fn verdict(judged: f64, goal: Option<Goal>) -> Verdict {
    match goal {
        None => Verdict::None,
        Some(goal) if judged <= goal.aim => Verdict::Aim,
        Some(goal) if judged <= goal.must => Verdict::Must,
        Some(_) => Verdict::Missed,
    }
}

/// The headings of [`Figure::columns`].
pub const HEADINGS: [&str; 9] = [
    "work", "store", "peers", "flanneld", "beside", "judged", "must", "aim", "",
];

/// Three digits that mean something.
fn digits(x: f64) -> String {
    match x.abs() {
        n if n.fract() == 0.0 || n >= 100.0 => format!("{x:.0}"),
        n if n >= 10.0 => format!("{x:.1}"),
        n if n >= 1.0 => format!("{x:.2}"),
        n if n >= 0.1 => format!("{x:.3}"),
        _ => format!("{x:.4}"),
    }
}

/// `15,000`.
pub fn thousands(n: u32) -> String {
    match n {
        0..1000 => n.to_string(),
        _ => format!("{},{:03}", n / 1000, n % 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_follows_from_what_is_judged() {
        let goal = Some(Goal {
            must: 0.8,
            aim: 0.4,
        });
        let at = |ours: f64| {
            Figure::new(
                "w",
                ("s", 1),
                (ours, "ms"),
                Some(100.0),
                JudgedAs::Ratio,
                goal,
            )
            .verdict
        };
        assert_eq!(
            [at(40.0), at(80.0), at(81.0)],
            [Verdict::Aim, Verdict::Must, Verdict::Missed]
        );
        let more = Figure::new(
            "w",
            ("s", 1),
            (2.5, "ms"),
            Some(2.0),
            JudgedAs::Difference,
            Some(Goal {
                must: 1.0,
                aim: 0.3,
            }),
        );
        assert_eq!(more.verdict, Verdict::Must);
        assert_eq!(
            more.columns()[3..8],
            ["2.50 ms", "2 ms", "+0.500 ms", "≤ +1 ms", "≤ +0.300 ms"]
        );
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([thousands(100), thousands(15_000)], ["100", "15,000"]);
        assert_eq!(
            [digits(213.4), digits(24.0), digits(0.05), digits(0.0)],
            ["213", "24", "0.0500", "0"]
        );
    }
}
