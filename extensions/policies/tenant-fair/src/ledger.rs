//! The virtual token counters, kept from what snapshots show.
//!
//! A plan is a wish: the node may have used another, or drawn several tokens in a
//! step. So tokens generated are counted from one snapshot to the next, and what
//! was charged for a start is given back to whoever still waits.

use quern_policy_sdk::tables::{Plan, Running, Waiting};
use quern_policy_sdk::wire::{Reader, Writer};

/// What `save` writes: this policy's first format.
const FORMAT: u32 = 0x7674_6301;

/// Accounts that are taken over from what was saved, at most.
const MAX_RESTORED: usize = 4096;

#[derive(Debug, Clone, Copy, Default)]
struct Account {
    tenant: u32,
    /// Weighted tokens.
    served: u64,
    /// Whether it has rows in the present snapshot, and had some in the one before.
    is_active: bool,
    was_active: bool,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    output_weight: u64,
    /// How far behind all others whoever comes back may be.
    credit: u64,
    /// By tenant.
    accounts: Vec<Account>,
    /// Id and tokens drawn of those that ran in the snapshot before, in its order.
    drawn: Vec<(u64, u32)>,
    /// Id, tenant and charge of those that the plan before started.
    charged: Vec<(u64, u32, u64)>,
}

impl Ledger {
    pub(crate) fn new(output_weight: u64, credit: u64) -> Ledger {
        Ledger { output_weight, credit, ..Ledger::default() }
    }

    /// What a tenant was served.
    pub(crate) fn served(&self, tenant: u32) -> u64 {
        self.find(tenant).map_or(0, |ix| self.accounts[ix].served)
    }

    fn find(&self, tenant: u32) -> Result<usize, usize> {
        self.accounts.binary_search_by_key(&tenant, |account| account.tenant)
    }

    fn account(&mut self, tenant: u32) -> &mut Account {
        let ix = self.find(tenant).unwrap_or_else(|ix| {
            self.accounts.insert(ix, Account { tenant, ..Account::default() });
            ix
        });
        &mut self.accounts[ix]
    }

    /// Brings the counters up to the present snapshot.
    pub(crate) fn settle(&mut self, waiting: &Waiting, running: &Running) {
        for (id, tenant, charge) in std::mem::take(&mut self.charged) {
            if waiting.id.contains(&id) {
                let account = self.account(tenant);
                account.served = account.served.saturating_sub(charge);
            }
        }
        for account in &mut self.accounts {
            account.was_active = std::mem::take(&mut account.is_active);
        }
        let mut last = None;
        for &tenant in &waiting.tenant {
            // Neighbours often are of one tenant.
            if last != Some(tenant) {
                self.account(tenant).is_active = true;
                last = Some(tenant);
            }
        }
        self.count_drawn(running);
        self.lift();
        self.forget();
    }

    /// Counts what was generated since the snapshot before. Both tables are in the
    /// order of the last start, so who stayed is found by walking them side by side.
    fn count_drawn(&mut self, running: &Running) {
        let before = std::mem::take(&mut self.drawn);
        let mut place = 0;
        for row in 0..running.len() {
            let (id, now) = (running.id[row], running.generated[row]);
            let stayed = before[place..].iter().position(|&(other, _)| other == id);
            // One that was paused and came back had its tokens counted.
            let drawn = stayed.map_or(now.min(1), |ahead| now.saturating_sub(before[place + ahead].1));
            place += stayed.map_or(0, |ahead| ahead + 1);
            let charge = u64::from(drawn).saturating_mul(self.output_weight);
            let account = self.account(running.tenant[row]);
            account.is_active = true;
            account.served = account.served.saturating_add(charge);
        }
        self.drawn = before;
        self.drawn.clear();
        self.drawn.extend(running.id.iter().copied().zip(running.generated.iter().copied()));
    }

    /// Whoever comes back has no claim from the time that it was away, but for the
    /// credit: a tenant that asks for little now and then goes before a flood.
    fn lift(&mut self) {
        let stayed = self.accounts.iter().filter(|account| account.is_active && account.was_active);
        let Some(floor) = stayed.map(|account| account.served).min() else { return };
        for account in self.accounts.iter_mut().filter(|account| account.is_active && !account.was_active) {
            account.served = account.served.max(floor.saturating_sub(self.credit));
        }
    }

    /// An absent tenant behind all others would be lifted when it comes back, so
    /// nothing is lost by forgetting it, and memory stays bounded.
    fn forget(&mut self) {
        let active = self.accounts.iter().filter(|account| account.is_active);
        let Some(floor) = active.map(|account| account.served).min() else { return };
        self.accounts.retain(|account| account.is_active || account.served > floor);
    }

    /// Charges what a plan starts.
    pub(crate) fn charge(&mut self, waiting: &Waiting, plan: &Plan) {
        for &row in &plan.admit {
            let row = row as usize;
            let charge = u64::from(waiting.work(row));
            let tenant = waiting.tenant[row];
            let account = self.account(tenant);
            account.served = account.served.saturating_add(charge);
            self.charged.push((waiting.id[row], tenant, charge));
        }
    }

    pub(crate) fn save(&self) -> Vec<u8> {
        let mut saved = Writer::new(FORMAT);
        for account in &self.accounts {
            saved.number(u64::from(account.tenant));
            saved.number(account.served);
        }
        saved.done()
    }

    /// Takes over what was saved, as far as it can be read.
    pub(crate) fn restore(&mut self, saved: &[u8]) {
        let Some(mut saved) = Reader::new(saved, FORMAT) else { return };
        while let (Some(tenant), Some(served)) = (saved.number(), saved.number()) {
            if self.accounts.len() < MAX_RESTORED
                && let Ok(tenant) = u32::try_from(tenant)
            {
                let account = self.account(tenant);
                account.served = served;
                // Whoever was there before counts as having stayed.
                account.is_active = true;
            }
        }
    }
}
