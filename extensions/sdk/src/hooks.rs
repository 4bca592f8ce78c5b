//! What a policy implements: its life, and the hooks that it has.

use crate::tables::{
    Completed, Decision, Limits, NodeLoad, Plan, Replicas, Request, Running, Step, Target, Waiting, Window,
};

/// What a hook answers. `Ok(None)` is no opinion and `Err` is a failure with its
/// reason: the node's built-in policy decides then, for this one call.
pub type Answer<T> = Result<Option<T>, String>;

/// Every policy. It is made by `Default`, once for each instance, and keeps its
/// state in its fields. The node may throw an instance away between any two
/// calls, so nothing kept may be needed for a right answer, only for a better one.
pub trait Policy: Default + 'static {
    /// Reads settings, defines metrics and takes over what was saved. The first
    /// call on every instance.
    ///
    /// `saved` is what the version before, or this one before a fault, gave back
    /// from [`Policy::save`]. It may be of another version or garbage: a policy
    /// that cannot read it starts anew.
    ///
    /// # Errors
    /// A reason to refuse the policy, such as a setting that makes no sense.
    fn init(&mut self, saved: Option<&[u8]>) -> Result<(), String> {
        let _ = saved;
        Ok(())
    }

    /// What the next instance should know. Called before an orderly swap.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// Asked before each step: whom to start, whom to pause, how much prefill.
pub trait SchedulerPolicy: Policy {
    /// Plans one step; [`PlanBuilder`](crate::plan::PlanBuilder) keeps its rules.
    ///
    /// # Errors
    /// A reason to use the built-in policy's plan for this step.
    fn plan(&mut self, step: &Step, waiting: &Waiting, running: &Running) -> Answer<Plan>;
}

/// Asked a few times a second: how large steps may be.
pub trait BatcherPolicy: Policy {
    /// Sets the limits for the time to come.
    ///
    /// # Errors
    /// A reason to leave the limits as they are.
    fn tune(&mut self, load: &NodeLoad) -> Answer<Limits>;
}

/// Asked for each request that arrives.
pub trait AdmissionPolicy: Policy {
    /// Accepts, rewrites or refuses a request.
    ///
    /// # Errors
    /// A reason to let the built-in policy decide.
    fn decide(&mut self, request: &Request, load: &NodeLoad) -> Answer<Decision>;
}

/// Asked every few seconds: how many workers the node should have.
pub trait AutoscalerPolicy: Policy {
    /// Says how many workers are wanted, and why.
    ///
    /// # Errors
    /// A reason to leave the number as it is.
    fn evaluate(&mut self, window: &Window, replicas: &Replicas) -> Answer<Target>;
}

/// Told of finished requests, in batches, off the step's path.
pub trait FeedbackPolicy: Policy {
    /// Learns from finished requests.
    fn observe(&mut self, completed: &Completed);
}
