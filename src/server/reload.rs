//! Takes a changed configuration into force without losing a request: on SIGHUP, and when one of its files changes, also by
//! Kubernetes' swap of symlinks. What is wrong leaves what runs as it is.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::sleep;

use super::{Drain, Fixed, Shared, unix_seconds};
use crate::config::{self, Config, Environment, Problems, Resources};
use crate::tls::ServerCertificate;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where the configuration comes from, and what asks to read it again.
pub struct Source {
    path: PathBuf,
    environment: Environment,
    hup: Arc<Notify>,
    /// How the route file was before it was first read.
    first: Mark,
}

impl Source {
    /// A route file and the environment; `hup` is notified on SIGHUP.
    pub fn new(path: PathBuf, environment: Environment, hup: Arc<Notify>) -> Self {
        Self { first: mark(&path), path, environment, hup }
    }

    /// Reads it as it is now, with limits that fit this process's memory and descriptors.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(&self) -> Result<Config, Problems> {
        let mut config = config::load(&self.path, &self.environment)?;
        config.fit(Resources::of_process());
        Ok(config)
    }
}

/// What tells one state of a file from another.
type Mark = Option<(SystemTime, u64, u64)>;

/// Watches and reloads until it is dropped.
pub(super) async fn watch(
    source: Source,
    shared: Arc<Shared>,
    fixed: Fixed,
    certificates: Vec<Arc<ServerCertificate>>,
    mut files: Vec<PathBuf>,
) {
    let mut seen = marks(&files);
    files.push(source.path.clone());
    seen.push(source.first);
    loop {
        let asked = tokio::select! {
            () = source.hup.notified() => true,
            () = sleep(LOOK_EVERY) => false,
        };
        let now = marks(&files);
        if !asked && now == seen {
            continue;
        }
        seen.clone_from(&now);
        match reload(&source, &shared, &fixed, &certificates) {
            Ok(named) => {
                // The route file as it was before it was read: what changed since is another change.
                seen = marks(&named);
                seen.push(now.last().copied().flatten());
                files = named;
                files.push(source.path.clone());
                shared.parts.metrics.reload_successful.set(1);
                shared.parts.metrics.reload_time.set(unix_seconds());
                tracing::info!(routes = shared.current.gateway().routes.routes().len(), "reloaded");
            }
            Err(problem) => {
                shared.parts.metrics.reload_successful.set(0);
                tracing::error!("not reloaded, so what runs goes on: {problem}");
            }
        }
    }
}

/// The files that the new configuration names, or why it is not in force.
fn reload(
    source: &Source,
    shared: &Shared,
    fixed: &Fixed,
    certificates: &[Arc<ServerCertificate>],
) -> Result<Vec<PathBuf>, String> {
    let config = source.load().map_err(|problems| problems.to_string())?;
    let changed = fixed.differences(&config);
    if !changed.is_empty() {
        return Err(format!("{} cannot change without a restart", changed.join(", ")));
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let files = files(&config);
    let before = shared.current.gateway();
    let validator = before.validator.with(&config.validator);
    let (drain, public) = (Drain::of(&config), config.listener.clone());
    let admin = public.beside(config.admin.clone());
    let gateway =
        shared.parts.gateway(config, validator, Some(&before)).map_err(|error| error.to_string())?;
    // The last thing that can fail, so that all of it takes effect or none.
    ServerCertificate::refresh(certificates).map_err(|error| error.to_string())?;
    *shared.drain.lock().unwrap_or_else(PoisonError::into_inner) = drain;
    for (listener, settings) in shared.listeners.iter().zip([public, admin]) {
        listener.send_replace(settings);
    }
    shared.current.replace(gateway);
    Ok(files)
}

/// The files beside the route file whose content matters.
pub(super) fn files(config: &Config) -> Vec<PathBuf> {
    let management = config.management.as_ref().and_then(|settings| settings.tls.as_ref());
    let pairs = config.listener.tls.iter().chain(management).chain(
        config.upstreams.iter().filter_map(|upstream| upstream.origin.tls.as_ref()?.identity.as_ref()),
    );
    let roots = config.upstreams.iter().filter_map(|upstream| upstream.origin.tls.as_ref()?.roots.clone());
    pairs.flat_map(|pair| [pair.certificate.clone(), pair.key.clone()]).chain(roots).collect()
}

fn marks(files: &[PathBuf]) -> Vec<Mark> {
    files.iter().map(|path| mark(path)).collect()
}

/// Follows symlinks, so that a swapped one shows.
fn mark(path: &Path) -> Mark {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}
