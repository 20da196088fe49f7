//! The process: binds the listeners, starts and ends every task, drains on shutdown.

mod certificates;
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
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::certificates::ListenerCertificate;
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
use crate::metrics::{Metrics, RouteTableSeries};
use crate::peer::Peer;
use crate::rate_limit::RateLimits;
use crate::rejection::{ErrorFormat, Rejection};
use crate::route::Auth;
use crate::scalekit::{Explained, Scalekit, SetupError};
use crate::secret::SecretError;
use crate::shared::SharedServer;
use crate::systemd::ServiceManager;
use crate::tls::TlsError;
use crate::traces::{self, Traces};
use crate::upstream::Upstream;
use crate::usage::{self, Usage};
use crate::validator::Validator;
use crate::{identity, logging, scalekit, shared};

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
    /// The certificates for the collector of traces.
    #[error("traces: {0}")]
    Traces(#[from] traces::TracesError),
    /// The salt of `[shared]` cannot be read.
    #[error("shared.salt_file: {0}")]
    Salt(SecretError),
    /// `usage.file`.
    #[error(transparent)]
    Usage(#[from] usage::FileError),
    /// Keys are remembered by keyed digests, which need random numbers.
    #[error("the operating system provides no random numbers")]
    Randomness,
}

/// Keyward with its ports bound, not yet serving.
pub struct Server {
    /// `None` if all routes serve decisions alone.
    public: Option<Listener>,
    admin: Listener,
    decision: Option<(Listener, Arc<Decisions>)>,
    management: Option<(Listener, Arc<Management>)>,
    /// Operations of key management, which are completed even if their client has closed.
    changes: TaskTracker,
    shared: Arc<Shared>,
    restart_only: RestartOnly,
    /// Files beside the route file that are watched.
    files: WatchedFiles,
    /// The URL of the collector, for the log.
    traces_endpoint: Option<String>,
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
    listeners: ListenerSettings,
}

/// The settings of the listeners, which a reload changes.
struct ListenerSettings {
    public: Option<watch::Sender<listener::Settings>>,
    admin: watch::Sender<listener::Settings>,
    decision: Option<watch::Sender<listener::Settings>>,
}

impl ListenerSettings {
    fn replace(&self, mut public: listener::Settings, admin: Listen, decision: Option<&decision::Settings>) {
        self.admin.send_replace(public.internal(admin));
        if let Some((listener, decision)) = self.decision.as_ref().zip(decision) {
            listener.send_replace(take_decision_share(&mut public, decision, self.public.is_some()));
        }
        if let Some(listener) = &self.public {
            listener.send_replace(public);
        }
    }
}

/// Resources that are kept over reloads.
struct SharedResources {
    metrics: Arc<Metrics>,
    traces: Option<Arc<Traces>>,
    usage: Option<Arc<Usage>>,
    tunnels: TaskTracker,
    closing: CancellationToken,
    /// Pooled connections and flights, which end with the process.
    background: TaskTracker,
    /// The server of `[shared]`.
    shared_server: Option<Arc<SharedServer>>,
}

/// Settings that cannot change without a restart.
struct RestartOnly {
    listener: listener::Settings,
    proxy_listens: bool,
    admin: Listen,
    decision: Option<decision::Settings>,
    management: Option<management::Settings>,
    scalekit: scalekit::Settings,
    shared: Option<shared::Settings>,
    usage: Option<usage::Settings>,
    log: logging::Format,
}

impl RestartOnly {
    fn from_config(config: &Config) -> Self {
        Self {
            listener: config.listener.clone(),
            proxy_listens: config.proxy_listens,
            admin: config.admin.clone(),
            decision: config.decision.clone(),
            management: config.management.clone(),
            scalekit: config.scalekit.clone(),
            shared: config.shared.clone(),
            usage: config.usage.clone(),
            log: config.log.format,
        }
    }

    /// The names of those that differ in the new configuration.
    fn changed_settings(&self, config: &Config) -> Vec<&'static str> {
        [
            (self.listener.listen == config.listener.listen, "server.listen"),
            (self.listener.tls == config.listener.tls, "server.tls"),
            // Where the proxy listens without a route that needs it, it answers 404.
            (
                self.proxy_listens || !config.proxy_listens,
                "whether the proxy listens (no route had an upstream, and server.listen was not set)",
            ),
            (self.admin == config.admin, "admin.listen"),
            (self.decision == config.decision, "[decision]"),
            (self.management == config.management, "[management]"),
            (self.scalekit == config.scalekit, "where and who Scalekit is, and scalekit.timeout"),
            (self.shared == config.shared, "[shared]"),
            (self.usage == config.usage, "[usage]"),
            (self.log == config.log.format, "log.format"),
        ]
        .into_iter()
        .filter_map(|(same, what)| (!same).then_some(what))
        .collect()
    }
}

/// The part of connections and memory that the decision listener takes from the proxy.
const DECISION_SHARE: usize = 4;
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
        let mut public = config.listener.clone();
        let decision = restart_only.decision.as_ref();
        let decision = decision.map(|decision| {
            let listener = take_decision_share(&mut public, decision, config.proxy_listens);
            Listener::bind(listener, Arc::default())
        });
        let decision = decision.transpose()?;
        let public =
            config.proxy_listens.then(|| Listener::bind(public, Arc::clone(&metrics))).transpose()?;
        // Its own metrics, as those that are shown count connections to the public listener.
        let admin = Listener::bind(admin, Arc::default())?;
        let scalekit = Scalekit::new(&config.scalekit, Arc::clone(&metrics), background.clone())?;
        let usage = config.usage.as_ref().map(|settings| Usage::open(settings, Arc::clone(&metrics)));
        let usage = usage.transpose()?.map(Arc::new);
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
            let management = Management::new(settings, client, usage.clone(), metrics, changes.clone());
            Ok::<_, StartError>((listener, Arc::new(management)))
        });
        let management = management.transpose()?;
        let environment = config.scalekit.environment.to_string();
        let shared_server = restart_only
            .shared
            .clone()
            .map(|settings| SharedServer::new(settings, &environment, Arc::clone(&metrics)))
            .transpose()
            .map_err(StartError::Salt)?;
        let validator = Validator::new(
            config.validator.clone(),
            Arc::clone(&scalekit),
            Arc::clone(&metrics),
            background.clone(),
            shared_server.clone(),
        )
        .map_err(|_| StartError::Randomness)?;
        let traces = config.traces.as_ref().map(|settings| {
            let (trust, scalekit) = (config.trust_parent, config.scalekit.origin.address.clone());
            Traces::start(settings, trust, scalekit, Arc::clone(&metrics), background.clone())
        });
        let endpoint = config.traces.as_ref().map(|settings| settings.endpoint.clone());
        let resources = SharedResources {
            metrics,
            traces: traces.transpose()?,
            usage,
            tunnels: TaskTracker::new(),
            closing: phases.closing.clone(),
            background,
            shared_server,
        };
        let drain = Mutex::new(drain::Times::from_config(&config));
        let listeners = ListenerSettings {
            public: public.as_ref().map(Listener::settings),
            admin: admin.settings(),
            decision: decision.as_ref().map(Listener::settings),
        };
        let gateway = resources.build_gateway(config, validator, None)?;
        resources.metrics.reload_successful.set(1);
        resources.metrics.reload_time.set(unix_time());
        let current = Arc::new(Current::new(gateway));
        let decision = decision
            .zip(restart_only.decision.as_ref())
            .map(|(listener, settings)| (listener, Arc::new(Decisions::new(settings, Arc::clone(&current)))));
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
            traces_endpoint: endpoint,
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

    /// The address of the public listener, with the port that the system chose for port 0; `None` if all routes serve decisions
    /// alone.
    pub fn address(&self) -> Option<Listen> {
        self.public.as_ref().map(Listener::address)
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
        let (address, decision_address) = (self.address(), self.decision_address());
        let management_address = self.management_address();
        let Self { shared, phases, restart_only, changes, service_manager, .. } = self;
        // A unix socket has a path and no port.
        let (host, port) = match address {
            Some(Listen::Tcp(address)) => (Some(address.ip().to_string()), Some(address.port())),
            other => (other.map(|path| path.to_string()), None),
        };
        tracing::info!(
            server.address = host,
            server.port = port,
            admin.address = %self.admin.address(),
            decision.address = decision_address.map(tracing::field::display),
            management.address = management_address.map(tracing::field::display),
            routes = shared.current.gateway().routes.routes().len(),
            "listening"
        );
        if let Some(endpoint) = &self.traces_endpoint {
            tracing::info!("traces are exported to {endpoint}");
        }
        // The kernel accepts connections already.
        service_manager.notify_ready("listening").await;
        let certificates = ListenerCertificate::list([
            ("server", self.public.as_ref()),
            ("decision", self.decision.as_ref().map(|(listener, _)| listener)),
            ("management", self.management.as_ref().map(|(listener, _)| listener)),
        ]);
        certificates.iter().for_each(|own| own.record_expiry(&shared.resources.metrics));
        let background = &shared.resources.background;
        // Until the end of the drain, as long as there are requests to count.
        let _shared_server = shared.resources.shared_server.clone().map(|server| {
            AbortOnDropHandle::new(background.spawn(async move { server.keep_connected().await }))
        });
        // The task that renews the access token goes on during the drain, as requests still need verdicts.
        let mut until_stop = vec![background.spawn(become_ready(self.scalekit, Arc::clone(&self.readiness)))];
        if service_manager.is_present() {
            until_stop.push(
                background.spawn(report_readiness(Arc::clone(&self.readiness), service_manager.clone())),
            );
        }
        if let Some(source) = self.reload {
            let (shared, files) = (Arc::clone(&shared), self.files);
            let service_manager = service_manager.clone();
            let watcher = Watcher { source, shared, restart_only, certificates, files, service_manager };
            until_stop.push(background.spawn(watcher.run()));
        }

        let usage = shared.resources.usage.clone();
        // Also during the drain, in which requests are counted.
        let saving = usage.clone().map(|usage| background.spawn(usage.save_periodically()));

        let (connections, admin_tasks) = (TaskTracker::new(), TaskTracker::new());
        if let Some(listener) = self.public {
            let current = Arc::clone(&shared.current);
            connections.spawn(listener.serve(current, phases.clone(), connections.clone()));
        }
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
            usage: usage.clone(),
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
        saving.iter().for_each(JoinHandle::abort);
        if let Some(usage) = usage {
            usage.save_at_end().await;
        }
        if !is_stopping {
            service_manager.notify_status("drained").await;
            stop.cancelled().await;
            service_manager.notify_stopping("stopping").await;
        }
        if let Some(traces) = &shared.resources.traces {
            tokio::select! {
                lost = traces.shutdown() => if lost > 0 {
                    tracing::warn!("{lost} spans of traces were not exported before the end");
                },
                () = kill.cancelled() => {}
            }
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
        let routes = config.routes.routes();
        let shadow_routes = routes.iter().filter(|route| matches!(route.auth, Auth::Shadow(_))).count();
        self.metrics.shadow_routes.set(shadow_routes as i64);
        let labels = config.routes.routes().iter().map(|route| Arc::clone(&route.label));
        Ok(Gateway {
            series: RouteTableSeries::new(labels),
            settings: config.gateway,
            credential: config.credential,
            identity: Arc::new(identity::IdentityHeaders::new(config.identity)),
            trusted: config.trusted,
            routes: config.routes,
            upstreams,
            validator,
            expiry: Arc::new(ExpiryWarnings::new(config.expiry, before.map(|before| &*before.expiry))),
            rate_limits: RateLimits::new(
                config.rate_limits,
                before.map(|before| &before.rate_limits),
                self.shared_server.as_ref(),
            ),
            usage: self.usage.clone(),
            metrics: Arc::clone(&self.metrics),
            traces: self.traces.as_ref().map(|traces| traces.with_trust(config.trust_parent)),
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

/// The settings of the decision listener, with a part of the proxy's connections and memory, or all of them if the proxy does not
/// listen.
fn take_decision_share(
    public: &mut listener::Settings,
    settings: &decision::Settings,
    proxy_listens: bool,
) -> listener::Settings {
    let part = if proxy_listens { DECISION_SHARE } else { 1 };
    let (max_connections, memory) = (public.max_connections / part, public.memory / part);
    public.max_connections -= max_connections;
    public.memory -= memory;
    listener::Settings {
        tls: settings.tls.clone(),
        max_connections: max_connections.max(INTERNAL_CONNECTIONS),
        memory,
        idle_timeout: decision::IDLE_TIMEOUT,
        max_connection_age: public.max_connection_age,
        ..public.internal(settings.listen.clone())
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
                    tracing::error!(error.type = kind, suppressed, "not ready: {reason}");
                }
                readiness.set(Err(reason));
            }
        }
        sleep(PROBE_EVERY).await;
    }
    readiness.set(Ok(()));
    tracing::info!("ready");
}
