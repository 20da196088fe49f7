//! How the memory of the process is divided: between connections, the requests and bodies on them, and remembered keys.

/// The most that a connection takes in addition to its requests, in bytes: its HTTP/2 window or HTTP/1.1 write buffer, its share
/// of the larger windows, and its tables, tasks and TLS state. A head that is being read (`limits.head`) comes on top.
pub const CONNECTION: usize = 160 * 1024;
/// What a request counts until its response ends, in bytes: its tasks, its connection to the upstream, and what was read of the
/// response ahead of the client. Its headers come on top.
pub const REQUEST: usize = 96 * 1024;
/// The least share of a connection, in bytes: enough for a request of usual size, so that a flood on other connections does not
/// shut out a client.
pub const SHARE: usize = REQUEST + 32 * 1024;
/// What is read of an HTTP/1 connection at once, in bytes, although `limits.head` may be lower.
pub const READ_BUFFER: usize = 64 * 1024;
/// The percentage of the memory that is planned with. The rest is for the allocator and the system.
const PLANNED_PERCENT: usize = 70;
/// The process before its first connection, with the addresses and good keys that the validator remembers, in bytes.
const PROCESS: usize = 18 * 1024 * 1024;
/// A bad key or the allowance of a rate limit that is remembered, in bytes.
pub const REMEMBERED: usize = 256;
/// A span that waits to be exported, in bytes, with its share of the messages that are being sent.
pub const SPAN: usize = 6 * 1024;

/// The result of the division.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The number of connections that fit.
    pub connections: usize,
    /// For requests and bodies of all connections, in bytes.
    pub requests: usize,
}

impl Plan {
    /// Divides `memory` bytes between at most `connections`, with heads of up to `head` bytes, and `remembered` bad keys and
    /// allowances, or what takes as much.
    ///
    /// ```text
    /// 70 % of memory = 18 MiB + 256 B × remembered + connections × (160 KiB + head) + requests
    /// requests       ≥ connections × 2 × 128 KiB
    /// ```
    pub fn new(memory: usize, connections: usize, head: usize, remembered: usize) -> Self {
        let fixed = PROCESS.saturating_add(remembered.saturating_mul(REMEMBERED));
        let free = (memory / 100).saturating_mul(PLANNED_PERCENT).saturating_sub(fixed);
        let each = CONNECTION.saturating_add(head.max(READ_BUFFER));
        let connections = connections.min(free / each.saturating_add(2 * SHARE)).max(1);
        Self { connections, requests: free.saturating_sub(connections * each).max(2 * SHARE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn memory_plan_fits_available_memory() {
        for memory in [64 * MIB, 128 * MIB, 512 * MIB, 8192 * MIB] {
            let (head, bad_keys) = (64 * 1024, 50_000);
            let plan = Plan::new(memory, 1_000_000, head, bad_keys);
            let sum =
                PROCESS + bad_keys * REMEMBERED + plan.connections * (CONNECTION + head) + plan.requests;
            assert!(sum <= memory * PLANNED_PERCENT / 100, "{memory}: {plan:?}");
            assert!(plan.requests >= plan.connections * 2 * SHARE, "{memory}: {plan:?}");
        }
        assert_eq!(Plan::new(8192 * MIB, 100, 65_536, 0).connections, 100);
        assert_eq!(Plan::new(0, 100, 65_536, usize::MAX).connections, 1);
    }
}
