//! The process: binds, starts, and ends everything. Owns every task.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::{Request, Response};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Admin, Readiness};
use crate::body::Body;
use crate::config::Config;
use crate::gateway::Gateway;
use crate::identity;
use crate::listener::{self, Handler, Listen, ListenError, Listener, Phases};
use crate::metrics::Metrics;
use crate::scalekit::{Fault, Scalekit};
use crate::tls::TlsError;
use crate::upstream::Upstream;
use crate::upstream::forwarded::Peer;
use crate::validator::Validator;

/// Why Keyward does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A certificate of an upstream or of Scalekit.
    #[error("{what}: {error}")]
    Tls {
        /// Whose.
        what: String,
        /// What is wrong.
        error: TlsError,
    },
    /// No randomness.
    #[error("the system gives no random numbers")]
    Randomness,
}

/// Keyward, bound and not yet serving.
pub struct Server {
    public: Listener,
    admin: Listener,
    gateway: Arc<Gateway>,
    scalekit: Arc<Scalekit>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    drain_delay: Duration,
    drain_timeout: Duration,
    phases: Phases,
    /// Pooled connections and flights: they end with the process.
    background: TaskTracker,
}

/// Between two probes while not ready.
const PROBE_EVERY: Duration = Duration::from_secs(2);

impl Server {
    /// Binds both listeners and prepares everything else. Nothing is sent and nothing accepted before `run`. Must be called
    /// within a runtime.
    ///
    /// # Errors
    /// When a port is taken or a certificate cannot be used.
    pub fn bind(config: Config, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let (background, phases) = (TaskTracker::new(), Phases::default());
        let tls = |what: String| move |error| StartError::Tls { what, error };
        let admin = listener::Settings { listen: config.admin, tls: None, ..config.listener };
        let public = Listener::bind(config.listener, Arc::clone(&metrics))?;
        // The admin port is counted apart from the public one's connections.
        let admin = Listener::bind(admin, Arc::default())?;
        let scalekit = Scalekit::new(&config.scalekit, Arc::clone(&metrics), background.clone())
            .map_err(tls("scalekit".to_owned()))?;
        let validator =
            Validator::new(config.validator, Arc::clone(&scalekit), Arc::clone(&metrics), background.clone())
                .map_err(|_| StartError::Randomness)?;
        let mut upstreams = HashMap::new();
        for settings in &config.upstreams {
            let upstream = Upstream::new(settings, background.clone())
                .map_err(tls(format!("upstreams.{}", settings.name)))?;
            upstreams.insert(Arc::clone(&settings.name), upstream);
        }
        let gateway = Arc::new(Gateway {
            settings: config.gateway,
            credential: config.credential,
            identity: Arc::new(identity::Headers::new(config.identity)),
            trusted: config.trusted,
            routes: config.routes,
            upstreams,
            validator,
            metrics: Arc::clone(&metrics),
            tunnels: TaskTracker::new(),
            closing: phases.closing.clone(),
        });
        metrics.reload_successful.set(1);
        metrics.reload_time.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        Ok(Self {
            public,
            admin,
            gateway,
            scalekit,
            metrics,
            readiness: Arc::default(),
            drain_delay: config.drain_delay,
            drain_timeout: config.drain_timeout,
            phases,
            background,
        })
    }

    /// Where the public listener is, with the port that was taken.
    pub fn address(&self) -> Listen {
        self.public.address()
    }

    /// Where the admin port is.
    pub fn admin_address(&self) -> Listen {
        self.admin.address()
    }

    /// Where readiness can be seen.
    pub fn readiness(&self) -> Arc<Readiness> {
        Arc::clone(&self.readiness)
    }

    /// Serves until `stop`, then drains: not ready at once, accepting for `drain_delay`, and `drain_timeout` for what is open.
    /// `kill` ends the drain at once.
    pub async fn run(self, stop: CancellationToken, kill: CancellationToken) {
        let Self { gateway, phases, .. } = self;
        tracing::info!(
            server.address = %self.public.address(),
            admin.address = %self.admin.address(),
            routes = gateway.routes.routes().len(),
            "listening"
        );
        let keeper = {
            let scalekit = Arc::clone(&self.scalekit);
            async move { scalekit.keep_access_token().await }
        };
        let prober = become_ready(Arc::clone(&self.scalekit), Arc::clone(&self.readiness));
        // Both go on through the drain: requests need verdicts to the last.
        let keeper = self.background.spawn(keeper);
        let prober = self.background.spawn(prober);

        let (connections, admin_tasks) = (TaskTracker::new(), TaskTracker::new());
        connections.spawn(self.public.serve(Arc::clone(&gateway), phases.clone(), connections.clone()));
        let admin = Admin {
            readiness: Arc::clone(&self.readiness),
            metrics: Arc::clone(&self.metrics),
            gateway: Arc::clone(&gateway),
        };
        let admin_phases = Phases::default();
        admin_tasks.spawn(self.admin.serve(Arc::new(admin), admin_phases.clone(), admin_tasks.clone()));

        stop.cancelled().await;
        prober.abort();
        self.readiness.set(Err("draining".to_owned()));
        tracing::info!(delay = ?self.drain_delay, timeout = ?self.drain_timeout, "draining");
        phases.draining.cancel();
        let drained = async {
            sleep(self.drain_delay).await;
            phases.stopping.cancel();
            connections.close();
            gateway.tunnels.close();
            let open = async {
                connections.wait().await;
                gateway.tunnels.wait().await;
            };
            timeout(self.drain_timeout, open).await.is_ok()
        };
        let whole = tokio::select! {
            whole = drained => whole,
            () = kill.cancelled() => false,
        };
        phases.stopping.cancel();
        phases.closing.cancel();
        if !whole {
            tracing::warn!(
                connections = connections.len(),
                tunnels = gateway.tunnels.len(),
                "closing what is still open"
            );
            connections.close();
            connections.wait().await;
        }
        admin_phases.stopping.cancel();
        admin_phases.closing.cancel();
        keeper.abort();
        tracing::info!("stopped");
    }
}

impl Handler for Gateway {
    async fn answer(self: Arc<Self>, request: Request<Body>, peer: Peer) -> Response<Body> {
        self.handle(request, peer).await
    }
}

/// Probes Scalekit until it can be used. A later outage does not take a replica out: its peers would go with it.
async fn become_ready(scalekit: Arc<Scalekit>, readiness: Arc<Readiness>) {
    let mut told: Option<Fault> = None;
    loop {
        readiness.set(Err(told.as_ref().map_or_else(|| "asking Scalekit".to_owned(), Fault::to_string)));
        let fault = match scalekit.probe().await {
            Ok(()) => None,
            // The own token is there, and the environment took it: the rest will pass.
            Err(fault)
                if scalekit.access_token.is_there() && (fault.is_outage() || fault.is_throttling()) =>
            {
                tracing::warn!("ready, though the first validation failed: {fault}");
                None
            }
            Err(fault) => Some(fault),
        };
        let Some(fault) = fault else { break };
        if told.as_ref() != Some(&fault) {
            tracing::error!(error.kind = fault.label(), "not ready: {fault}");
        }
        readiness.set(Err(fault.to_string()));
        told = Some(fault);
        sleep(PROBE_EVERY).await;
    }
    readiness.set(Ok(()));
    tracing::info!("ready");
}
