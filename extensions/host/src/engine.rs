//! The one WebAssembly engine of a process, set up for calls of microseconds.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails};

use crate::aot::AotCache;
use crate::bindings::Suite;
use crate::host::Host;
use crate::settings::{Cache, EngineSettings, Profile};
use crate::ticker::{InFlight, Ticker};
use crate::worker::WorkerPort;

/// Stack that a guest may use, of the calling thread's, which must have 2 MiB.
const MAX_STACK: usize = 256 << 10;

/// What all policies of a process share; cheap to clone.
#[derive(Clone)]
pub struct PolicyEngine {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    linker: Linker<Host>,
    /// Stops when the engine goes.
    ticker: Ticker,
    worker: WorkerPort,
    cache: Option<AotCache>,
    started: Instant,
    pooled: bool,
    counts: bool,
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// WebAssembly cannot run here.
    #[error("WebAssembly cannot run on this machine: {0}")]
    Unsupported(String),
    /// The operating system gives no thread.
    #[error("no thread for policies")]
    Thread(#[source] std::io::Error),
}

impl PolicyEngine {
    /// Sets the engine up, and starts its two threads: one ticks, one builds.
    ///
    /// # Errors
    /// [`EngineError`]. A cache that cannot be used is only logged.
    pub fn new(settings: &EngineSettings) -> Result<PolicyEngine, EngineError> {
        let unsupported = |error: wasmtime::Error| EngineError::Unsupported(format!("{error:#}"));
        let (engine, pooled) = match Engine::new(&pooled_config(settings)) {
            Ok(engine) => (engine, true),
            Err(error) => {
                // Address space can be short: 39 bits on some boards, or a limit
                // that the operator set. Instances then cost more to make.
                tracing::info!(error = %error, "no pool for policies, memory is taken on demand");
                (Engine::new(&config(settings)).map_err(unsupported)?, false)
            }
        };
        let mut linker = Linker::new(&engine);
        Suite::add_to_linker::<_, HasSelf<Host>>(&mut linker, |host| host).map_err(unsupported)?;
        let ticker = Ticker::start(engine.weak()).map_err(EngineError::Thread)?;
        let worker = WorkerPort::start().map_err(EngineError::Thread)?;
        let cache = open_cache(&settings.cache);
        let started = Instant::now();
        let counts = settings.count_instructions;
        let inner = Inner { engine, linker, ticker, worker, cache, started, pooled, counts };
        Ok(PolicyEngine { inner: Arc::new(inner) })
    }

    /// Whether instances come from a pool, as they do unless address space is short.
    #[must_use]
    pub fn is_pooled(&self) -> bool {
        self.inner.pooled
    }

    /// Whether compiled code is kept on disk.
    #[must_use]
    pub fn is_cached(&self) -> bool {
        self.inner.cache.is_some()
    }

    /// Blocks until the jobs of the thread in the background are done: spares
    /// built, faulty versions rolled back. For tests and tools.
    pub fn settle(&self) {
        self.inner.worker.settle();
    }

    /// Microseconds since the engine was set up: the node's clock for policies.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.inner.started.elapsed().as_micros() as u64
    }

    /// Compiles, or takes what was compiled before.
    pub(crate) fn compile(&self, component: &[u8]) -> wasmtime::Result<Component> {
        let inner = &*self.inner;
        let component = match &inner.cache {
            Some(cache) => cache.load(&inner.engine, component)?,
            None => Component::new(&inner.engine, component)?,
        };
        component.initialize_copy_on_write_image()?;
        Ok(component)
    }

    pub(crate) fn wasm(&self) -> &Engine {
        &self.inner.engine
    }

    pub(crate) fn linker(&self) -> &Linker<Host> {
        &self.inner.linker
    }

    pub(crate) fn worker(&self) -> &WorkerPort {
        &self.inner.worker
    }

    /// Whether instructions are counted.
    pub(crate) fn counts(&self) -> bool {
        self.inner.counts
    }

    /// To be held during a call into a guest.
    pub(crate) fn in_flight(&self) -> InFlight<'_> {
        self.inner.ticker.begin()
    }
}

fn open_cache(wanted: &Cache) -> Option<AotCache> {
    let folder = match wanted {
        Cache::Off => return None,
        Cache::At(folder) => folder.clone(),
        Cache::User => {
            let folders = directories::ProjectDirs::from("", "", "quern");
            folders.map(|folders| folders.cache_dir().join("policies"))?
        }
    };
    match AotCache::open(&folder) {
        Ok(cache) => Some(cache),
        Err(error) => {
            tracing::warn!(folder = %folder.display(), error = %error, "compiled policies are not kept");
            None
        }
    }
}

/// What holds with and without a pool. Threads in guests and compiling on
/// several cores at once are not built in at all.
fn config(settings: &EngineSettings) -> Config {
    let mut config = Config::new();
    config
        // Without this, each call would allocate a task.
        .concurrency_support(false)
        .epoch_interruption(true)
        .consume_fuel(settings.count_instructions)
        .max_wasm_stack(MAX_STACK)
        .wasm_memory64(false)
        // The same plan on every machine.
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        .memory_init_cow(true)
        .wasm_backtrace_max_frames(NonZeroUsize::new(16))
        .wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config
}

/// Slots are sized for the larger profile: what is reserved is address space.
/// The smaller profile is kept by each store's own limits.
fn pooled_config(settings: &EngineSettings) -> Config {
    let max_instances = settings.max_instances;
    let caps = Profile::Scripted.caps();
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(max_instances)
        .total_core_instances(max_instances.saturating_mul(caps.core_instances as u32))
        .total_memories(max_instances)
        .total_tables(max_instances.saturating_mul(8))
        .max_core_instances_per_component(caps.core_instances as u32)
        .max_memories_per_component(caps.memories as u32)
        .max_tables_per_component(caps.tables as u32)
        .max_memories_per_module(1)
        .max_tables_per_module(2)
        .table_elements(caps.table_elements)
        .max_memory_size(caps.memory_bytes)
        .max_component_instance_size(4 << 20)
        .max_unused_warm_slots(8)
        .linear_memory_keep_resident(1 << 20)
        .table_keep_resident(64 << 10);
    let mut config = config(settings);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}
