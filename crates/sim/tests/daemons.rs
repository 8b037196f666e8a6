//! Fleets of whole daemons, simulated: faults drawn from a seed, and the rules that hold nevertheless.
//!
//! Without variables the plans in `corpus` run, which failed once, and a few seeds. `SEEDS=100-200` runs those seeds
//! instead, `PLAN=FILE` one plan. Each plan runs in a process of its own: whatever draws random numbers in it draws the
//! same ones again. A plan that breaks a rule is reduced, event by event, to one that still does.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    unsafe_code,
    missing_docs
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use sim::daemons::fleet::{Done, run};
use sim::daemons::log::Log;
use sim::daemons::plan::Plan;
use tokio::task::LocalSet;

/// The variable that has this program carry out the plan on its standard input.
const CHILD: &str = "FLANNEL_SIM_CHILD";
/// How long a plan may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// What this test is called.
const NAME: &str = "simulated_daemons";
/// The seeds that run without `SEEDS`.
const FEW: &str = "0-7";

/// Stands for the system's random numbers: hash tables, tokio's choices and everything that is seeded by either are the
/// same in every run.
///
/// # Safety
/// As the function of the C library: `buf` has room for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buf: *mut u8, len: usize, _flags: u32) -> isize {
    static STATE: AtomicU64 = AtomicU64::new(0x9e37_79b9_7f4a_7c15);
    for at in 0..len {
        let next = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        // SAFETY: `at` is below `len`.
        unsafe { buf.add(at).write((next >> 33) as u8) };
    }
    len as isize
}

fn main() -> ExitCode {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    // As the arguments of other tests: what does not match is not run.
    let mut filters = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let is_listed = std::env::args().any(|arg| arg == "--list");
    if is_listed || filters.next().is_some_and(|filter| !NAME.contains(&filter)) {
        return ExitCode::SUCCESS;
    }
    let plans = match (std::env::var("PLAN"), std::env::var("SEEDS")) {
        (Ok(file), _) => vec![read(Path::new(&file))],
        (_, Ok(seeds)) => drawn(&seeds),
        _ => corpus().into_iter().chain(drawn(FEW)).collect(),
    };
    check(&plans)
}

fn read(file: &Path) -> Plan {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.parse()
        .unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn corpus() -> Vec<Plan> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files: Vec<PathBuf> = fs::read_dir(&dir)
        .map(|files| files.map(|file| file.unwrap().path()).collect())
        .unwrap_or_default();
    files.sort();
    files.iter().map(|file| read(file)).collect()
}

fn drawn(seeds: &str) -> Vec<Plan> {
    let (first, last) = seeds.split_once('-').unwrap_or((seeds, seeds));
    let seeds: std::ops::RangeInclusive<u64> = first.parse().unwrap()..=last.parse().unwrap();
    seeds.map(Plan::draw).collect()
}

/// Carries out one plan; prints its log if it breaks a rule.
fn child() -> ExitCode {
    let text = std::io::read_to_string(std::io::stdin()).unwrap();
    let plan: Plan = text.parse().unwrap();
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() {
        shm.to_owned()
    } else {
        std::env::temp_dir()
    };
    let dir = base.join(format!("flannel-sim-{}", std::process::id()));
    fastrand::seed(plan.seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let mut log = None;
    let result = runtime.block_on(async {
        store::simulate_time();
        let log = log.insert(Log::new()).clone();
        let _collecting = log.collect();
        LocalSet::new()
            .run_until(run(&plan, &dir, log.clone()))
            .await
    });
    let _ = fs::remove_dir_all(&dir);
    match result {
        Ok(Done {
            whole_after,
            simulated,
            lines,
            steps,
        }) => {
            println!(
                "{} {} {lines} {steps}",
                whole_after.as_secs(),
                simulated.as_secs()
            );
            if std::env::var_os("TRACE").is_some() {
                println!("{}", log.unwrap().text());
            }
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("{}\n{why}", log.unwrap().text());
            ExitCode::FAILURE
        }
    }
}

/// What came of a plan.
enum Verdict {
    /// Seconds until all was well, simulated seconds, lines, steps.
    Kept([u64; 4]),
    /// The log and the broken rule.
    Broken(String),
}

fn carry_out(plan: &Plan) -> Verdict {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let pid = child.id();
    std::io::Write::write_all(
        &mut child.stdin.take().unwrap(),
        plan.to_string().as_bytes(),
    )
    .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut errors = child.stderr.take().unwrap();
    let (sender, ended) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let text = std::io::read_to_string(&mut output).unwrap_or_default();
        // Nobody waits any more if it took too long.
        let _ = sender.send(());
        text
    });
    let others =
        std::thread::spawn(move || std::io::read_to_string(&mut errors).unwrap_or_default());
    let in_time = ended.recv_timeout(PATIENCE).is_ok();
    if !in_time {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let status = in_time.then_some(status);
    for base in [Path::new("/dev/shm").to_owned(), std::env::temp_dir()] {
        let _ = fs::remove_dir_all(base.join(format!("flannel-sim-{pid}")));
    }
    let (text, errors) = (reader.join().unwrap(), others.join().unwrap());
    match status {
        Some(status) if status.success() => {
            if std::env::var_os("TRACE").is_some() {
                println!("{text}");
            }
            let mut numbers = text
                .split_whitespace()
                .map(|word| word.parse().unwrap_or(0));
            Verdict::Kept(std::array::from_fn(|_| numbers.next().unwrap_or(0)))
        }
        Some(_) => Verdict::Broken(format!("{text}{errors}")),
        None => Verdict::Broken(format!("{text}{errors}it does not end")),
    }
}

/// Leaves out events as long as a rule is still broken.
fn reduced(plan: &Plan, broken: String) -> (Plan, String) {
    let (mut plan, mut broken) = (plan.clone(), broken);
    let mut at = plan.steps.len();
    while at > 0 {
        at -= 1;
        let mut fewer = plan.clone();
        fewer.steps.remove(at);
        if let Verdict::Broken(why) = carry_out(&fewer) {
            (plan, broken) = (fewer, why);
        }
    }
    (plan, broken)
}

fn check(plans: &[Plan]) -> ExitCode {
    let began = Instant::now();
    let (next, node_seconds, slowest) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let broken: Mutex<Vec<(Plan, String)>> = Mutex::default();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match carry_out(plan) {
                        Verdict::Kept([whole_after, simulated, ..]) => {
                            let nodes = plan.nodes as u64;
                            node_seconds.fetch_add(simulated * nodes, Ordering::Relaxed);
                            slowest.fetch_max(whole_after, Ordering::Relaxed);
                        }
                        Verdict::Broken(why) => broken.lock().unwrap().push((plan.clone(), why)),
                    }
                }
            });
        }
    });
    let hours = node_seconds.load(Ordering::Relaxed) as f64 / 3600.0;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    println!(
        "{} fleets, {hours:.0} node-hours in {:.1} s ({:.0} a minute), all well at most {} s after the last event",
        plans.len(),
        minutes * 60.0,
        hours / minutes,
        slowest.load(Ordering::Relaxed)
    );
    let mut broken = broken.into_inner().unwrap();
    broken.sort_by_key(|(plan, _)| plan.seed);
    let seeds: Vec<u64> = broken.iter().map(|(plan, _)| plan.seed).collect();
    for (_, why) in &broken {
        println!("BROKEN: {}", why.lines().last().unwrap_or_default());
    }
    let Some((plan, why)) = broken.into_iter().next() else {
        return ExitCode::SUCCESS;
    };
    let (least, why) = if std::env::var_os("PLAN").is_some() {
        (plan, why)
    } else {
        reduced(&plan, why)
    };
    let file = std::env::temp_dir().join(format!("flannel-sim-{}.plan", least.seed));
    fs::write(&file, least.to_string()).unwrap();
    println!("{why}\nthe least plan that breaks a rule:\n{least}seeds that break one: {seeds:?}");
    println!(
        "to replay it: PLAN={} cargo test -p sim --test daemons",
        file.display()
    );
    ExitCode::FAILURE
}
