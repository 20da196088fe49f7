//! The process: binds the listeners, starts and ends every task, drains on shutdown.

mod drain;
pub mod reload;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::scalekit::error::Class;
use hyper::{Request, Response};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::drain::Draining;
use self::reload::{WatchedFiles, Watcher};
use crate::admin::drain::Drain;
use crate::admin::{Admin, Readiness};
use crate::body::Body;
use crate::budget::Account;
use crate::config::Config;
use crate::decision::{self, Decisions};
use crate::expiry::ExpiryWarnings;
use crate::gateway::{Current, Gateway};
use crate::listener::{self, Handler, INTERNAL_CONNECTIONS, Listen, ListenError, Listener, Phases};
use crate::logging::line_limit::LineLimit;
use crate::management::{self, Management};
use crate::metrics::Metrics;
use crate::peer::Peer;
use crate::rate_limit::RateLimits;
use crate::rejection::{ErrorFormat, Rejection};
use crate::scalekit::{Explained, Scalekit, SetupError};
use crate::systemd::ServiceManager;
use crate::tls::TlsError;
use crate::upstream::Upstream;
use crate::validator::Validator;
use crate::{identity, logging, scalekit};

/// Why Keyward does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address or the certificate of a listener cannot be used.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// `[scalekit]`, or a certificate that it names, cannot be used.
    #[error("scalekit: {0}")]
    Scalekit(#[from] SetupError),
    /// The certificate, key or roots of an upstream.
    #[error("{what}: {error}")]
    Tls {
        /// The upstream's TOML key.
        what: String,
        /// Why it cannot be used.
        error: TlsError,
    },
    /// Keys are remembered by keyed digests, which need random numbers.
    #[error("the operating system provides no random numbers")]
    Randomness,
}

/// Keyward with its ports bound, not yet serving.
pub struct Server {
    public: Listener,
    admin: Listener,
    decision: Option<(Listener, Arc<Decisions>)>,
    management: Option<(Listener, Arc<Management>)>,
    /// Operations of key management, which are completed even if their client has closed.
    changes: TaskTracker,
    shared: Arc<Shared>,
    restart_only: RestartOnly,
    /// Files beside the route file that are watched.
    files: WatchedFiles,
    reload: Option<reload::Source>,
    service_manager: ServiceManager,
    scalekit: Arc<Scalekit>,
    readiness: Arc<Readiness>,
    phases: Phases,
}

/// The gateway in force, and what is kept when a reload replaces it.
struct Shared {
    current: Arc<Current>,
    resources: SharedResources,
    drain: Mutex<drain::Times>,
    /// Those of the public listener and of the admin port.
    listeners: [watch::Sender<listener::Settings>; 2],
}

/// Resources that are kept over reloads.
struct SharedResources {
    metrics: Arc<Metrics>,
    tunnels: TaskTracker,
    closing: CancellationToken,
    /// Pooled connections and flights, which end with the process.
    background: TaskTracker,
}

/// Settings that cannot change without a restart.
struct RestartOnly {
    listener: listener::Settings,
    admin: Listen,
    decision: Option<decision::Settings>,
    management: Option<management::Settings>,
    scalekit: scalekit::Settings,
    log: logging::Format,
}

impl RestartOnly {
    fn from_config(config: &Config) -> Self {
        Self {
            listener: config.listener.clone(),
            admin: config.admin.clone(),
            decision: config.decision.clone(),
            management: config.management.clone(),
            scalekit: config.scalekit.clone(),
            log: config.log.format,
        }
    }

    /// The names of those that differ in the new configuration.
    fn changed_settings(&self, config: &Config) -> Vec<&'static str> {
        [
            (self.listener.listen == config.listener.listen, "server.listen"),
            (self.listener.tls == config.listener.tls, "server.tls"),
            (self.admin == config.admin, "admin.listen"),
            (self.decision == config.decision, "[decision]"),
            (self.management == config.management, "[management]"),
            (self.scalekit == config.scalekit, "where and who Scalekit is, and scalekit.timeout"),
            (self.log == config.log.format, "log.format"),
        ]
        .into_iter()
        .filter_map(|(same, what)| (!same).then_some(what))
        .collect()
    }
}

/// The decision listener has as many connections, and as much memory, as the proxy divided by this: a quarter of the sum, of which
/// `Config::fit` leaves the proxy the rest.
const DECISION_SHARE: usize = 3;
/// Interval of probes while not ready.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// Between two lines about one reason for not being ready.
const NOT_READY_INTERVAL: Duration = Duration::from_secs(60);

impl Server {
    /// Binds the ports and prepares everything else. Nothing is sent or accepted before `run`. Must be called within a runtime.
    ///
    /// # Errors
    /// When an address cannot be bound or a certificate cannot be used.
    pub fn bind(config: Config, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let (background, phases) = (TaskTracker::new(), Phases::default());
        let (restart_only, files) = (RestartOnly::from_config(&config), WatchedFiles::of_config(&config));
        let admin = restart_only.listener.internal(restart_only.admin.clone());
        let public = Listener::bind(config.listener.clone(), Arc::clone(&metrics))?;
        // Its own metrics, as those that are shown count connections to the public listener.
        let admin = Listener::bind(admin, Arc::default())?;
        let scalekit = Scalekit::new(&config.scalekit, Arc::clone(&metrics), background.clone())?;
        let changes = TaskTracker::new();
        let management = restart_only.management.as_ref().map(|settings| {
            let listener = listener::Settings {
                tls: settings.tls.clone(),
                max_connections: management::CONNECTIONS,
                memory: management::MEMORY,
                socket_mode: Some(settings.socket_mode),
                ..restart_only.listener.internal(settings.listen.clone())
            };
            let listener = Listener::bind(listener, Arc::default())?;
            let (client, metrics) = (scalekit.client.clone(), Arc::clone(&metrics));
            let management = Management::new(settings, client, metrics, changes.clone());
            Ok::<_, StartError>((listener, Arc::new(management)))
        });
        let management = management.transpose()?;
        let validator = Validator::new(
            config.validator.clone(),
            Arc::clone(&scalekit),
            Arc::clone(&metrics),
            background.clone(),
        )
        .map_err(|_| StartError::Randomness)?;
        let resources = SharedResources {
            metrics,
            tunnels: TaskTracker::new(),
            closing: phases.closing.clone(),
            background,
        };
        let (drain, listeners) =
            (Mutex::new(drain::Times::from_config(&config)), [public.settings(), admin.settings()]);
        let gateway = resources.build_gateway(config, validator, None)?;
        resources.metrics.reload_successful.set(1);
        resources.metrics.reload_time.set(unix_time());
        let current = Arc::new(Current::new(gateway));
        let decision = restart_only.decision.as_ref().map(|settings| {
            let listener = listener::Settings {
                tls: settings.tls.clone(),
                max_connections: (restart_only.listener.max_connections / DECISION_SHARE)
                    .max(INTERNAL_CONNECTIONS),
                memory: restart_only.listener.memory / DECISION_SHARE,
                idle_timeout: decision::IDLE_TIMEOUT,
                max_connection_age: restart_only.listener.max_connection_age,
                ..restart_only.listener.internal(settings.listen.clone())
            };
            let listener = Listener::bind(listener, Arc::default())?;
            Ok::<_, StartError>((listener, Arc::new(Decisions::new(settings, Arc::clone(&current)))))
        });
        let decision = decision.transpose()?;
        let shared = Arc::new(Shared { current, resources, drain, listeners });
        Ok(Self {
            public,
            admin,
            decision,
            management,
            changes,
            shared,
            restart_only,
            files,
            reload: None,
            service_manager: ServiceManager::default(),
            scalekit,
            readiness: Arc::default(),
            phases,
        })
    }

    /// Reloads the configuration from there when it changes.
    pub fn reload_from(&mut self, source: reload::Source) {
        self.reload = Some(source);
    }

    /// Tells this service manager the state of the service.
    pub fn report_to(&mut self, service_manager: ServiceManager) {
        self.service_manager = service_manager;
    }

    /// The address of the public listener, with the port that the system chose for port 0.
    pub fn address(&self) -> Listen {
        self.public.address()
    }

    /// The address of the admin port.
    pub fn admin_address(&self) -> Listen {
        self.admin.address()
    }

    /// The address of the decision listener, if it is turned on.
    pub fn decision_address(&self) -> Option<Listen> {
        self.decision.as_ref().map(|(listener, _)| listener.address())
    }

    /// The address of key management, if it is turned on.
    pub fn management_address(&self) -> Option<Listen> {
        self.management.as_ref().map(|(listener, _)| listener.address())
    }

    /// For callers that wait until Keyward is ready.
    pub fn readiness(&self) -> Arc<Readiness> {
        Arc::clone(&self.readiness)
    }

    /// Serves until `stop`, or until a drain is requested on the admin port. Then it drains: is not ready at once, accepts for
    /// `drain_delay`, and leaves `drain_timeout` to open connections. `kill` ends the drain at once. Returns when the drain has ended
    /// and `stop` was cancelled.
    pub async fn run(self, stop: CancellationToken, kill: CancellationToken) {
        let (decision_address, management_address) = (self.decision_address(), self.management_address());
        let Self { shared, phases, restart_only, changes, service_manager, .. } = self;
        tracing::info!(
            server.address = %self.public.address(),
            admin.address = %self.admin.address(),
            decision.address = decision_address.map(tracing::field::display),
            management.address = management_address.map(tracing::field::display),
            routes = shared.current.gateway().routes.routes().len(),
            "listening"
        );
        // The kernel accepts connections already.
        service_manager.notify_ready("listening").await;
        let background = &shared.resources.background;
        // The task that renews the access token goes on during the drain, as requests still need verdicts.
        let mut until_stop = vec![background.spawn(become_ready(self.scalekit, Arc::clone(&self.readiness)))];
        if service_manager.is_present() {
            until_stop.push(
                background.spawn(report_readiness(Arc::clone(&self.readiness), service_manager.clone())),
            );
        }
        if let Some(source) = self.reload {
            let management = self.management.as_ref().and_then(|(listener, _)| listener.certificate());
            let decision = self.decision.as_ref().and_then(|(listener, _)| listener.certificate());
            let certificates =
                self.public.certificate().into_iter().chain(decision).chain(management).collect();
            let (shared, files) = (Arc::clone(&shared), self.files);
            let service_manager = service_manager.clone();
            let watcher = Watcher { source, shared, restart_only, certificates, files, service_manager };
            until_stop.push(background.spawn(watcher.run()));
        }

        let (connections, admin_tasks) = (TaskTracker::new(), TaskTracker::new());
        connections.spawn(self.public.serve(
            Arc::clone(&shared.current),
            phases.clone(),
            connections.clone(),
        ));
        if let Some((listener, decisions)) = self.decision {
            connections.spawn(listener.serve(decisions, phases.clone(), connections.clone()));
        }
        if let Some((listener, management)) = self.management {
            connections.spawn(listener.serve(management, phases.clone(), connections.clone()));
        }
        let drain = Arc::<Drain>::default();
        let admin = Admin {
            readiness: Arc::clone(&self.readiness),
            metrics: Arc::clone(&shared.resources.metrics),
            current: Arc::clone(&shared.current),
            drain: Arc::clone(&drain),
            address: self.admin.address(),
        };
        let admin_phases = Phases::default();
        admin_tasks.spawn(self.admin.serve(Arc::new(admin), admin_phases.clone(), admin_tasks.clone()));

        let cause = tokio::select! {
            () = stop.cancelled() => "signal",
            () = drain.requested() => "admin_port",
        };
        until_stop.iter().for_each(JoinHandle::abort);
        let times = *shared.drain.lock().unwrap_or_else(PoisonError::into_inner);
        let draining = Draining {
            phases,
            connections,
            tunnels: shared.resources.tunnels.clone(),
            changes,
            readiness: self.readiness,
            shown: drain,
            metrics: Arc::clone(&shared.resources.metrics),
        };
        // Not yet stopping if the admin port requested it: systemd would end the service by force some time after that.
        let is_stopping = stop.is_cancelled();
        let report = async {
            match is_stopping {
                true => service_manager.notify_stopping("draining").await,
                false => service_manager.notify_status("draining").await,
            }
        };
        tokio::join!(draining.run(times, cause, &kill), report);
        if !is_stopping {
            service_manager.notify_status("drained").await;
            stop.cancelled().await;
            service_manager.notify_stopping("stopping").await;
        }
        admin_phases.stopping.cancel();
        admin_phases.closing.cancel();
        tracing::info!("stopped");
    }
}

impl SharedResources {
    /// Builds a gateway for this configuration, with unchanged upstreams of the one before.
    fn build_gateway(
        &self,
        config: Config,
        validator: Arc<Validator>,
        before: Option<&Gateway>,
    ) -> Result<Gateway, StartError> {
        let mut upstreams = HashMap::new();
        for settings in &config.upstreams {
            // An upstream with certificate files is rebuilt, as their content may have changed.
            let kept = before
                .and_then(|before| before.upstreams.get(&settings.name))
                .filter(|upstream| upstream.settings == *settings && !settings.origin.reads_files());
            let upstream = match kept {
                Some(upstream) => Arc::clone(upstream),
                None => {
                    let what = || format!("upstreams.{}", settings.name);
                    let upstream = Upstream::new(settings, self.background.clone());
                    Arc::new(upstream.map_err(|error| StartError::Tls { what: what(), error })?)
                }
            };
            upstreams.insert(Arc::clone(&settings.name), upstream);
        }
        Ok(Gateway {
            settings: config.gateway,
            credential: config.credential,
            identity: Arc::new(identity::IdentityHeaders::new(config.identity)),
            trusted: config.trusted,
            routes: config.routes,
            upstreams,
            validator,
            expiry: Arc::new(ExpiryWarnings::new(config.expiry, before.map(|before| &*before.expiry))),
            rate_limits: RateLimits::new(config.rate_limits, before.map(|before| &before.rate_limits)),
            metrics: Arc::clone(&self.metrics),
            tunnels: self.tunnels.clone(),
            closing: self.closing.clone(),
        })
    }
}

impl Handler for Current {
    async fn handle(
        self: Arc<Self>,
        request: Request<Body>,
        peer: Peer,
        account: &Arc<Account>,
    ) -> Response<Body> {
        let gateway = self.gateway();
        gateway.handle(request, peer, account).await
    }

    fn refuse(&self, request: Request<Body>, peer: Peer, rejection: Rejection) -> Response<Body> {
        let format = ErrorFormat::from_request(&request);
        self.gateway().refuse(&request, peer, &rejection, &format)
    }
}

/// Shows in `systemctl status` whether Keyward is ready, and why not.
async fn report_readiness(readiness: Arc<Readiness>, service_manager: ServiceManager) {
    let mut changes = readiness.subscribe();
    loop {
        let state = changes.borrow_and_update().clone();
        let status = state.map_or_else(|reason| format!("not ready: {reason}"), |()| "ready".to_owned());
        service_manager.notify_status(&status).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Probes Scalekit until it can be used. A later outage does not make a replica unready, as it would all replicas at once.
async fn become_ready(scalekit: Arc<Scalekit>, readiness: Arc<Readiness>) {
    let lines = LineLimit::new(NOT_READY_INTERVAL);
    readiness.set(Err("waiting for the first answer from Scalekit".to_owned()));
    loop {
        match scalekit.probe().await {
            Ok(()) => break,
            // Credentials and address are right, as there is an access token: an outage will pass.
            Err(error)
                if scalekit.client.access_token().is_available()
                    && matches!(error.class(), Class::Outage | Class::Throttled(_)) =>
            {
                tracing::warn!("ready, although the first validation failed: {}", Explained(&error));
                break;
            }
            Err(error) => {
                let (kind, reason) = (error.kind(), Explained(&error).to_string());
                if let Some(suppressed) = lines.admit_kind(kind, Instant::now()) {
                    tracing::error!(error.kind = kind, suppressed, "not ready: {reason}");
                }
                readiness.set(Err(reason));
            }
        }
        sleep(PROBE_EVERY).await;
    }
    readiness.set(Ok(()));
    tracing::info!("ready");
}
