//! Lowers limits that do not fit the memory and file descriptors of the machine, each with a warning.

use std::path::{Path, PathBuf};

use super::Config;
use crate::listener::INTERNAL_CONNECTIONS;
use crate::memory_plan::{Plan, REMEMBERED, SPAN};
use crate::peer::TrustedProxies;
use crate::usage;

/// The memory and file descriptors that are available, as far as they are known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resources {
    /// Memory of the cgroup or else of the machine, in bytes.
    pub memory: Option<usize>,
    /// Limit of open files of the process.
    pub descriptors: Option<usize>,
}

/// Descriptors for files, pipes, timers and listeners.
const OTHER_DESCRIPTORS: usize = 64;
/// A version 1 cgroup without a limit reports a number near 2^63.
const NO_LIMIT: u64 = 1 << 60;

impl Resources {
    /// The resources of this process.
    pub fn of_process() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        Self { memory: read_memory(), descriptors: limit.and_then(|limit| usize::try_from(limit).ok()) }
    }
}

impl Config {
    /// Lowers limits to the resources. Adds a warning for each limit that it lowers.
    pub fn fit(&mut self, resources: Resources) {
        self.memory = [self.memory, resources.memory].into_iter().flatten().min();
        if let Some(memory) = self.memory {
            self.fit_memory(memory);
        }
        if let Some(descriptors) = resources.descriptors {
            self.fit_descriptors(descriptors);
        }
    }

    fn fit_memory(&mut self, memory: usize) {
        let mut spans = 0;
        if let Some(traces) = &mut self.traces {
            let most = memory / 16 / SPAN;
            if traces.queue > most {
                self.warnings.push(format!(
                    "OTEL_BSP_MAX_QUEUE_SIZE is lowered from {} to {most}, for a sixteenth of {} MiB of memory",
                    traces.queue,
                    memory >> 20
                ));
                (traces.queue, traces.batch) = (most, traces.batch.min(most / 4));
            }
            spans = traces.queue * SPAN;
        }
        let entries = if self.validator.negative_ttl.is_zero() { 0 } else { self.validator.negative_entries };
        let entries = usize::try_from(entries).unwrap_or(usize::MAX);
        let most = memory / 8 / REMEMBERED;
        if entries > most {
            let reason = format!("an eighth of {} MiB of memory", memory >> 20);
            self.warnings.push(format!(
                "negative_cache.max_entries is lowered from {entries} to {most}, for {reason}"
            ));
            self.validator.negative_entries = most as u64;
        }
        let remembered =
            entries.min(most) + self.fit_rate_limits(memory) + self.fit_usage(memory).div_ceil(REMEMBERED);
        let (connections, head) = (self.listener.max_connections, self.listener.max_head);
        let plan = Plan::new(memory.saturating_sub(spans), connections, head, remembered);
        self.listener.memory = plan.requests;
        let memory = memory >> 20;
        self.lower_connections(plan.connections, &format!("for {memory} MiB of memory"));
    }

    /// Lowers the numbers of allowances that are remembered, and returns their sum, for which a shared one counts twice.
    fn fit_rate_limits(&mut self, memory: usize) -> usize {
        let each = if self.shared.is_some() { 2 } else { 1 };
        let most = (memory / 8 / REMEMBERED / each / self.rate_limits.len().max(1)) as u64;
        for limit in self.rate_limits.iter_mut().filter(|limit| limit.max_entries > most) {
            self.warnings.push(format!(
                "rate_limits.{}.max_entries is lowered from {} to {most}, for {} MiB of memory",
                limit.name,
                limit.max_entries,
                memory >> 20
            ));
            limit.max_entries = most;
        }
        let sum: u64 = self.rate_limits.iter().map(|limit| limit.max_entries).sum();
        usize::try_from(sum).unwrap_or(usize::MAX).saturating_mul(each)
    }

    /// Lowers the numbers of keys and of organizations whose use is remembered, and returns their memory in bytes.
    fn fit_usage(&mut self, memory: usize) -> usize {
        let Some(usage) = &mut self.usage else { return 0 };
        let max_keys = usize::try_from(usage.max_keys).unwrap_or(usize::MAX);
        let limits = [
            ("max_keys", max_keys, memory / 8 / usage::ENTRY_BYTES),
            ("max_organizations", usage.max_organizations, memory / 16 / usage::ROW_BYTES / usage.days),
        ];
        for (key, given, most) in limits {
            if given > most {
                let memory = memory >> 20;
                self.warnings.push(format!(
                    "usage.{key} is lowered from {given} to {most}, for {memory} MiB of memory"
                ));
            }
        }
        let [keys, organizations] = limits.map(|(_, given, most)| given.min(most));
        usage.max_keys = keys as u64;
        usage.max_organizations = organizations;
        (keys * usage::ENTRY_BYTES).saturating_add(organizations * usage.days * usage::ROW_BYTES)
    }

    fn fit_descriptors(&mut self, descriptors: usize) {
        let management = if self.management.is_some() { crate::management::CONNECTIONS } else { 0 };
        let reserve = OTHER_DESCRIPTORS + INTERNAL_CONNECTIONS + management + self.validator.max_in_flight;
        let free = descriptors.saturating_sub(reserve).max(2);
        let wanted = |upstreams: &[crate::upstream::Settings]| {
            upstreams.iter().fold(0, |sum: usize, upstream| sum.saturating_add(upstream.max_requests))
        };
        if self.listener.max_connections.saturating_add(wanted(&self.upstreams)) <= free {
            return;
        }
        let reason = format!("for {descriptors} file descriptors, of which {reserve} are in reserve");
        self.lower_connections(free / 2, &reason);
        let left = free - self.listener.max_connections;
        let each = (left / self.upstreams.len().max(1)).max(1);
        for upstream in &mut self.upstreams {
            if upstream.max_requests > each {
                self.warnings.push(format!(
                    "upstreams.{}.max_requests is lowered from {} to {each}, {reason}",
                    upstream.name, upstream.max_requests
                ));
                upstream.max_requests = each;
            }
        }
    }

    fn lower_connections(&mut self, most: usize, reason: &str) {
        let listener = &mut self.listener;
        if listener.max_connections <= most {
            return;
        }
        self.warnings.push(format!(
            "limits.connections is lowered from {} to {most}, {reason}",
            listener.max_connections
        ));
        if listener.proxied != TrustedProxies::default() {
            let quarter = (most / 4).max(1);
            listener.max_connections_per_address =
                listener.max_connections_per_address.map(|given| given.min(quarter));
        }
        listener.max_connections = most;
    }
}

/// The memory that this process may use: the lowest limit of its cgroups, or else the machine's memory.
fn read_memory() -> Option<usize> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = cgroup_limit(&groups, Path::new("/sys/fs/cgroup"));
    let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| parse_total_memory(&text));
    let memory = [limit, total].into_iter().flatten().min()?;
    usize::try_from(memory).ok()
}

fn parse_total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok()?.checked_mul(1024)
}

/// The lowest limit of the process's cgroup and its ancestors, for cgroup versions 1 and 2.
fn cgroup_limit(groups: &str, root: &Path) -> Option<u64> {
    let found = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        let (root, file): (PathBuf, _) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            controllers if controllers.split(',').any(|one| one == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // In a container, the path may be one of the host that does not exist here; the root is then the container's cgroup.
        let folder = root.join(path);
        let up = folder.ancestors().take_while(|folder| folder.starts_with(&root));
        up.filter_map(|folder| std::fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()).min()
    });
    found.min().filter(|limit| *limit < NO_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, parse};

    const MIB: usize = 1024 * 1024;

    fn config(more: &str) -> Config {
        let file = format!(
            "version = 1\n{more}\n[upstreams.a]\nurl = \"http://127.0.0.1:1\"\n[[routes]]\npath = \"/*\"\nupstream = \"a\"\n"
        );
        let environment = Environment::default().without_scalekit();
        let mut config =
            parse(&file, "test.toml", &environment).unwrap_or_else(|problems| panic!("{problems}"));
        config.warnings.clear();
        config
    }

    #[test]
    fn limits_over_descriptors_are_lowered_with_warning() {
        let mut fits = config("");
        fits.fit(Resources { memory: Some(16_384 * MIB), descriptors: Some(1_048_576) });
        assert_eq!((fits.warnings.as_slice(), fits.listener.max_connections), (&[][..], 10_000));

        let mut small = config("[limits]\nmemory = \"128MiB\"\n");
        small.fit(Resources { memory: Some(16_384 * MIB), descriptors: None });
        assert!(small.listener.max_connections < 1000);
        assert_eq!(small.validator.negative_entries, 65_536, "{:?}", small.warnings);
        assert!(
            small.warnings[1].starts_with("limits.connections is lowered from 10000 to "),
            "{:?}",
            small.warnings
        );
        assert!(small.warnings[1].ends_with("for 128 MiB of memory"), "{:?}", small.warnings);

        let mut few = config("");
        few.fit(Resources { memory: None, descriptors: Some(1024) });
        let sum = few.listener.max_connections + few.upstreams[0].max_requests;
        assert!(sum <= 1024 - 512 - OTHER_DESCRIPTORS - INTERNAL_CONNECTIONS, "{:?}", few.warnings);
        assert_eq!(few.warnings.len(), 2);
    }

    #[test]
    fn queue_of_spans_is_part_of_the_memory_plan() {
        let fitted = |memory: usize, collector: &str| {
            let file = "version = 1\n[upstreams.a]\nurl = \"http://127.0.0.1:1\"\n[[routes]]\npath = \"/*\"\nupstream = \"a\"\n";
            let environment = Environment::from_pairs([("OTEL_EXPORTER_OTLP_ENDPOINT", collector)]);
            let mut config = parse(file, "test.toml", &environment.without_scalekit()).unwrap();
            config.fit(Resources { memory: Some(memory), descriptors: None });
            config
        };
        let (without, with) = (fitted(512 * MIB, ""), fitted(512 * MIB, "http://collector:4318"));
        assert!(with.listener.memory < without.listener.memory);
        assert_eq!(with.traces.unwrap().queue, 2048);
        let small = fitted(64 * MIB, "http://collector:4318");
        let warned = small.warnings.iter().any(|text| text.starts_with("OTEL_BSP_MAX_QUEUE_SIZE is lowered"));
        let traces = small.traces.unwrap();
        assert!(warned && traces.queue == 682 && traces.batch == 170, "{traces:?}");
    }

    #[test]
    fn usage_is_part_of_the_memory_plan() {
        let fitted = |more: &str, mebibytes: usize| {
            let mut config = config(more);
            config.fit(Resources { memory: Some(mebibytes * MIB), descriptors: None });
            config
        };
        let (with, without) = (fitted("", 128), fitted("[usage]\nenabled = false\n", 128));
        assert!(with.listener.memory < without.listener.memory);
        assert!(!with.warnings.iter().any(|text| text.contains("usage")), "{:?}", with.warnings);
        let many = fitted("[usage]\nmax_keys = 10000000\nmax_organizations = 1000000\n", 128);
        for start in
            ["usage.max_keys is lowered from 10000000 to 32768", "usage.max_organizations is lowered"]
        {
            assert!(many.warnings.iter().any(|text| text.starts_with(start)), "{:?}", many.warnings);
        }
        let usage = many.usage.unwrap();
        assert_eq!((usage.max_keys, usage.max_organizations), (32_768, 10_922));
    }

    #[test]
    fn lowest_cgroup_memory_limit_applies() {
        let root = std::env::temp_dir().join(format!("keyward-cgroup-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("pod/memory.max", "268435456\n");
        write("pod/container/memory.max", "max\n");
        write("memory/docker/one/memory.limit_in_bytes", "134217728\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let limit = |groups: &str| cgroup_limit(groups, &root);
        assert_eq!(limit("0::/pod/container\n"), Some(268_435_456));
        assert_eq!(limit("3:cpu:/\n4:memory:/docker/one\n"), Some(134_217_728));
        assert_eq!(limit("4:memory:/somewhere/else\n"), None);
        assert_eq!(limit(""), None);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
