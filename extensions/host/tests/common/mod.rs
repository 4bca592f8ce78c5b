//! Guests as text: core modules that are made components by the crate itself.
//!
//! Memory of a guest: 512 its name, 1024 the result of `init`, 1536 that of
//! `save`, 2048 that of a hook (all zero is "no opinion"), 4096 lists in it,
//! 8192 scratch, from 16384 what the host hands over.
#![allow(dead_code)]

pub mod evil;

use std::time::Duration;

use quern_engine::AdapterId;
use quern_extensions::{
    Cache, Deadlines, EngineSettings, Hook, PolicyEngine, Quarantine, Settings, Slot, SlotPlanner, Source,
    Trial, Verdict,
};
use quern_scheduler::plan::{self, NO_DEADLINE, Plan, Planner as _, Snapshot};
use wit_parser::Resolve;

const WIT: &str = include_str!("../../../wit/policy.wit");

/// A body that never ends.
pub const ENDLESS: &str = "(loop $l (br $l)) (unreachable)";
/// A body that takes memory until there is none.
pub const GREEDY: &str = "(loop $l (drop (memory.grow (i32.const 16))) (br $l)) (unreachable)";
/// A body that calls itself.
pub const DEEP: &str = "(call $deep (i32.const 0))";
/// A body that traps on every third call.
pub const THIRD: &str = "
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (if (i32.eqz (i32.rem_u (global.get $calls) (i32.const 3))) (then unreachable))
    (i32.const 2048)";
/// A body without an opinion.
pub const NO_OPINION: &str = "(i32.const 2048)";

/// A guest, hook by hook.
#[derive(Clone)]
pub struct Guest {
    hooks: Vec<(Hook, String)>,
    init: String,
    save: String,
    imports: Vec<&'static str>,
    name: String,
    package: &'static str,
}

/// A guest that does nothing yet.
pub fn guest() -> Guest {
    Guest {
        hooks: Vec::new(),
        init: String::new(),
        save: String::new(),
        imports: Vec::new(),
        name: "guest".to_owned(),
        package: "0.1.0",
    }
}

impl Guest {
    /// Has this hook, with this body.
    pub fn with(mut self, hook: Hook, body: impl Into<String>) -> Guest {
        self.hooks.push((hook, body.into()));
        self
    }

    /// Does this in `init`, before it answers; `$some`, `$ptr` and `$len` are the state.
    pub fn init(mut self, body: &str) -> Guest {
        self.init = body.to_owned();
        self
    }

    /// Does this in `save`, before it answers with what 1536 says.
    pub fn save(mut self, body: &str) -> Guest {
        self.save = body.to_owned();
        self
    }

    /// Imports this.
    pub fn import(mut self, wat: &'static str) -> Guest {
        self.imports.push(wat);
        self
    }

    /// Calls itself that.
    pub fn named(mut self, name: &str) -> Guest {
        self.name = name.to_owned();
        self
    }

    /// Was built against another version of the contract.
    pub fn package(mut self, version: &'static str) -> Guest {
        self.package = version;
        self
    }

    fn wat(&self) -> String {
        let export = |name: &str| format!("quern:policy/{name}").replace('#', &format!("@{}#", self.package));
        let hooks: String = self
            .hooks
            .iter()
            .map(|(hook, body)| {
                let (function, params, result) = signature(*hook);
                let name = export(&format!("{}#{function}", hook.name()));
                if *hook == Hook::Feedback {
                    return format!(
                        "(func (export \"{name}\") {params} {body} (global.set $heap (i32.const 16384)))\n"
                    );
                }
                format!(
                    "(func (export \"{name}\") {params} {result} {body})
                 (func (export \"cabi_post_{name}\") (param i32) (global.set $heap (i32.const 16384)))\n"
                )
            })
            .collect();
        format!(
            "(module
              {imports}
              (memory (export \"memory\") 16)
              (global $heap (mut i32) (i32.const 16384))
              (global $calls (mut i32) (i32.const 0))
              (data (i32.const 512) \"{name}\")
              (func $deep (param i32) (result i32)
                (i32.add (call $deep (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))
              (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
                (global.set $heap (i32.add (local.get $at) (local.get 3)))
                (local.get $at))
              (func (export \"{init_name}\") (param $some i32) (param $ptr i32) (param $len i32) (result i32)
                {init}
                (i32.store (i32.const 1028) (i32.const 512))
                (i32.store (i32.const 1032) (i32.const {name_len}))
                (global.set $heap (i32.const 16384))
                (i32.const 1024))
              (func (export \"{save_name}\") (result i32) {save} (i32.const 1536))
              {hooks})",
            imports = self.imports.join("\n"),
            name = self.name,
            name_len = self.name.len(),
            init_name = export("lifecycle#init"),
            save_name = export("lifecycle#save"),
            init = self.init,
            save = self.save,
        )
    }

    /// As `wit-bindgen` would leave it: a core module that says which world it is of.
    pub fn module(&self) -> Vec<u8> {
        let mut wasm = wat::parse_str(self.wat()).unwrap();
        let worlds: String =
            self.hooks.iter().map(|(hook, _)| format!("export {};\n", hook.name())).collect();
        let world = format!("world guest {{ include base;\n{worlds} }}\n");
        let wit = format!("{WIT}\n{world}")
            .replace("quern:policy@0.1.0", &format!("quern:policy@{}", self.package));
        let mut resolve = Resolve::default();
        let package = resolve.push_str("policy.wit", &wit).unwrap();
        let world = resolve.select_world(&[package], Some("guest")).unwrap();
        let encoding = wit_component::StringEncoding::UTF8;
        wit_component::embed_component_metadata(&mut wasm, &resolve, world, encoding).unwrap();
        wasm
    }

    /// As a component.
    pub fn component(&self) -> Vec<u8> {
        quern_extensions::componentize(&self.module()).unwrap()
    }

    /// To be loaded.
    pub fn source(&self) -> Source {
        Source::Bytes { wasm: self.module(), signature: None }
    }
}

fn signature(hook: Hook) -> (&'static str, &'static str, &'static str) {
    let result = "(result i32)";
    match hook {
        Hook::Scheduler => ("plan-step", "(param i32)", result),
        Hook::Batcher => ("tune", "(param i64 i32 i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)", result),
        Hook::Admission => ("decide", "(param i32)", result),
        Hook::Autoscaler => ("evaluate", "(param i32)", result),
        Hook::Feedback => ("observe", "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)", ""),
    }
}

/// A body that answers with words at the result's place.
pub fn answer(words: &[u32]) -> String {
    let stores = words.iter().enumerate().filter(|(_, word)| **word != 0).map(|(ix, word)| {
        format!("(i32.store (i32.const {}) (i32.const {}))\n", 2048 + 4 * ix, *word as i32)
    });
    stores.collect::<String>() + NO_OPINION
}

/// A body that answers with this plan.
pub fn plan_of(plan: &Plan) -> String {
    let lists = [&plan.admit, &plan.admit_chunk, &plan.preempt, &plan.running_chunk];
    let mut body = String::new();
    // ok, some; then pointer and length of each list.
    let mut words = vec![0, 1];
    let mut at = 4096;
    for list in lists {
        words.extend([at, list.len() as u32]);
        for value in list {
            body += &format!("(i32.store (i32.const {at}) (i32.const {}))\n", *value as i32);
            at += 4;
        }
    }
    words.extend([u32::from(plan.adapter.is_some()), plan.adapter.map_or(0, |adapter| adapter.0)]);
    words.push(plan.hold_steps);
    body + &answer(&words)
}

/// A body that fails with a text of its own.
pub fn error_of(text: &str) -> String {
    let bytes = text.bytes().enumerate();
    let text_there =
        bytes.map(|(ix, byte)| format!("(i32.store8 (i32.const {}) (i32.const {byte}))\n", 4096 + ix));
    text_there.collect::<String>() + &answer(&[1, 4096, text.len() as u32])
}

/// An engine that keeps nothing on disk.
pub fn engine() -> PolicyEngine {
    PolicyEngine::new(&EngineSettings { cache: Cache::Off, ..EngineSettings::default() }).unwrap()
}

/// Settings under which nothing is rolled back or quarantined, and deadlines
/// that a good guest keeps on a machine that does other things as well.
pub fn lenient(name: &str) -> Settings {
    let long = Duration::from_millis(100);
    Settings {
        deadlines: Deadlines {
            scheduler: long,
            batcher: long,
            admission: long,
            autoscaler: long,
            feedback: long,
            save: long,
            ..Deadlines::default()
        },
        trial: Trial { calls: 0, forgiven: 0 },
        quarantine: Quarantine { max_faults: u32::MAX, ..Quarantine::default() },
        ..Settings::named(name)
    }
}

/// A place with a step loop's planner.
pub struct Node {
    pub engine: PolicyEngine,
    pub slot: Slot,
    pub planner: SlotPlanner,
}

impl Node {
    /// Nothing is loaded.
    pub fn new(settings: Settings) -> Node {
        let engine = engine();
        let slot = Slot::new(&engine, settings);
        let planner = slot.planner();
        Node { engine, slot, planner }
    }

    /// What the step loop does with its planner: asks, checks, tells. `None` is
    /// a step that the built-in policy plans.
    pub fn step(&mut self, snapshot: &Snapshot) -> Option<Plan> {
        let plan = self.planner.plan(snapshot)?;
        let judgement = plan::check(snapshot, &plan);
        self.planner.judged(judgement);
        judgement.ok().map(|()| plan)
    }

    /// Counts of the serving version.
    pub fn count(&self, hook: Hook, verdict: Verdict) -> u64 {
        let status = self.slot.status();
        status.serving.unwrap().hook(hook).unwrap().count(verdict)
    }

    /// The last fault's reason.
    pub fn last_fault(&self) -> String {
        self.slot.status().serving.unwrap().faults.last().unwrap().reason.clone()
    }
}

/// A step with some rows that wait and some that decode.
pub fn snapshot(waiting: usize, running: usize) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let step = &mut snapshot.step;
    (step.token_budget, step.max_running, step.kv_free, step.kv_page) = (512, 64, 10_000, 1);
    step.mixes_adapters = true;
    let table = &mut snapshot.waiting;
    table.id = (1..=waiting as u64).collect();
    table.age_us = vec![1000; waiting];
    table.prompt_left = vec![100; waiting];
    table.cached = vec![0; waiting];
    table.pending = vec![0; waiting];
    table.kv_need = vec![100; waiting];
    table.max_new = vec![64; waiting];
    table.slack_us = (0..waiting as i32).map(|row| NO_DEADLINE - row).collect();
    table.priority = vec![0; waiting];
    table.tenant = vec![0; waiting];
    table.adapter = vec![AdapterId::BASE; waiting];
    table.adapter_tier = vec![2; waiting];
    let table = &mut snapshot.running;
    table.id = (1001..=1000 + running as u64).collect();
    table.prompt_left = vec![1; running];
    table.generated = vec![5; running];
    table.max_new = vec![64; running];
    table.kv = vec![105; running];
    table.slack_us = vec![NO_DEADLINE; running];
    table.priority = vec![0; running];
    table.tenant = vec![0; running];
    table.adapter = vec![AdapterId::BASE; running];
    snapshot
}

/// A plan that is in order for a snapshot with a row of each kind.
pub fn good_plan() -> Plan {
    Plan { admit: vec![0], admit_chunk: vec![100], running_chunk: vec![1], ..Plan::default() }
}
