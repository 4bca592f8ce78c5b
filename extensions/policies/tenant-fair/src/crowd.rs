//! Who takes more than its share, and what it gives up for the others.

use quern_policy_sdk::tables::{Running, Step};

use crate::Queues;
use crate::ledger::Ledger;

/// A tenant with work.
#[derive(Debug, Clone, Default)]
struct Tenant {
    tenant: u32,
    served: u64,
    /// Rows that run and that wait.
    rows: u32,
    /// Running rows that decode.
    streams: Vec<usize>,
    /// Whether it has a prompt to compute, begun or not.
    has_prompt: bool,
}

/// All tenants with work, as one step finds them.
#[derive(Debug, Clone)]
pub(crate) struct Crowd {
    tenants: Vec<Tenant>,
    /// What was served to whoever has a prompt to compute and was served least.
    least: Option<(u64, u32)>,
    /// Places for each, if everybody had the same.
    share: u32,
    seq: u64,
}

impl Crowd {
    pub(crate) fn new(step: &Step, running: &Running, queues: &Queues, ledger: &Ledger) -> Crowd {
        let waiting = queues.waiting().map(|(tenant, served, rows)| Tenant {
            tenant,
            served,
            rows,
            has_prompt: true,
            ..Tenant::default()
        });
        let mut tenants: Vec<Tenant> = waiting.collect();
        for (row, &tenant) in running.tenant.iter().enumerate() {
            let place = tenants.iter().position(|other| other.tenant == tenant).unwrap_or_else(|| {
                tenants.push(Tenant { tenant, served: ledger.served(tenant), ..Tenant::default() });
                tenants.len() - 1
            });
            let tenant = &mut tenants[place];
            tenant.rows = tenant.rows.saturating_add(1);
            if running.decodes(row) {
                tenant.streams.push(row);
            } else {
                tenant.has_prompt = true;
            }
        }
        let share = (step.max_running / tenants.len().max(1) as u32).max(1);
        let with_prompt = tenants.iter().filter(|tenant| tenant.has_prompt);
        let least = with_prompt.map(|tenant| (tenant.served, tenant.tenant)).min();
        Crowd { tenants, least, share, seq: step.seq }
    }

    /// Whether all that a tenant asks for, running or not, is more than its share of places.
    fn is_greedy(&self, tenant: &Tenant) -> bool {
        tenant.rows > self.share
    }

    /// How many tenants have work.
    pub(crate) fn len(&self) -> usize {
        self.tenants.len()
    }

    /// Whether a tenant asks for more than its share and was served more than
    /// somebody who has a prompt to compute.
    pub(crate) fn gives_way(&self, tenant: u32) -> bool {
        let found = self.tenants.iter().find(|other| other.tenant == tenant);
        found.is_some_and(|found| {
            self.is_greedy(found) && self.least.is_some_and(|(least, _)| found.served > least)
        })
    }

    /// Whether nobody but those who ask for more than their share has a prompt to compute.
    pub(crate) fn is_greedy_alone(&self) -> bool {
        let mut prompts = self.tenants.iter().filter(|tenant| tenant.has_prompt).peekable();
        prompts.peek().is_some() && prompts.all(|tenant| self.is_greedy(tenant))
    }

    /// Streams that stand still in this step, for the prompt of somebody who was
    /// served less: all but one, by turns, of those of a tenant beyond its share.
    pub(crate) fn resting(&self) -> Vec<usize> {
        let Some((least, first)) = self.least else { return Vec::new() };
        let mut resting = Vec::new();
        for Tenant { tenant, served, streams, .. } in &self.tenants {
            if streams.len() > self.share as usize && *tenant != first && *served > least {
                let turn = (self.seq % streams.len() as u64) as usize;
                resting.extend((0..streams.len()).filter(|&place| place != turn).map(|place| streams[place]));
            }
        }
        resting
    }
}
