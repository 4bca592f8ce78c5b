//! The list of dispatches of a step, and the memory that they work on.

use std::sync::Arc;

use super::adapters::{Adapters, Place};
use super::attention::{Partials, Parts, Shared};
use super::dispatch::{Grid, Op, When};
use super::draw::Drawing;
use super::halves::Halves;
use super::inputs::Inputs;
use super::layout::{Batch, Layout, ROW_WORDS};
use super::product::{ADD_TO_OUT, Product};
use super::{RunnerError, StepLimits};
use crate::buffers::{Buffer, Use};
use crate::clock::Clock;
use crate::device::Device;
use crate::error::DeviceError;
use crate::kernels::{Kernel, Text};
use crate::model::{Model, ModelShape};
use crate::pages::PAGE_TOKENS;

/// Buffers of a runner.
#[derive(Debug)]
pub(super) struct Memory {
    pub step_info: Buffer,
    /// The residual stream, `[rows, hidden]`.
    x: Buffer,
    /// `[rows, hidden]`.
    normed: Buffer,
    /// `[rows, qkv_width]`.
    pub qkv: Buffer,
    /// `[rows, heads * head_dim]`.
    pub attended: Buffer,
    pub partials: Partials,
    /// `[rows, 2 * ffn]`.
    gate_up: Buffer,
    /// `[rows, ffn]`.
    gated: Buffer,
    /// Normed rows with an output, `[outputs, hidden]`.
    pub outputs: Buffer,
    /// `[outputs, vocab]`.
    pub logits: Buffer,
    /// Keys and values, a buffer a layer.
    pub kv: Vec<Buffer>,
    pub page_bytes: u64,
    /// One page on its way to another.
    pub scratch_page: Buffer,
    /// Cosines and sines of positions.
    turns: Buffer,
    /// Logits and hidden states on their way to the host.
    pub staging: Buffer,
    /// Bound where a kernel has nothing to read.
    pub none: Buffer,
    inputs: Inputs,
    halves: Option<Halves>,
}

impl Memory {
    pub fn new(
        device: &Device,
        shape: &ModelShape,
        limits: StepLimits,
        layout: &Layout,
    ) -> Result<Memory, RunnerError> {
        let limit = device.profile().max_binding_bytes;
        let buffer = |what: &'static str, bytes: u64, setting: &'static str| {
            if bytes > limit {
                return Err(RunnerError::TooLarge { what, bytes, limit, setting });
            }
            Ok(Buffer::new(device, what, bytes, Use::Storage)?)
        };
        let rows =
            |what, width: u32| buffer(what, u64::from(limits.max_rows) * u64::from(width) * 4, "max_rows");
        let outputs = |what, width: u32| {
            buffer(what, u64::from(limits.max_outputs) * u64::from(width) * 4, "max_outputs")
        };
        let page_bytes = shape.kv_bytes() * u64::from(PAGE_TOKENS);
        let kv =
            |_| buffer("keys and values of a layer", page_bytes * u64::from(limits.num_pages), "kv_capacity");
        let turns = shape.rope.turns(shape.head_dim, limits.max_sequence_len);
        let outputs_bytes = u64::from(limits.max_outputs) * u64::from(shape.vocab + shape.hidden) * 4;
        Ok(Memory {
            step_info: buffer("a step's metadata", u64::from(layout.max_words()) * 4, "max_rows")?,
            x: rows("the residual stream", shape.hidden)?,
            normed: rows("normed rows", shape.hidden)?,
            qkv: rows("queries, keys and values of rows", shape.qkv_width())?,
            attended: rows("attended rows", shape.heads * shape.head_dim)?,
            partials: Partials::new(device, shape.heads, layout.sharing.max_parts)?,
            gate_up: rows("gates of rows", 2 * shape.ffn)?,
            gated: rows("gated rows", shape.ffn)?,
            outputs: outputs("outputs", shape.hidden)?,
            logits: outputs("logits", shape.vocab)?,
            kv: (0..shape.layers).map(kv).collect::<Result<_, _>>()?,
            page_bytes,
            scratch_page: buffer("a page", page_bytes, "kv_capacity")?,
            turns: Buffer::with(device, "turns", &turns)?,
            staging: Buffer::new(device, "a step's outputs", outputs_bytes, Use::Readback)?,
            none: Buffer::new(device, "nothing", 16, Use::Storage)?,
            inputs: Inputs::new(device, shape, limits)?,
            halves: Halves::new(device, shape, limits)?,
        })
    }

    /// Bytes of keys and values, and of all else.
    pub fn bytes(&self) -> [u64; 2] {
        let others = [
            &self.step_info,
            &self.x,
            &self.normed,
            &self.qkv,
            &self.attended,
            &self.gate_up,
            &self.gated,
            &self.outputs,
            &self.logits,
            &self.scratch_page,
            &self.turns,
            &self.staging,
            &self.none,
        ];
        let sum = |buffers: &mut dyn Iterator<Item = &Buffer>| buffers.map(Buffer::size_bytes).sum();
        let halves = self.halves.as_ref().map_or(0, Halves::bytes);
        let others = sum(&mut others.into_iter()) + self.inputs.bytes() + self.partials.bytes() + halves;
        [sum(&mut self.kv.iter()), others]
    }
}

/// How many of a batch's rows there are, what they want, and how attention takes them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    pub rows: u32,
    pub logits: u32,
    pub hidden: u32,
    pub drawn: u32,
    pub shared: Shared,
}

impl Counts {
    pub fn of(batch: &Batch<'_>, shared: Shared) -> Counts {
        let count = |len: usize| len as u32;
        Counts {
            rows: count(batch.rows.len()),
            logits: count(batch.logits.len()),
            hidden: count(batch.hidden.len()),
            drawn: count(batch.drawn.len()),
            shared,
        }
    }

    /// Rows whose logits are made.
    pub fn with_logits(self) -> u32 {
        self.logits + self.drawn
    }
}

/// All dispatches of a step.
#[derive(Debug)]
pub(super) struct Plan {
    /// For all rows.
    rows: Vec<Op>,
    /// For rows with an output.
    outputs: Op,
    /// For rows whose logits are wanted or drawn from.
    logits: Vec<Op>,
    /// For rows that draw.
    drawn: Vec<Op>,
}

impl Plan {
    pub fn new(
        device: &Device,
        model: &Model,
        memory: &Memory,
        adapters: &Adapters,
        drawing: Option<&Drawing>,
        layout: &Layout,
    ) -> Result<Plan, DeviceError> {
        let builder = Builder { device, model, memory, adapters, layout };
        let mut rows = builder.embed()?;
        for layer in 0..model.layers.len() {
            builder.layer(layer, &mut rows)?;
        }
        let outputs =
            builder.rms_norm(&memory.x, &model.output_norm, &memory.outputs, layout.outputs_at())?;
        let head = model.head();
        let vocab = model.shape.vocab;
        let product = Product {
            x: &memory.outputs,
            texels: memory.inputs.outputs.as_ref(),
            halves: None,
            out: &memory.logits,
            out_stride: vocab,
            columns_at: Layout::LOGITS,
        };
        let logits = builder.matmul(head, &product, None, 0, 0)?;
        let drawn = drawing.map(|drawing| drawing.ops(device, &memory.logits)).transpose()?;
        Ok(Plan { rows, outputs, logits, drawn: drawn.unwrap_or_default() })
    }

    pub fn num_dispatches(&self) -> usize {
        let shared = Shared { parts: Parts::One, num_parts: 0 };
        let a_row = Counts { rows: 1, logits: 1, hidden: 0, drawn: 0, shared };
        let rows = self.rows.iter().filter(|op| op.is_in(a_row, false)).count();
        rows + 1 + self.logits.len()
    }

    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, counts: Counts, with_adapters: bool) {
        let mut ops = self.ops(counts, with_adapters).peekable();
        while let Some((op, num_rows)) = ops.next() {
            op.copy(encoder, num_rows);
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            op.encode(&mut pass, num_rows);
            while let Some((op, num_rows)) = ops.next_if(|(op, _)| op.copied.is_none()) {
                op.encode(&mut pass, num_rows);
            }
        }
    }

    /// As [`Plan::encode`], with each dispatch in a pass of its own between two timestamps. Each one's
    /// variant and workgroups.
    pub fn encode_timed(
        &self,
        device: &Device,
        encoder: &mut wgpu::CommandEncoder,
        counts: Counts,
        with_adapters: bool,
    ) -> (Clock, Vec<(String, [u32; 3])>) {
        let clock = Clock::new(device, self.ops(counts, with_adapters).count() as u32);
        let mut dispatches = Vec::new();
        for (run, (op, num_rows)) in (0..).zip(self.ops(counts, with_adapters)) {
            let timestamp_writes = Some(clock.around(run));
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
            op.copy(encoder, num_rows);
            op.encode(&mut encoder.begin_compute_pass(&descriptor), num_rows);
            let (kernel, workgroups) = op.dispatch(num_rows);
            dispatches.push((kernel.name().to_owned(), workgroups));
        }
        clock.resolve(encoder);
        (clock, dispatches)
    }

    /// The dispatches of a step in order, each with its rows.
    fn ops(&self, counts: Counts, with_adapters: bool) -> impl Iterator<Item = (&Op, u32)> {
        let rows = self.rows.iter().filter(move |op| op.is_in(counts, with_adapters));
        let num_outputs = counts.with_logits() + counts.hidden;
        let outputs = (num_outputs > 0).then_some((&self.outputs, num_outputs));
        let behind = [(&self.logits, counts.with_logits()), (&self.drawn, counts.drawn)];
        let behind = behind.into_iter().filter(|(_, num_rows)| *num_rows > 0);
        let behind = behind.flat_map(|(ops, num_rows)| ops.iter().map(move |op| (op, num_rows)));
        rows.map(move |op| (op, op.num_rows(counts))).chain(outputs).chain(behind)
    }
}

/// Makes dispatches with what they are bound to.
pub(super) struct Builder<'a> {
    device: &'a Device,
    pub model: &'a Model,
    pub memory: &'a Memory,
    adapters: &'a Adapters,
    pub layout: &'a Layout,
}

impl Builder<'_> {
    pub fn kernel(&self, name: &str, values: &[(&str, &str)]) -> Result<Arc<Kernel>, DeviceError> {
        self.device.kernel(&Text::new(name, values))
    }

    fn subgroups(&self) -> &'static str {
        if self.device.profile().subgroup_size.is_some() { "1" } else { "0" }
    }

    /// Whether kernels' threads hand each other what they read; see `attention.wgsl` and `matmul.wgsl`.
    pub fn share(&self) -> &'static str {
        if self.device.profile().subgroup_size == Some(8) { "1" } else { "0" }
    }

    fn params(&self, words: &[u32]) -> Result<Buffer, DeviceError> {
        let mut words = words.to_vec();
        words.resize(words.len().next_multiple_of(4), 0);
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let buffer = Buffer::new(self.device, "a kernel's parameters", bytes.len() as u64, Use::Uniform)?;
        buffer.write(self.device, 0, bytes);
        Ok(buffer)
    }

    /// Binds `params`, `step_info` and what is given.
    pub fn op(
        &self,
        kernels: Vec<Arc<Kernel>>,
        params: &[u32],
        bindings: &[(&str, wgpu::BindingResource<'_>)],
        grid: Grid,
    ) -> Result<Op, DeviceError> {
        let params = self.params(params)?;
        let mut bindings = bindings.to_vec();
        bindings.push(("params", params.whole()));
        let reads_step = kernels[0].bindings().any(|(name, _)| name == "step_info");
        if reads_step {
            bindings.push(("step_info", self.memory.step_info.whole()));
        }
        let bound = kernels[0].bind(self.device, &bindings)?;
        Ok(Op::new(kernels, bound, grid))
    }

    fn embed(&self) -> Result<Vec<Op>, DeviceError> {
        let (matrix, memory) = (&self.model.embedding, self.memory);
        let texels = if matrix.in_texels { "1" } else { "0" };
        let kernel = self.kernel("embed", &[("QUANT", matrix.format.axis), ("TEXELS", texels)])?;
        let op = |shard: &crate::model::Shard| {
            let params = [matrix.num_groups, shard.first_row, shard.num_rows, Layout::ROWS_AT, ROW_WORDS];
            let buffers = [
                ("quants", shard.quants.whole()),
                ("highs", shard.highs.whole()),
                ("scales", shard.scales.whole()),
                ("out", memory.x.whole()),
            ];
            self.op(vec![Arc::clone(&kernel)], &params, &buffers, Grid::Rows(1))
        };
        matrix.shards.iter().map(op).collect()
    }

    fn layer(&self, idx: usize, ops: &mut Vec<Op>) -> Result<(), DeviceError> {
        let (layer, memory, shape) = (&self.model.layers[idx], self.memory, &self.model.shape);
        let inputs = &memory.inputs;
        let every_row = |x, texels: Option<_>, out, out_stride| Product {
            x,
            texels,
            halves: memory.halves.as_ref(),
            out,
            out_stride,
            columns_at: Layout::ROWS,
        };
        ops.push(self.rms_norm(&memory.x, &layer.attn_norm, &memory.normed, 0)?);
        let product = every_row(&memory.normed, inputs.normed.as_ref(), &memory.qkv, shape.qkv_width());
        self.halve(&product, shape.hidden, ops)?;
        self.placed(&layer.qkv, &product, ops)?;
        self.adapt(idx, Place::Qkv, &product, ops)?;
        ops.push(self.rope_store(idx)?);
        self.attention(idx, ops)?;
        let product = every_row(&memory.attended, inputs.attended.as_ref(), &memory.x, shape.hidden);
        self.halve(&product, shape.heads * shape.head_dim, ops)?;
        ops.extend(self.matmul(&layer.attn_out, &product, None, 0, ADD_TO_OUT)?);
        self.adapt(idx, Place::AttentionOut, &product, ops)?;
        ops.push(self.rms_norm(&memory.x, &layer.ffn_norm, &memory.normed, 0)?);
        let product = every_row(&memory.normed, inputs.normed.as_ref(), &memory.gate_up, 2 * shape.ffn);
        self.halve(&product, shape.hidden, ops)?;
        self.placed(&layer.gate_up, &product, ops)?;
        self.adapt(idx, Place::GateUp, &product, ops)?;
        ops.push(self.swiglu()?);
        let product = every_row(&memory.gated, inputs.gated.as_ref(), &memory.x, shape.hidden);
        self.halve(&product, shape.ffn, ops)?;
        ops.extend(self.matmul(&layer.down, &product, None, 0, ADD_TO_OUT)?);
        self.adapt(idx, Place::Down, &product, ops)
    }

    /// What rows' adapters add to a product: B of A of its input.
    fn adapt(
        &self,
        idx: usize,
        place: Place,
        product: &Product<'_>,
        ops: &mut Vec<Op>,
    ) -> Result<(), DeviceError> {
        let adapters = self.adapters;
        let Some(pool) = adapters.pools.get(idx) else { return Ok(()) };
        let shape = adapters.shape(place, &self.model.shape);
        let params = self.params(&shape.words())?;
        let common = [
            ("shape", params.whole()),
            ("slots", adapters.table.whole()),
            ("row_slots", adapters.row_slots.whole()),
            ("pool", pool.whole()),
            ("shrunk", adapters.shrunk.whole()),
        ];
        let shrink = Grid::Modules(Adapters::RANK_GROUPS, shape.num_modules() as u32);
        let expand = Grid::Each(product.out_stride.div_ceil(64));
        let parts =
            [("lora_shrink", ("x", product.x), shrink), ("lora_expand", ("out", product.out), expand)];
        for (name, (end, buffer), grid) in parts {
            let kernel = self.kernel(name, &[])?;
            let bindings: Vec<_> = common.iter().cloned().chain([(end, buffer.whole())]).collect();
            let bound = kernel.bind(self.device, &bindings)?;
            ops.push(Op { when: When::Adapters, ..Op::new(vec![kernel], bound, grid) });
        }
        Ok(())
    }

    fn rms_norm(&self, x: &Buffer, weight: &Buffer, out: &Buffer, rows_at: u32) -> Result<Op, DeviceError> {
        let kernel = self.kernel("rms_norm", &[("SUBGROUPS", self.subgroups())])?;
        let shape = &self.model.shape;
        let params = [shape.hidden / 4, rows_at, shape.epsilon.to_bits()];
        self.op(
            vec![kernel],
            &params,
            &[("x", x.whole()), ("weight", weight.whole()), ("out", out.whole())],
            Grid::Rows(1),
        )
    }

    fn rope_store(&self, idx: usize) -> Result<Op, DeviceError> {
        let (layer, memory, shape) = (&self.model.layers[idx], self.memory, &self.model.shape);
        let norm = if layer.head_norms.is_some() { "1" } else { "0" };
        let axes = [("DIM", &*shape.head_dim.to_string()), ("NORM", norm), ("SUBGROUPS", self.subgroups())];
        let kernel = self.kernel("rope_store", &axes)?;
        let params = [shape.heads, shape.kv_heads, Layout::ROWS_AT, shape.epsilon.to_bits()];
        let norms = layer.head_norms.as_ref();
        let buffers = [
            ("turns", memory.turns.whole()),
            ("query_norm", norms.map_or(&memory.none, |norms| &norms.query).whole()),
            ("key_norm", norms.map_or(&memory.none, |norms| &norms.key).whole()),
            ("qkv", memory.qkv.whole()),
            ("kv", memory.kv[idx].whole()),
        ];
        self.op(vec![kernel], &params, &buffers, Grid::Rows(shape.heads + 2 * shape.kv_heads))
    }

    fn swiglu(&self) -> Result<Op, DeviceError> {
        let kernel = self.kernel("swiglu", &[])?;
        let width = self.model.shape.ffn / 4;
        let buffers = [("gate_up", self.memory.gate_up.whole()), ("out", self.memory.gated.whole())];
        self.op(vec![kernel], &[width], &buffers, Grid::Each(width.div_ceil(64)))
    }
}
