//! Reloads the configuration without losing a request: on SIGHUP, and when one of its files changes, including the symlink
//! swap of Kubernetes volumes. A configuration with errors leaves the running one in force.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::{Drain, RestartOnly, Shared, unix_time};
use crate::config::{self, Config, Diagnostics, Environment, Resources};
use crate::route::changes::{self, Change, Kind};
use crate::tls::ServerCertificate;

/// How soon a changed file takes effect. A file written in several steps must not take effect half written.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two looks at the files. Two in a row must see the same.
    pub look_every: Duration,
    /// How long ago the last write must be.
    pub settle: Duration,
    /// How long a file must hold still whose routes let in more than those in force: a route is dropped, opened, loosened or
    /// added.
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

/// Where the configuration comes from, and what asks to read it again.
pub struct Source {
    path: PathBuf,
    environment: Environment,
    hup: Arc<Notify>,
    /// How the route file was before it was first read.
    first: Mark,
    pace: Pace,
}

impl Source {
    /// A route file and the environment; `hup` is notified on SIGHUP.
    pub fn new(path: PathBuf, environment: Environment, hup: Arc<Notify>) -> Self {
        Self { first: read_mark(&path), path, environment, hup, pace: Pace::default() }
    }

    /// Looks and waits at another pace.
    #[must_use]
    pub fn at_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// Reads it as it is now, with limits that fit this process's memory and descriptors.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(&self) -> Result<Config, Diagnostics> {
        let mut config = config::load(&self.path, &self.environment)?;
        config.fit(Resources::of_process());
        Ok(config)
    }
}

/// What tells one state of a file from another: when it was written last, its length, and its inode.
type Mark = Option<(SystemTime, u64, u64)>;

/// Files that differ from those in force, and since when they have held still.
struct Pending {
    marks: Vec<Mark>,
    since: Instant,
    /// Since when there has been a change that is not in force.
    waiting_since: Instant,
    /// Whether the log says already that the files do not hold still.
    warned: bool,
    /// Whether the log says already that this waits.
    told: bool,
}

impl Pending {
    fn begin(marks: Vec<Mark>, before: Option<&Self>) -> Self {
        let now = Instant::now();
        Self {
            marks,
            since: now,
            waiting_since: before.map_or(now, |before| before.waiting_since),
            warned: before.is_some_and(|before| before.warned),
            told: false,
        }
    }

    /// Says once that a change does not take effect because somebody keeps writing.
    fn warn_of_restless_files(&mut self, hold: Duration) {
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
    /// It lets in more than the one in force, and its files have not held still for long enough.
    Early(Vec<Change>),
    /// It was written to while it was read.
    Moved,
    /// It is wrong.
    Wrong(String),
}

/// Watches and reloads until it is dropped.
pub(super) async fn watch_files(
    source: Source,
    shared: Arc<Shared>,
    restart_only: RestartOnly,
    certificates: Vec<Arc<ServerCertificate>>,
    mut files: Vec<PathBuf>,
) {
    let pace = source.pace;
    let mut judged = read_marks(&files);
    files.push(source.path.clone());
    judged.push(source.first);
    let mut pending: Option<Pending> = None;
    let mut asked = false;
    loop {
        tokio::select! {
            () = source.hup.notified() => asked = true,
            () = sleep(pace.look_every) => {}
        }
        let now = read_marks(&files);
        if !asked {
            if now == judged {
                pending = None;
                continue;
            }
            // SECURITY: half a route file is a good route file that may lack the routes that ask for a key.
            let still = pending.as_ref().is_some_and(|pending| pending.marks == now);
            if !still {
                pending = Some(Pending::begin(now.clone(), pending.as_ref()));
            }
            if !still || !is_settled(&now, pace.settle) {
                if let Some(pending) = &mut pending {
                    pending.warn_of_restless_files(pace.hold);
                }
                continue;
            }
        }
        let held = asked || pending.as_ref().is_some_and(|pending| pending.since.elapsed() >= pace.hold);
        match reload_config(&source, &shared, &restart_only, &certificates, held, (&files, &now)) {
            Ok((named, changes)) => {
                // The route file as it was before it was read: what changed since is another change.
                judged = read_marks(&named);
                judged.push(now.last().copied().flatten());
                files = named;
                files.push(source.path.clone());
                (asked, pending) = (false, None);
                shared.resources.metrics.reload_successful.set(1);
                shared.resources.metrics.reload_time.set(unix_time());
                for change in changes {
                    match change.kind {
                        Kind::Added => tracing::info!("the reload {change}"),
                        Kind::Dropped | Kind::Opened | Kind::Loosened => {
                            tracing::warn!(keyward.route = &*change.route, "the reload {change}");
                        }
                    }
                }
                tracing::info!(routes = shared.current.gateway().routes.routes().len(), "reloaded");
            }
            Err(Refused::Early(changes)) => {
                let Some(pending) = pending.as_mut().filter(|pending| !pending.told) else { continue };
                pending.told = true;
                let changes: Vec<String> = changes.iter().map(Change::to_string).collect();
                tracing::info!(
                    "a changed route file takes effect after {:?} without further changes, or on SIGHUP, as it {}",
                    pace.hold,
                    changes.join("; ")
                );
            }
            Err(Refused::Moved) => {}
            Err(Refused::Wrong(problem)) => {
                judged = now;
                (asked, pending) = (false, None);
                shared.resources.metrics.reload_successful.set(0);
                tracing::error!("not reloaded; the previous configuration stays in force: {problem}");
            }
        }
    }
}

/// The files that the new configuration names and what it changes, or why it is not in force.
fn reload_config(
    source: &Source,
    shared: &Shared,
    restart_only: &RestartOnly,
    certificates: &[Arc<ServerCertificate>],
    held: bool,
    (watched, before_reading): (&[PathBuf], &[Mark]),
) -> Result<(Vec<PathBuf>, Vec<Change>), Refused> {
    let wrong = |problem: &dyn std::fmt::Display| Refused::Wrong(problem.to_string());
    let config = source.load();
    if read_marks(watched) != before_reading {
        return Err(Refused::Moved);
    }
    let config = config.map_err(|problems| wrong(&problems))?;
    let changed = restart_only.changed_settings(&config);
    if !changed.is_empty() {
        return Err(Refused::Wrong(format!("{} cannot change without a restart", changed.join(", "))));
    }
    let before = shared.current.gateway();
    let changes = changes::compare_tables(&before.routes, &config.routes);
    if !held && !changes.is_empty() {
        return Err(Refused::Early(changes));
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let files = watched_files(&config);
    let validator = before.validator.with_settings(&config.validator);
    let (drain, public) = (Drain::from_config(&config), config.listener.clone());
    let admin = public.beside(config.admin.clone());
    let gateway =
        shared.resources.build_gateway(config, validator, Some(&before)).map_err(|error| wrong(&error))?;
    // The last step that can fail, so that all of the configuration takes effect or none.
    ServerCertificate::refresh_all(certificates).map_err(|error| wrong(&error))?;
    *shared.drain.lock().unwrap_or_else(PoisonError::into_inner) = drain;
    for (listener, settings) in shared.listeners.iter().zip([public, admin]) {
        listener.send_replace(settings);
    }
    shared.current.replace(gateway);
    Ok((files, changes))
}

/// Whether the last write was long enough ago. A time in the future, from another machine's clock, is ignored.
fn is_settled(marks: &[Mark], settle: Duration) -> bool {
    let written = marks.iter().flatten().map(|(modified, ..)| modified);
    written.map(SystemTime::elapsed).all(|age| age.is_err() || age.is_ok_and(|age| age >= settle))
}

/// The files beside the route file whose content matters.
pub(super) fn watched_files(config: &Config) -> Vec<PathBuf> {
    let management = config.management.as_ref().and_then(|settings| settings.tls.as_ref());
    let pairs = config.listener.tls.iter().chain(management).chain(
        config.upstreams.iter().filter_map(|upstream| upstream.origin.tls.as_ref()?.identity.as_ref()),
    );
    let roots = config.upstreams.iter().filter_map(|upstream| upstream.origin.tls.as_ref()?.roots.clone());
    pairs.flat_map(|pair| [pair.certificate.clone(), pair.key.clone()]).chain(roots).collect()
}

fn read_marks(files: &[PathBuf]) -> Vec<Mark> {
    files.iter().map(|path| read_mark(path)).collect()
}

/// Follows symlinks, so that a swapped one shows.
fn read_mark(path: &Path) -> Mark {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}
