//! The parts of the benchmark: what is measured, and how often.

use std::time::Duration;

use crate::COLD;
use crate::args::{Args, Part};
use crate::cold::{self, Cold};
use crate::figure::{Figure, Goal, JudgedAs, thousands};
use crate::follow;
use crate::goals::{
    COLD_RATIO, EVENT_CPU_MS, IDLE_PERCENT, READY_MS, REQUESTS, ROUTE_MS, ROUTE_P99_MS, SIZES, Size,
};
use crate::idle;
use crate::ready;
use crate::reference;
use crate::rules;
use crate::stage::{Stage, pause};
use crate::stats::{median, ms, percentile};
use crate::target::{Kind, Target};

/// How often and how long.
struct Effort {
    runs: usize,
    puts: u32,
    idle: Duration,
}

/// Measures all that `args` want; returns how often, and the figures.
///
/// # Errors
/// Something does not work at all: no figures then.
pub fn measure(stage: &Stage, args: &Args) -> anyhow::Result<(usize, Vec<Figure>)> {
    let effort = match args.quick {
        false => Effort {
            runs: 9,
            puts: 400,
            idle: Duration::from_secs(40),
        },
        true => Effort {
            runs: 3,
            puts: 200,
            idle: Duration::from_secs(30),
        },
    };
    let stores = [Kind::Etcd, Kind::Directory]
        .into_iter()
        .filter(|store| args.wants_store(*store));
    let mut targets = stores
        .map(|store| Target::open(store, stage))
        .collect::<anyhow::Result<Vec<Target>>>()?;
    let mut figures = Vec::new();
    for size in SIZES.iter().filter(|size| args.wants_peers(size.peers)) {
        let wanted = [
            (size.cold, Part::Cold),
            (size.ready, Part::Ready),
            (size.follow, Part::Follow),
            (size.idle, Part::Idle),
            (size.ready || size.idle, Part::Rules),
        ];
        if !wanted
            .into_iter()
            .any(|(has, part)| has && args.wants(part))
        {
            continue;
        }
        for target in &mut targets {
            target.fill(size.peers)?;
        }
        if size.cold && args.wants(Part::Cold) {
            figures.extend(cold_starts(stage, &mut targets, size, &effort)?);
        }
        for target in &mut targets {
            if size.ready && args.wants(Part::Ready) {
                figures.push(readiness(stage, target, &effort)?);
            }
            if size.follow && args.wants(Part::Follow) {
                figures.extend(following(stage, target, &effort)?);
            }
            if size.idle && args.wants(Part::Idle) {
                figures.extend(idleness(stage, target, &effort)?);
            }
            if args.wants(Part::Rules) {
                figures.extend(traffic_rules(stage, target, size, &effort)?);
            }
        }
    }
    figures.sort_by_key(|figure| order(figure.work));
    Ok((effort.runs, figures))
}

/// Figures of one kind stand together.
fn order(work: &str) -> usize {
    let all = [
        COLD,
        CPU,
        USER,
        MEMORY,
        REQUESTS_MADE,
        ROUTE,
        ROUTE_P99,
        EVENT_CPU,
        READY,
        IDLE,
        LOOK,
        rules::READY,
        rules::IDLE,
        rules::NFTABLES_BACK,
        rules::IPTABLES_BACK,
    ];
    all.iter().position(|w| *w == work).unwrap_or(all.len())
}

const CPU: &str = "processor time of that start";
const USER: &str = "of that in user space";
const MEMORY: &str = "peak memory";
const REQUESTS_MADE: &str = "etcd requests";
const ROUTE: &str = "lease put → route in the kernel";
const ROUTE_P99: &str = "the same, p99 after the store's answer";
const EVENT_CPU: &str = "processor time per lease put";
const READY: &str = "exec → subnet.env";
const IDLE: &str = "nothing to do, of a core";
const LOOK: &str = "one full look at the kernel";

fn say(target: &Target, what: &str) {
    eprintln!(
        "{:>6} peers, {}: {what}",
        thousands(target.peers()),
        target.kind().name()
    );
}

/// Ends the daemon and makes node and store what they were before it. Returns its processor time in user space.
fn wipe(stage: &Stage, target: &mut Target) -> anyhow::Result<Duration> {
    let ended = stage.wipe()?;
    target.remove(ended.key)?;
    Ok(ended.user)
}

/// The kernel frees deleted objects after the deletion, on whichever core is there: not while the
/// next one is measured.
const AFTERMATH: Duration = Duration::from_millis(150);

/// The daemon and the reference leave the same behind; also brings all of it into memory.
fn same_work(stage: &Stage, target: &mut Target) -> anyhow::Result<()> {
    reference::run(stage, target.peers())?;
    cold::start(stage, target, false)?;
    cold::compare(stage)?;
    reference::wipe(stage)?;
    wipe(stage, target)?;
    pause(AFTERMATH);
    Ok(())
}

/// Cold starts on either store and the reference, in turn.
fn cold_starts(
    stage: &Stage,
    targets: &mut [Target],
    size: &Size,
    effort: &Effort,
) -> anyhow::Result<Vec<Figure>> {
    same_work(stage, &mut targets[0])?;
    let mut beside = Vec::new();
    let mut runs = vec![Vec::<Cold>::new(); targets.len()];
    let mut user = vec![Vec::<f64>::new(); targets.len()];
    for round in 0..effort.runs {
        eprintln!(
            "{:>6} peers: cold start {} of {}",
            thousands(size.peers),
            round + 1,
            effort.runs
        );
        // `None` is the reference. Every other round backwards: who follows whom matters.
        let mut order: Vec<Option<usize>> = vec![None];
        order.extend((0..targets.len()).map(Some));
        if round % 2 == 1 {
            order.reverse();
        }
        for contestant in order {
            match contestant {
                None => {
                    beside.push(ms(reference::run(stage, size.peers)?));
                    reference::wipe(stage)?;
                }
                Some(i) => {
                    // One more look at the kernel shows the peak of memory, but is not part of the start.
                    let look = round % 3 == 0;
                    runs[i].push(cold::start(stage, &targets[i], look)?);
                    let used = wipe(stage, &mut targets[i])?;
                    user[i].extend((!look).then(|| ms(used)));
                }
            }
            pause(AFTERMATH);
        }
    }
    let mut figures = Vec::new();
    for ((target, runs), user) in targets.iter().zip(&runs).zip(&user) {
        let place = (target.kind().name(), size.peers);
        let all = |pick: fn(&Cold) -> f64| runs.iter().map(pick).collect::<Vec<f64>>();
        let took = all(|run| ms(run.took));
        let judged = size.memory.is_some();
        let goal = |goal: Goal| judged.then_some(goal);
        // Each run against the reference of its round: the machine's moods pass slower than that.
        let ratios: Vec<f64> = took
            .iter()
            .zip(&beside)
            .map(|(ours, beside)| ours / beside)
            .collect();
        let (value, reference) = ((median(&took), "ms"), Some(median(&beside)));
        figures.push(
            Figure::new(
                COLD,
                place,
                value,
                reference,
                JudgedAs::Ratio,
                goal(COLD_RATIO),
            )
            .judged(median(&ratios))
            .samples(&took),
        );
        let cpu = all(|run| ms(run.cpu));
        figures.push(
            Figure::new(
                CPU,
                place,
                (median(&cpu), "ms"),
                None,
                JudgedAs::Value,
                None,
            )
            .samples(&cpu),
        );
        figures.push(
            Figure::new(
                USER,
                place,
                (median(user), "ms"),
                None,
                JudgedAs::Value,
                size.user.filter(|_| target.kind() == Kind::Etcd),
            )
            .samples(user),
        );
        let peaks = runs.iter().filter_map(|run| run.peak_kib);
        let peak: Vec<f64> = peaks.map(|kib| kib as f64 / 1024.0).collect();
        figures.push(
            Figure::new(
                MEMORY,
                place,
                (median(&peak), "MiB"),
                None,
                JudgedAs::Value,
                size.memory,
            )
            .samples(&peak),
        );
        if target.kind() == Kind::Etcd {
            // The worst, not the median: a request too many is a fault whenever it happens.
            let requests = all(|run| run.requests as f64);
            let most = percentile(&requests, 1.0);
            figures.push(
                Figure::new(
                    REQUESTS_MADE,
                    place,
                    (most, "requests"),
                    None,
                    JudgedAs::Value,
                    goal(REQUESTS),
                )
                .samples(&requests),
            );
        }
    }
    Ok(figures)
}

fn readiness(stage: &Stage, target: &mut Target, effort: &Effort) -> anyhow::Result<Figure> {
    say(target, "time to subnet.env");
    let mut took = Vec::new();
    for _ in 0..2 * effort.runs {
        took.push(ms(ready::start(stage, target)?));
        wipe(stage, target)?;
    }
    let place = (target.kind().name(), target.peers());
    Ok(Figure::new(
        READY,
        place,
        (median(&took), "ms"),
        None,
        JudgedAs::Value,
        Some(READY_MS),
    )
    .samples(&took))
}

fn following(stage: &Stage, target: &mut Target, effort: &Effort) -> anyhow::Result<[Figure; 3]> {
    cold::start(stage, target, false)?;
    say(target, "leases put one by one");
    let follow = follow::run(stage, target, effort.puts)?;
    wipe(stage, target)?;
    let place = (target.kind().name(), target.peers());
    let (put, put_p99) = (median(&follow.put), percentile(&follow.put, 0.99));
    let (route, lag_p99) = (median(&follow.route), percentile(&follow.lag, 0.99));
    eprintln!(
        "        put: median {put:.3} ms, p99 {put_p99:.3} ms; route: median {route:.3} ms, p99 {:.3} ms; lag: median {:.3} ms",
        percentile(&follow.route, 0.99),
        median(&follow.lag)
    );
    Ok([
        Figure::new(
            ROUTE,
            place,
            (route, "ms"),
            Some(put),
            JudgedAs::Difference,
            Some(ROUTE_MS),
        ),
        Figure::new(
            ROUTE_P99,
            place,
            (lag_p99, "ms"),
            None,
            JudgedAs::Value,
            Some(ROUTE_P99_MS),
        ),
        Figure::new(
            EVENT_CPU,
            place,
            (follow.cpu, "ms"),
            None,
            JudgedAs::Value,
            Some(EVENT_CPU_MS),
        ),
    ])
}

fn idleness(stage: &Stage, target: &mut Target, effort: &Effort) -> anyhow::Result<[Figure; 2]> {
    say(target, "nothing to do");
    cold::start(stage, target, false)?;
    let idle = idle::run(stage, effort.idle)?;
    wipe(stage, target)?;
    let place = (target.kind().name(), target.peers());
    Ok([
        Figure::new(
            IDLE,
            place,
            (idle.percent, "%"),
            None,
            JudgedAs::Value,
            Some(IDLE_PERCENT),
        ),
        Figure::new(
            LOOK,
            place,
            (idle.look_ms, "ms"),
            None,
            JudgedAs::Value,
            None,
        ),
    ])
}

/// The same with `-ip-masq`; with few peers, how soon deleted rules are back.
fn traffic_rules(
    stage: &Stage,
    target: &mut Target,
    size: &Size,
    effort: &Effort,
) -> anyhow::Result<Vec<Figure>> {
    let clean = |target: &mut Target| {
        let _user = wipe(stage, target)?;
        rules::wipe(stage.node())
    };
    let mut figures = Vec::new();
    target.also(&rules::ARGS);
    if size.ready {
        say(target, "time to subnet.env with -ip-masq");
        figures.push(rules::readiness(stage, target, 2 * effort.runs, clean)?);
        for nftables in [true, false] {
            say(target, "traffic rules deleted");
            target.set_nftables(stage, nftables)?;
            figures.push(rules::repairs(stage, target, nftables, effort.runs, clean)?);
        }
    }
    if size.idle {
        say(target, "nothing to do with -ip-masq");
        figures.push(rules::idleness(stage, target, effort.idle)?);
        clean(target)?;
    }
    target.also(&[]);
    Ok(figures)
}
