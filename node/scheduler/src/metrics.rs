//! The scheduler's own metrics, registered once so that recording is cheap. What
//! it holds at the moment is no part of them: that is [`crate::Handle::load`].

use metrics::{Counter, Histogram, counter, histogram};

pub(crate) struct SchedulerMetrics {
    pub(crate) queue_time: Histogram,
    pub(crate) step_duration: Histogram,
    pub(crate) step_rows: Histogram,
    pub(crate) plan_duration: Histogram,
    pub(crate) overhead: Histogram,
    pub(crate) prefix_query_tokens: Counter,
    pub(crate) prefix_hit_tokens: Counter,
    pub(crate) restored_tokens: Counter,
    pub(crate) preempted_recompute: Counter,
    pub(crate) preempted_host: Counter,
    pub(crate) drafted_tokens: Counter,
    pub(crate) accepted_tokens: Counter,
    pub(crate) plans_used: Counter,
    pub(crate) plans_none: Counter,
    pub(crate) plans_invalid: Counter,
    pub(crate) plans_held: Counter,
}

impl SchedulerMetrics {
    pub(crate) fn register() -> SchedulerMetrics {
        SchedulerMetrics {
            queue_time: histogram!("quern_queue_time_seconds"),
            step_duration: histogram!("quern_step_duration_seconds"),
            step_rows: histogram!("quern_step_rows"),
            plan_duration: histogram!("quern_plan_duration_seconds"),
            overhead: histogram!("quern_step_overhead_seconds"),
            prefix_query_tokens: counter!("quern_prefix_cache_query_tokens_total"),
            prefix_hit_tokens: counter!("quern_prefix_cache_hit_tokens_total"),
            restored_tokens: counter!("quern_prefix_cache_restored_tokens_total"),
            preempted_recompute: counter!("quern_preemptions_total", "kind" => "recompute"),
            preempted_host: counter!("quern_preemptions_total", "kind" => "host"),
            drafted_tokens: counter!("quern_speculation_drafted_tokens_total"),
            accepted_tokens: counter!("quern_speculation_accepted_tokens_total"),
            plans_used: counter!("quern_plans_total", "outcome" => "used"),
            plans_none: counter!("quern_plans_total", "outcome" => "none"),
            plans_invalid: counter!("quern_plans_total", "outcome" => "invalid"),
            plans_held: counter!("quern_plans_total", "outcome" => "held"),
        }
    }
}
