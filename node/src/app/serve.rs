//! The running node: load, announce, serve, drain, end.
//!
//! The operators' endpoints answer from the first moment, so that a probe can
//! tell loading from dead; the public socket is bound, and connections wait in
//! the kernel until there is somebody to answer.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use quern_scheduler::AdapterFiles;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::calibration::keep_calibrated;
use super::classifiers::{Base, classifiers};
use super::load::{Adapters, LoadError, Loaded, load};
use super::{App, AppError};
use crate::adapters::{Found, Named, Order, Origin, Registry, keep_watching};
use crate::config::{self, Speculation};
use crate::http::{Node, RenderMetrics, ServeError, Settings, serve_admin, serve_public};
use crate::metrics::Served;
use crate::policies::keep_tuning;
use crate::serving::{Model, Recent, Temperature};
use crate::workers::{StartError, Workers, keep_scaling};

/// How often a draining node looks whether it is done.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long connections may take to close once all requests are answered.
const GOODBYE: Duration = Duration::from_secs(6);

/// How a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every request that was inside got its answer.
    Drained,
    /// The time for that was over, and some were cut off.
    CutOff,
}

/// A listener at work, and the way to end it.
struct Serving {
    task: JoinHandle<Result<(), ServeError>>,
    stop: CancellationToken,
}

impl App {
    /// Loads and serves until `stop` is ready, then drains. `ready` is called once,
    /// with the public address, when the first token can be served.
    ///
    /// # Errors
    /// [`AppError`] when loading or serving fails.
    pub async fn run(
        self,
        metrics: PrometheusHandle,
        ready: impl FnOnce(SocketAddr, &str),
        stop: impl Future<Output = ()>,
    ) -> Result<Ended, AppError> {
        tokio::pin!(stop);
        let (public_addr, admin_addr) = self.addresses()?;
        tracing::info!(public = %public_addr, admin = %admin_addr, "listening");
        // Before the model, which takes longer to load than this to fail.
        self.check_listener().await?;
        let admin = self.admin.try_clone()?;
        let settings = self.config.to_http();
        let waiting = serve_loading(admin.try_clone()?, &settings, &metrics)?;

        let cancelled = Arc::new(AtomicBool::new(false));
        let mut loading = {
            let cancelled = Arc::clone(&cancelled);
            tokio::task::spawn_blocking(move || load(&self, &cancelled).map(|loaded| (self, loaded)))
        };
        let loaded = tokio::select! {
            loaded = &mut loading => loaded,
            () = &mut stop => {
                cancelled.store(true, Ordering::Relaxed);
                // It ends soon; whether it was done just then makes no difference.
                let _ = loading.await;
                return Ok(Ended::Drained);
            }
        };
        let (app, loaded) = loaded.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()))?;

        let mut running = Running::start(app, loaded, admin, settings, metrics)?;
        waiting.end(GOODBYE).await?;
        running.adapters_found().await;
        ready(public_addr, &running.model_id);
        running.until(stop).await
    }
}

/// Answers operators while there is nothing to serve yet.
fn serve_loading(
    listener: TcpListener,
    settings: &Settings,
    metrics: &PrometheusHandle,
) -> Result<Serving, AppError> {
    let metrics = metrics.clone();
    let node = Node::new(Vec::new(), Box::new(move || crate::metrics::render(&metrics, None)));
    node.set_loading(true);
    Serving::admin(listener, node, settings.clone())
}

impl Serving {
    fn admin(listener: TcpListener, node: Arc<Node>, settings: Settings) -> Result<Serving, AppError> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve_admin(listener, node, settings, stop.clone().cancelled_owned()));
        Ok(Serving { task, stop })
    }

    fn public(listener: TcpListener, node: Arc<Node>, settings: Settings) -> Result<Serving, AppError> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve_public(listener, node, settings, stop.clone().cancelled_owned()));
        Ok(Serving { task, stop })
    }

    /// Ends it, by force when connections do not close in time.
    async fn end(mut self, grace: Duration) -> Result<(), AppError> {
        self.stop.cancel();
        match tokio::time::timeout(grace, &mut self.task).await {
            Ok(ended) => Ok(flat(ended)?),
            Err(_) => {
                self.task.abort();
                Ok(())
            }
        }
    }
}

/// A panic in a listener is ours; it goes on where it can be seen.
fn flat(ended: Result<Result<(), ServeError>, tokio::task::JoinError>) -> Result<(), ServeError> {
    ended.unwrap_or_else(|failed| match failed.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Ok(()),
    })
}

/// Serves the adapters that the configuration names.
fn add_configured(registry: &Registry, found: Vec<(Named, Found)>) -> Result<(), LoadError> {
    for (named, found) in found {
        let order = Order {
            name: named.name.clone(),
            path: named.path,
            in_place: false,
            expected_generation: None,
            pin: Some(named.pin),
            origin: Origin::Configuration,
        };
        let added = registry.add(&order, found);
        added.map_err(|source| LoadError::Adapter { name: named.name, source })?;
    }
    Ok(())
}

/// A node that serves.
struct Running {
    model_id: String,
    node: Arc<Node>,
    workers: Workers,
    tuning: JoinHandle<()>,
    scaling: JoinHandle<()>,
    watching: JoinHandle<()>,
    /// Ready when the folder of adapters was read for the first time.
    first_look: oneshot::Receiver<()>,
    public: Serving,
    admin: Serving,
    metrics: PrometheusHandle,
    drain_timeout: Duration,
}

impl Running {
    fn start(
        app: App,
        loaded: Loaded,
        admin: TcpListener,
        settings: Settings,
        metrics: PrometheusHandle,
    ) -> Result<Running, AppError> {
        let App { config, model, public, .. } = app;
        let caps = loaded.parts.engine.capabilities().clone();
        let head = loaded.head.clone().map(Arc::new);
        let base = Base {
            path: &model.path,
            head: head.as_ref(),
            text: &loaded.text,
            hidden_size: caps.hidden_size,
        };
        let temperature = Temperature::new(base.temperature().map_err(LoadError::from)?);
        let classifiers = classifiers(&config.classifier, &base).map_err(LoadError::from)?;
        let Loaded { parts, took, engines, policies, adapters, .. } = loaded;
        let files = AdapterFiles::default();
        let speculate = config.scheduler.speculation != Speculation::Off;
        let workers = Workers::start(
            config.workers.to_settings(),
            config.adapters.to_scheduler(config.scheduler.to_scheduler(), files.clone()),
            parts,
            took,
            Box::new(move |cancelled| engines.parts(cancelled).map_err(StartError::from)),
        )?;
        let Adapters { base, found } = adapters;
        let registry = Registry::new(base, config.adapters.to_settings(), files, workers.clone());
        add_configured(&registry, found)?;
        let recent = Arc::new(Recent::default());
        let served = Arc::new(Model {
            id: model.id.clone(),
            created: loaded.created,
            workers: workers.clone(),
            recent: Arc::clone(&recent),
            tokenizer: loaded.text.tokenizer,
            template: loaded.text.template,
            constraints: loaded.text.constraints,
            adapters: Some(registry.clone()),
            head,
            temperature,
            max_sequence_len: caps.max_sequence_len,
            embedding_size: caps.hidden_size,
            defaults: config.generation.to_defaults(speculate),
            classifiers,
        });
        let render = render(&metrics, &model.id, &workers, &registry);
        let node = Node::with_policies(vec![Arc::clone(&served)], Some(policies.clone()), render);
        let limits = workers.pace().limits;
        let tuning =
            keep_tuning(policies.clone(), workers.clone(), Arc::clone(&recent), limits, node.started());
        let (interval, history) = (config.autoscale.interval.0, config.autoscale.history);
        let scaling = keep_scaling(policies, workers.clone(), recent, interval, history);
        let (looked, first_look) = oneshot::channel();
        let calibrated = served.head.is_some().then(|| (model.path, served.temperature.clone()));
        let watching = keep_files(config.adapters.clone(), config.adapter, calibrated, registry, looked);
        Ok(Running {
            watching: tokio::spawn(watching),
            first_look,
            public: Serving::public(public, Arc::clone(&node), settings.clone())?,
            admin: Serving::admin(admin, Arc::clone(&node), settings)?,
            model_id: model.id,
            node,
            workers,
            tuning: tokio::spawn(tuning),
            scaling: tokio::spawn(scaling),
            metrics,
            drain_timeout: config.shutdown.drain_timeout.0,
        })
    }

    /// Waits until adapters that lay in the folder at the start are served.
    async fn adapters_found(&mut self) {
        // It only ends without a word when it panics, which is seen elsewhere.
        let _ = (&mut self.first_look).await;
    }

    /// Serves until `stop`, then lets requests finish and takes everything apart.
    async fn until(mut self, stop: impl Future<Output = ()>) -> Result<Ended, AppError> {
        let upkeep = tokio::spawn(tidy(self.metrics.clone()));
        let failed = tokio::select! {
            () = stop => None,
            // A listener ends by itself only when it could not start.
            ended = &mut self.public.task => flat(ended).err().map(AppError::Serve),
            ended = &mut self.admin.task => flat(ended).err().map(AppError::Serve),
        };
        upkeep.abort();
        self.tuning.abort();
        self.scaling.abort();
        self.watching.abort();
        if let Some(error) = failed {
            self.workers.stop();
            return Err(error);
        }
        let ended = self.drain().await?;
        tracing::info!(outcome = ?ended, "ended");
        Ok(ended)
    }

    /// Readiness off and new requests refused at once; the sockets stay open until
    /// the running ones are answered, so that refusals are answers too.
    async fn drain(self) -> Result<Ended, AppError> {
        let deadline = Instant::now() + self.drain_timeout;
        self.node.drain();
        let load = self.workers.load();
        tracing::info!(running = load.running, waiting = load.waiting, queued = load.queued, "draining");
        while !self.node.is_idle() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let ended = if self.node.is_idle() { Ended::Drained } else { Ended::CutOff };
        self.workers.stop();
        self.public.end(GOODBYE).await?;
        self.admin.end(GOODBYE).await?;
        let joined = tokio::task::spawn_blocking(move || self.workers.join()).await;
        if !matches!(joined, Ok(true)) {
            return Err(AppError::StepLoopEnded);
        }
        Ok(ended)
    }
}

/// Looks after files that may change while the node serves: adapters', and the
/// calibration beside a model with a head of its own. `first` is told of the first look.
async fn keep_files(
    adapters: config::Adapters,
    named: Vec<config::Adapter>,
    calibrated: Option<(PathBuf, Temperature)>,
    registry: Registry,
    first: oneshot::Sender<()>,
) {
    let interval = adapters.watch_interval.0;
    let period = (!interval.is_zero()).then_some(interval);
    let calibrated = async {
        if let Some((model, temperature)) = calibrated {
            keep_calibrated(model, temperature, period).await;
        }
    };
    tokio::join!(keep_watching(registry, adapters.watched(&named), period, first), calibrated);
}

fn render(
    metrics: &PrometheusHandle,
    model_id: &str,
    workers: &Workers,
    adapters: &Registry,
) -> RenderMetrics {
    let (metrics, model_id, workers) = (metrics.clone(), model_id.to_owned(), workers.clone());
    let (adapters, max_adapters) = (adapters.clone(), adapters.settings().max_resident);
    Box::new(move || {
        let load = workers.load();
        crate::metrics::set_load(&load);
        crate::metrics::set_workers(&workers.status());
        let in_work = adapters.in_work();
        crate::metrics::set_adapters(&adapters, &in_work);
        let served = Served { model_id: &model_id, load, adapters: &in_work, max_adapters };
        crate::metrics::render(&metrics, Some(served))
    })
}

async fn tidy(metrics: PrometheusHandle) {
    loop {
        tokio::time::sleep(crate::metrics::UPKEEP_INTERVAL).await;
        metrics.run_upkeep();
    }
}
