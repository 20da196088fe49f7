//! `keyward run`: the proxy.

use std::sync::Arc;

use anyhow::Result;
use tokio::sync::Notify;

use super::{ConfigFile, build_runtime, protect_memory, signals};
use crate::config::Environment;
use crate::logging;
use crate::metrics::Metrics;
use crate::server::{Server, reload};
use crate::systemd::ServiceManager;

pub(super) const HELP: &str = include_str!("help/run.txt").trim_ascii_end();

pub(super) fn run_proxy(file: ConfigFile) -> Result<()> {
    let protected = protect_memory();
    let hup = Arc::new(Notify::new());
    let source = reload::Source::new(file.config, Environment::from_process(), Arc::clone(&hup));
    let config = source.load()?;
    let metrics = Arc::new(Metrics::default());
    let _log = logging::start(config.log, &metrics);
    if let Err(error) = protected {
        tracing::warn!("cannot turn off core dumps, which would contain keys: {error}");
    }
    raise_file_limit();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    build_runtime(config.memory)?.block_on(async {
        let mut server = Server::bind(config, metrics)?;
        server.reload_from(source);
        match ServiceManager::from_environment() {
            Ok(service_manager) => server.report_to(service_manager),
            Err(error) => tracing::warn!("systemd is not told the state of the service: {error}"),
        }
        let (stop, kill) = signals::watch_signals(Some(hup))?;
        server.run(stop, kill).await;
        Ok(())
    })
}

/// Each connection takes a file descriptor, and the usual soft limit is 1,024.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_err() {
        tracing::warn!("cannot raise the limit of open files from {:?}", limit.current);
    }
}
