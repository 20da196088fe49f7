//! The process's own figures under the names that Prometheus' client libraries use, read from `/proc` at each scrape (proc(5)).
//! Elsewhere than on Linux they are absent.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

#[derive(Debug, Default)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut write = |name, help, unit: Option<&Unit>, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)
        };
        if let Some(stat) = std::fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse) {
            write(
                "process_cpu",
                "CPU time that the process has used.",
                Some(&Unit::Seconds),
                &ConstCounter::new(stat.cpu_seconds),
            )?;
            write(
                "process_resident_memory",
                "Memory of the process that is in RAM.",
                Some(&Unit::Bytes),
                &ConstGauge::new(stat.resident_bytes),
            )?;
            if let Some(boot) = boot_time() {
                write(
                    "process_start_time",
                    "Unix time at which the process started.",
                    Some(&Unit::Seconds),
                    &ConstGauge::new(boot + stat.started_after_boot),
                )?;
            }
        }
        if let Some(open) = count_open_descriptors() {
            write("process_open_fds", "Open file descriptors.", None, &ConstGauge::new(open))?;
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        if let Some(limit) = limit.and_then(|limit| i64::try_from(limit).ok()) {
            write("process_max_fds", "Limit of open file descriptors.", None, &ConstGauge::new(limit))?;
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    resident_bytes: i64,
    /// In seconds.
    started_after_boot: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name of the program is in parentheses, and may contain any character.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Field 3 of proc(5) is the first here.
        let field = |number: usize| fields.get(number - 3)?.parse::<i64>().ok();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let pages = i64::try_from(rustix::param::page_size()).ok()?;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
            resident_bytes: field(24)?.checked_mul(pages)?,
            started_after_boot: field(22)? as f64 / ticks,
        })
    }
}

fn boot_time() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// From Linux 6.2 the size of the directory is their number; before it is 0.
fn count_open_descriptors() -> Option<i64> {
    const FOLDER: &str = "/proc/self/fd";
    match std::fs::metadata(FOLDER).ok()?.len() {
        // Less the one that reads the folder.
        0 => i64::try_from(std::fs::read_dir(FOLDER).ok()?.count()).ok().map(|count| count - 1),
        count => i64::try_from(count).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_name_cannot_shift_fields() {
        let numbers: Vec<String> = (4..=52).map(|number| (number * 100).to_string()).collect();
        let stat = Stat::parse(&format!("1 (a) R (b) S {}", numbers.join(" "))).unwrap();
        let (ticks, page) =
            (rustix::param::clock_ticks_per_second() as f64, rustix::param::page_size() as i64);
        let expected = Stat {
            cpu_seconds: 2900.0 / ticks,
            resident_bytes: 2400 * page,
            started_after_boot: 2200.0 / ticks,
        };
        assert_eq!(stat, expected);
        assert_eq!(Stat::parse("1 (a) S 1"), None);
    }
}
