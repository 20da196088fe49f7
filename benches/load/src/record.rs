//! What a run counts: answers by status, latencies, and the CPU time of the processes that are watched.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Sixty-four buckets for each power of two of nanoseconds: 1.6 % wide.
const BUCKETS: usize = 64 * 64;

static MEASURING: AtomicBool = AtomicBool::new(false);
static STATUSES: [AtomicU64; 600] = [const { AtomicU64::new(0) }; 600];
static LATENCIES: [AtomicU64; BUCKETS] = [const { AtomicU64::new(0) }; BUCKETS];

/// Counts one exchange. Status 0: it failed without one.
pub fn count(status: u16, latency: Duration) {
    if !MEASURING.load(Relaxed) {
        return;
    }
    STATUSES[usize::from(status).min(599)].fetch_add(1, Relaxed);
    let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(64);
    let power = nanoseconds.ilog2();
    let bucket = power as usize * 64 + ((nanoseconds >> (power - 6)) & 63) as usize;
    LATENCIES[bucket.min(BUCKETS - 1)].fetch_add(1, Relaxed);
}

/// Nanoseconds that all threads of a process ran, and that they waited for a core. `stat` has ticks of 10 ms, too coarse for
/// bursts of a second.
fn read_cpu(pid: &str) -> (u64, u64) {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return (0, 0) };
    let of_thread = |path: std::path::PathBuf| -> Option<(u64, u64)> {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        let mut numbers = text.split_ascii_whitespace().map_while(|number| number.parse().ok());
        Some((numbers.next()?, numbers.next()?))
    };
    let threads = threads.flatten().filter_map(|thread| of_thread(thread.path()));
    threads.fold((0, 0), |sum, thread| (sum.0 + thread.0, sum.1 + thread.1))
}

/// Counts for this long, and prints what was counted. `watch`: process ids, separated by commas; the load itself is `self`.
/// `sent`: all requests of this run, those before the count began included.
pub async fn measure(seconds: f64, watch: &str, sent: &AtomicU64) {
    let pids: Vec<&str> = watch.split(',').filter(|pid| !pid.is_empty()).chain(["self"]).collect();
    let read_all = || pids.iter().map(|pid| read_cpu(pid)).collect::<Vec<_>>();
    let before = read_all();
    let start = Instant::now();
    MEASURING.store(true, Relaxed);
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    MEASURING.store(false, Relaxed);
    let seconds = start.elapsed().as_secs_f64();
    let after = read_all();

    let mut text = format!("{{\"seconds\":{seconds:.6},\"sent\":{},\"cpu\":{{", sent.load(Relaxed));
    for (at, pid) in pids.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let (ran, waited) =
            (after[at].0.saturating_sub(before[at].0), after[at].1.saturating_sub(before[at].1));
        let _ = write!(text, "{comma}\"{pid}\":[{ran},{waited}]");
    }
    text.push_str("},\"statuses\":{");
    let mut comma = "";
    for (status, count) in STATUSES.iter().enumerate().filter(|(_, count)| count.load(Relaxed) > 0) {
        let _ = write!(text, "{comma}\"{status}\":{}", count.load(Relaxed));
        comma = ",";
    }
    text.push_str("},\"latency\":{");
    comma = "";
    for share in [0.5, 0.9, 0.99, 0.999, 1.0] {
        let _ = write!(text, "{comma}\"{share}\":{}", percentile(share));
        comma = ",";
    }
    println!("{text}}}}}");
}

/// In nanoseconds, at the upper end of the bucket.
fn percentile(share: f64) -> u64 {
    let all: u64 = LATENCIES.iter().map(|count| count.load(Relaxed)).sum();
    let wanted = (all as f64 * share).ceil() as u64;
    let mut seen = 0;
    for (bucket, count) in LATENCIES.iter().enumerate() {
        seen += count.load(Relaxed);
        if seen >= wanted && seen > 0 {
            let (power, step) = (bucket / 64, (bucket % 64) as u64);
            return if power < 6 { 64 } else { (64 + step + 1) << (power - 6) };
        }
    }
    0
}
