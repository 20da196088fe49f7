//! Reloads the configuration without losing a request: on SIGHUP, and when one of its files changes, also by the replaced
//! symlinks of Kubernetes volumes. A configuration with errors leaves the running one in force.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::certificates::ListenerCertificate;
use super::drain::Times;
use super::{RestartOnly, Shared, unix_time};
use crate::config::{self, Config, Diagnostics, Environment, Resources};
use crate::route::changes::{self, Change, Kind};
use crate::systemd::ServiceManager;
use crate::tls::ServerCertificate;

/// How soon a changed file takes effect. A file that is written in several steps must not take effect before the last.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two looks at the files, of which two in a row must see the same.
    pub look_every: Duration,
    /// How long ago the last write must be.
    pub settle: Duration,
    /// The time without changes before a file takes effect that admits more requests than the routes in force: one in which a
    /// route is dropped, opened, loosened or added.
    pub hold: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            look_every: Duration::from_secs(1),
            settle: Duration::from_secs(1),
            hold: Duration::from_secs(10),
        }
    }
}

/// Where the configuration comes from, and when it is read again.
pub struct Source {
    path: PathBuf,
    environment: Environment,
    hup: Arc<Notify>,
    /// Of the route file, from before it was first read.
    first: Mark,
    pace: Pace,
}

impl Source {
    /// `hup` is notified on SIGHUP.
    pub fn new(path: PathBuf, environment: Environment, hup: Arc<Notify>) -> Self {
        Self { first: read_mark(&path), path, environment, hup, pace: Pace::default() }
    }

    /// Replaces the pace, which is the default one after `new`.
    #[must_use]
    pub fn at_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// Reads the configuration, with its limits lowered to this process's memory and file descriptors.
    ///
    /// # Errors
    /// All problems of the file and of the environment.
    pub fn load(&self) -> Result<Config, Diagnostics> {
        let mut config = config::load(&self.path, &self.environment)?;
        config.fit(Resources::of_process());
        Ok(config)
    }
}

/// The state of a file, by which a change is recognized: time of the last write, length, and inode.
type Mark = Option<(SystemTime, u64, u64)>;

/// A change of the files that is not in force yet.
struct Pending {
    marks: Vec<Mark>,
    /// When the files were first seen in this state.
    since: Instant,
    /// When the first of the changes was seen that are not in force yet.
    waiting_since: Instant,
    /// Whether the log has a line that the files keep changing.
    warned: bool,
    /// Whether the log has a line that this change waits for `Pace::hold`.
    announced: bool,
}

impl Pending {
    fn begin(marks: Vec<Mark>, before: Option<&Self>) -> Self {
        let now = Instant::now();
        Self {
            marks,
            since: now,
            waiting_since: before.map_or(now, |before| before.waiting_since),
            warned: before.is_some_and(|before| before.warned),
            announced: false,
        }
    }

    /// Warns once that a change does not take effect because the files keep changing.
    fn warn_of_changing_files(&mut self, hold: Duration) {
        if !self.warned && self.waiting_since.elapsed() >= hold {
            self.warned = true;
            tracing::warn!(
                "a changed file has not taken effect, as the route file or a file it names has kept changing for {hold:?}; SIGHUP \
                 applies it as it is"
            );
        }
    }
}

/// Why a configuration is not in force.
enum Refused {
    /// It admits more requests than the one in force, and its files have not been unchanged for `Pace::hold`.
    Early(Vec<Change>),
    /// Its files changed while they were read.
    Changed,
    /// It cannot be used.
    Invalid(String),
}

/// Files whose content matters.
pub(super) struct WatchedFiles {
    paths: Vec<PathBuf>,
    /// From before their content was read, so that what is written meanwhile shows as a change.
    marks: Vec<Mark>,
}

impl WatchedFiles {
    /// The certificates, keys and roots that a configuration names, as they are now.
    pub(super) fn of_config(config: &Config) -> Self {
        let paths = named_files(config);
        Self { marks: read_marks(&paths), paths }
    }

    fn add(&mut self, path: PathBuf, mark: Mark) {
        self.paths.push(path);
        self.marks.push(mark);
    }
}

/// Reloads the configuration when it changes.
pub(super) struct Watcher {
    pub(super) source: Source,
    pub(super) shared: Arc<Shared>,
    pub(super) restart_only: RestartOnly,
    pub(super) certificates: Vec<ListenerCertificate>,
    /// Those beside the route file.
    pub(super) files: WatchedFiles,
    pub(super) service_manager: ServiceManager,
}

impl Watcher {
    /// Never returns.
    pub(super) async fn run(mut self) {
        let pace = self.source.pace;
        self.files.add(self.source.path.clone(), self.source.first);
        let mut pending: Option<Pending> = None;
        let mut requested = false;
        loop {
            tokio::select! {
                () = self.source.hup.notified() => {
                    self.service_manager.notify_reloading().await;
                    requested = true;
                }
                () = sleep(pace.look_every) => {}
            }
            let now = read_marks(&self.files.paths);
            if !requested {
                if now == self.files.marks {
                    pending = None;
                    continue;
                }
                // SECURITY: half of a route file may be valid, and lack the routes that require a key.
                let is_unchanged = pending.as_ref().is_some_and(|pending| pending.marks == now);
                if !is_unchanged {
                    pending = Some(Pending::begin(now.clone(), pending.as_ref()));
                }
                if !is_unchanged || !is_settled(&now, pace.settle) {
                    if let Some(pending) = &mut pending {
                        pending.warn_of_changing_files(pace.hold);
                    }
                    continue;
                }
            }
            let is_held =
                requested || pending.as_ref().is_some_and(|pending| pending.since.elapsed() >= pace.hold);
            let metrics = &self.shared.resources.metrics;
            match self.reload(is_held, &now) {
                Ok((files, changes)) => {
                    metrics.reload_successful.set(1);
                    metrics.reload_time.set(unix_time());
                    log_changes(&changes);
                    let routes = self.shared.current.gateway().routes.routes().len();
                    tracing::info!(routes, "reloaded");
                    self.files = files;
                    pending = None;
                    if std::mem::take(&mut requested) {
                        self.service_manager.notify_ready("reloaded").await;
                    }
                }
                Err(Refused::Early(changes)) => {
                    let Some(pending) = pending.as_mut().filter(|pending| !pending.announced) else {
                        continue;
                    };
                    pending.announced = true;
                    let changes: Vec<String> = changes.iter().map(Change::to_string).collect();
                    tracing::info!(
                        "a changed route file takes effect after {:?} without further changes, or on SIGHUP, as it {}",
                        pace.hold,
                        changes.join("; ")
                    );
                }
                Err(Refused::Changed) => {}
                Err(Refused::Invalid(problem)) => {
                    metrics.reload_successful.set(0);
                    tracing::error!("not reloaded; the previous configuration stays in force: {problem}");
                    self.files.marks = now;
                    pending = None;
                    if std::mem::take(&mut requested) {
                        self.service_manager.notify_ready("not reloaded; the log says why").await;
                    }
                }
            }
        }
    }

    /// Puts the configuration in force, and gives its files and what it changes. `is_held` is whether its files have been unchanged
    /// for `Pace::hold`, or SIGHUP came; `before` are the marks of the watched files from before this call.
    ///
    /// # Errors
    /// Why the configuration is not in force.
    fn reload(&self, is_held: bool, before: &[Mark]) -> Result<(WatchedFiles, Vec<Change>), Refused> {
        let invalid = |problem: &dyn std::fmt::Display| Refused::Invalid(problem.to_string());
        let Self { source, shared, restart_only, certificates, .. } = self;
        let config = source.load();
        if read_marks(&self.files.paths) != before {
            return Err(Refused::Changed);
        }
        let config = config.map_err(|problems| invalid(&problems))?;
        let changed = restart_only.changed_settings(&config);
        if !changed.is_empty() {
            return Err(Refused::Invalid(format!("{} cannot change without a restart", changed.join(", "))));
        }
        let in_force = shared.current.gateway();
        let changes = changes::compare_tables(&in_force.routes, &config.routes);
        if !is_held && !changes.is_empty() {
            return Err(Refused::Early(changes));
        }
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let mut files = WatchedFiles::of_config(&config);
        files.add(source.path.clone(), before.last().copied().flatten());
        let validator = in_force.validator.with_settings(&config.validator);
        let (drain, public) = (Times::from_config(&config), config.listener.clone());
        let (admin, decision) = (config.admin.clone(), config.decision.clone());
        let gateway = shared.resources.build_gateway(config, validator, Some(&in_force));
        let gateway = gateway.map_err(|error| invalid(&error))?;
        // The last step that can fail, so that the configuration takes effect as a whole or not at all.
        let own = certificates.iter().map(|own| &*own.certificate);
        ServerCertificate::refresh_all(own).map_err(|error| invalid(&error))?;
        certificates.iter().for_each(|own| own.record_expiry(&shared.resources.metrics));
        *shared.drain.lock().unwrap_or_else(PoisonError::into_inner) = drain;
        shared.listeners.replace(public, admin, decision.as_ref());
        shared.current.replace(gateway);
        Ok((files, changes))
    }
}

fn log_changes(changes: &[Change]) {
    for change in changes {
        match change.kind {
            Kind::Added => tracing::info!("the reload {change}"),
            Kind::Dropped | Kind::Opened | Kind::Loosened => {
                tracing::warn!(keyward.route = &*change.route, "the reload {change}");
            }
        }
    }
}

/// Whether the last write was at least `settle` ago. A time in the future, by another machine's clock, is ignored.
fn is_settled(marks: &[Mark], settle: Duration) -> bool {
    let written = marks.iter().flatten().map(|(modified, ..)| modified);
    written.map(SystemTime::elapsed).all(|age| age.is_err() || age.is_ok_and(|age| age >= settle))
}

/// Certificates, keys and roots.
fn named_files(config: &Config) -> Vec<PathBuf> {
    let management = config.management.as_ref().and_then(|settings| settings.tls.as_ref());
    let decision = config.decision.as_ref().and_then(|settings| settings.tls.as_ref());
    let pairs = config.listener.tls.iter().chain(management).chain(decision).chain(
        config.upstreams.iter().filter_map(|upstream| upstream.origin.tls.as_ref()?.identity.as_ref()),
    );
    let roots = config.upstreams.iter().filter_map(|upstream| upstream.origin.tls.as_ref()?.roots.clone());
    pairs.flat_map(|pair| [pair.certificate.clone(), pair.key.clone()]).chain(roots).collect()
}

fn read_marks(files: &[PathBuf]) -> Vec<Mark> {
    files.iter().map(|path| read_mark(path)).collect()
}

/// Follows symlinks, as Kubernetes changes a volume by replacing one.
fn read_mark(path: &Path) -> Mark {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}
