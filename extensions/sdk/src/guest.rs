//! The generated bindings, and the way between them and the SDK's own types.
//!
//! Generated code moves lists across the guest's border by pointer and length and
//! is `unsafe` for that; it stands nowhere else, and nothing here is written by
//! hand that would be. Each hook has bindings of its own, so that a policy exports
//! only the hooks it has: what a component exports is what a node will call.
//! Columns are moved, never copied.
#![allow(unsafe_code, reason = "generated code at the guest's border, see the module's text")]
#![allow(missing_docs, reason = "generated code; what it stands for is documented in `tables`")]

use crate::hooks::{
    AdmissionPolicy, AutoscalerPolicy, BatcherPolicy, FeedbackPolicy, Policy, SchedulerPolicy,
};
use crate::tables;

/// The one instance of a policy in a guest.
pub trait Instance: 'static {
    type Policy: Policy;
    const NAME: &'static str;
    const VERSION: &'static str;
    fn with<R>(call: impl FnOnce(&mut Option<Self::Policy>) -> R) -> R;
}

/// Calls a hook. `init` comes first on every instance, so the default is only for
/// a node that does not keep to that.
fn call<I: Instance, R>(hook: impl FnOnce(&mut I::Policy) -> R) -> R {
    I::with(|policy| hook(policy.get_or_insert_with(Default::default)))
}

pub mod base {
    wit_bindgen::generate!({
        path: "../wit",
        world: "quern:policy/base",
        runtime_path: "wit_bindgen::rt",
        pub_export_macro: true,
        default_bindings_module: "base",
    });
}

/// Bindings of one hook.
macro_rules! hook {
    ($hook:ident, $inline:literal) => {
        pub mod $hook {
            wit_bindgen::generate!({
                path: "../wit",
                inline: $inline,
                runtime_path: "wit_bindgen::rt",
                pub_export_macro: true,
                generate_all,
            });
        }
    };
}

hook!(scheduler, "package quern:sdk; world scheduler-hook { export quern:policy/scheduler@0.1.0; }");
hook!(batcher, "package quern:sdk; world batcher-hook { export quern:policy/batcher@0.1.0; }");
hook!(admission, "package quern:sdk; world admission-hook { export quern:policy/admission@0.1.0; }");
hook!(autoscaler, "package quern:sdk; world autoscaler-hook { export quern:policy/autoscaler@0.1.0; }");
hook!(feedback, "package quern:sdk; world feedback-hook { export quern:policy/feedback@0.1.0; }");

use base::exports::quern::policy::lifecycle;

impl<I: Instance> lifecycle::Guest for I {
    fn init(saved: Option<Vec<u8>>) -> Result<lifecycle::Info, String> {
        // A panic is a trap without words; this puts its words into the node's log.
        std::panic::set_hook(Box::new(|info| crate::host::log::error(format_args!("{info}"))));
        let mut fresh = I::Policy::default();
        fresh.init(saved.as_deref())?;
        I::with(|policy| *policy = Some(fresh));
        Ok(lifecycle::Info { name: I::NAME.into(), version: I::VERSION.into() })
    }

    fn save() -> Vec<u8> {
        call::<I, _>(|policy| policy.save())
    }
}

use scheduler::exports::quern::policy::scheduler as s;

impl<I: Instance<Policy: SchedulerPolicy>> s::Guest for I {
    fn plan_step(step: s::Step, waiting: s::Waiting, running: s::Running) -> Result<Option<s::Plan>, String> {
        let (step, waiting, running) = (step.into(), waiting.into(), running.into());
        let plan = call::<I, _>(|policy| policy.plan(&step, &waiting, &running))?;
        Ok(plan.map(Into::into))
    }
}

impl From<s::Step> for tables::Step {
    fn from(step: s::Step) -> tables::Step {
        tables::Step {
            seq: step.seq,
            now_us: step.now_us,
            token_budget: step.token_budget,
            max_running: step.max_running,
            kv_free: step.kv_free,
            kv_page: step.kv_page,
            last_step_us: step.last_step_us,
            fixed_us: step.fixed_us,
            row_us: step.row_us,
            output_us: step.output_us,
            target_step_us: step.target_step_us,
            row_tile: step.row_tile,
            mixes_adapters: step.mixes_adapters,
            last_adapter: step.last_adapter,
        }
    }
}

impl From<s::Waiting> for tables::Waiting {
    fn from(waiting: s::Waiting) -> tables::Waiting {
        tables::Waiting {
            id: waiting.id,
            age_us: waiting.age_us,
            prompt_left: waiting.prompt_left,
            cached: waiting.cached,
            pending: waiting.pending,
            kv_need: waiting.kv_need,
            max_new: waiting.max_new,
            slack_us: waiting.slack_us,
            priority: waiting.priority,
            tenant: waiting.tenant,
            adapter: waiting.adapter,
            adapter_tier: waiting.adapter_tier,
        }
    }
}

impl From<s::Running> for tables::Running {
    fn from(running: s::Running) -> tables::Running {
        tables::Running {
            id: running.id,
            prompt_left: running.prompt_left,
            generated: running.generated,
            max_new: running.max_new,
            kv: running.kv,
            slack_us: running.slack_us,
            priority: running.priority,
            tenant: running.tenant,
            adapter: running.adapter,
        }
    }
}

impl From<tables::Plan> for s::Plan {
    fn from(plan: tables::Plan) -> s::Plan {
        s::Plan {
            admit: plan.admit,
            admit_chunk: plan.admit_chunk,
            preempt: plan.preempt,
            running_chunk: plan.running_chunk,
            adapter: plan.adapter,
            hold_steps: plan.hold_steps,
        }
    }
}

/// The two hooks that see the node's load have a type of their own for it.
macro_rules! node_load {
    ($load:expr) => {{
        let load = $load;
        tables::NodeLoad {
            now_us: load.now_us,
            waiting: load.waiting,
            waiting_tokens: load.waiting_tokens,
            running: load.running,
            kv_free: load.kv_free,
            kv_total: load.kv_total,
            step_p50_us: load.step_p50_us,
            step_p99_us: load.step_p99_us,
            ttft_p95_ms: load.ttft_p95_ms,
            tpot_p95_us: load.tpot_p95_us,
            tokens_per_second: load.tokens_per_second,
            token_budget: load.token_budget,
            max_running: load.max_running,
            wait_window_us: load.wait_window_us,
        }
    }};
}

use batcher::exports::quern::policy::batcher as b;

impl<I: Instance<Policy: BatcherPolicy>> b::Guest for I {
    fn tune(load: b::NodeLoad) -> Result<Option<b::Limits>, String> {
        let load = node_load!(load);
        let limits = call::<I, _>(|policy| policy.tune(&load))?;
        Ok(limits.map(|limits| b::Limits {
            token_budget: limits.token_budget,
            max_running: limits.max_running,
            wait_window_us: limits.wait_window_us,
            target_step_us: limits.target_step_us,
            hold_ms: limits.hold_ms,
        }))
    }
}

use admission::exports::quern::policy::admission as a;

impl<I: Instance<Policy: AdmissionPolicy>> a::Guest for I {
    fn decide(request: a::Request, load: a::NodeLoad) -> Result<Option<a::Decision>, String> {
        let (request, load) = (request.into(), node_load!(load));
        let decision = call::<I, _>(|policy| policy.decide(&request, &load))?;
        Ok(decision.map(Into::into))
    }
}

impl From<a::Request> for tables::Request {
    fn from(request: a::Request) -> tables::Request {
        tables::Request {
            id: request.id,
            tenant: request.tenant,
            model: request.model,
            adapter: request.adapter,
            prompt_tokens: request.prompt_tokens,
            max_new: request.max_new,
            priority: request.priority,
            deadline_ms: request.deadline_ms,
            attributes: request.attributes,
        }
    }
}

impl From<tables::Decision> for a::Decision {
    fn from(decision: tables::Decision) -> a::Decision {
        match decision {
            tables::Decision::Accept(grant) => a::Decision::Accept(a::Grant {
                priority: grant.priority,
                max_new: grant.max_new,
                adapter: grant.adapter,
            }),
            tables::Decision::Reject(refusal) => a::Decision::Reject(a::Refusal {
                reason: match refusal.reason {
                    tables::Reason::Overloaded => a::Reason::Overloaded,
                    tables::Reason::Quota => a::Reason::Quota,
                    tables::Reason::Forbidden => a::Reason::Forbidden,
                    tables::Reason::Unservable => a::Reason::Unservable,
                },
                retry_after_ms: refusal.retry_after_ms,
                message: refusal.message,
            }),
        }
    }
}

use autoscaler::exports::quern::policy::autoscaler as w;

impl<I: Instance<Policy: AutoscalerPolicy>> w::Guest for I {
    fn evaluate(window: w::Window, replicas: w::Replicas) -> Result<Option<w::Target>, String> {
        let window = tables::Window {
            interval_ms: window.interval_ms,
            arrivals: window.arrivals,
            rejected: window.rejected,
            waiting: window.waiting,
            running: window.running,
            busy_permille: window.busy_permille,
            kv_used_permille: window.kv_used_permille,
            ttft_p95_ms: window.ttft_p95_ms,
            tpot_p95_us: window.tpot_p95_us,
            power_mw: window.power_mw,
        };
        let replicas = tables::Replicas {
            ready: replicas.ready,
            starting: replicas.starting,
            draining: replicas.draining,
            min: replicas.min,
            max: replicas.max,
            start_ms: replicas.start_ms,
        };
        let target = call::<I, _>(|policy| policy.evaluate(&window, &replicas))?;
        Ok(target.map(|target| w::Target {
            desired: target.desired,
            reason: target.reason,
            hold_ms: target.hold_ms,
        }))
    }
}

use feedback::exports::quern::policy::feedback as f;

impl<I: Instance<Policy: FeedbackPolicy>> f::Guest for I {
    fn observe(completed: f::Completed) {
        let outcome = |outcome| match outcome {
            f::Outcome::Finished => tables::Outcome::Finished,
            f::Outcome::Cancelled => tables::Outcome::Cancelled,
            f::Outcome::Failed => tables::Outcome::Failed,
            f::Outcome::Expired => tables::Outcome::Expired,
        };
        let completed = tables::Completed {
            id: completed.id,
            tenant: completed.tenant,
            outcome: completed.outcome.into_iter().map(outcome).collect(),
            prompt_tokens: completed.prompt_tokens,
            new_tokens: completed.new_tokens,
            queue_us: completed.queue_us,
            ttft_us: completed.ttft_us,
        };
        call::<I, _>(|policy| policy.observe(&completed));
    }
}

/// The node's side, under the names that `host` uses.
pub(crate) mod imports {
    use super::base::quern::policy::{clock, config, kv, log, metrics};
    use crate::host::kv::KvError;
    use crate::host::log::Level;
    use crate::host::metrics::Kind;

    fn level(level: Level) -> log::Level {
        match level {
            Level::Trace => log::Level::Trace,
            Level::Debug => log::Level::Debug,
            Level::Info => log::Level::Info,
            Level::Warn => log::Level::Warn,
            Level::Error => log::Level::Error,
        }
    }

    pub(crate) fn log_enabled(at: Level) -> bool {
        log::enabled(level(at))
    }

    pub(crate) fn log_write(at: Level, message: &str) {
        log::write(level(at), message);
    }

    pub(crate) fn metric_define(name: &str, kind: Kind) -> Result<u32, String> {
        let kind = match kind {
            Kind::Counter => metrics::Kind::Counter,
            Kind::Gauge => metrics::Kind::Gauge,
            Kind::Histogram => metrics::Kind::Histogram,
        };
        metrics::define(name, kind)
    }

    pub(crate) fn metric_update(id: u32, value: f64) {
        metrics::update(id, value);
    }

    pub(crate) fn config_get(key: &str) -> Option<String> {
        config::get(key)
    }

    pub(crate) fn now_us() -> u64 {
        clock::now_us()
    }

    pub(crate) fn kv_get(key: &str) -> Option<Vec<u8>> {
        kv::get(key)
    }

    pub(crate) fn kv_set(key: &str, value: &[u8]) -> Result<(), KvError> {
        kv::set(key, value).map_err(|error| match error {
            kv::KvError::TooLarge => KvError::TooLarge,
            kv::KvError::QuotaExceeded => KvError::QuotaExceeded,
        })
    }

    pub(crate) fn kv_delete(key: &str) {
        kv::delete(key);
    }
}
