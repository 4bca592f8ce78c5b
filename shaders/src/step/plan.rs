//! The list of dispatches of a step, and the memory that they work on.

use std::sync::Arc;

use super::adapters::{Adapters, Place};
use super::dispatch::{COLS, Grid, Op};
use super::draw::Drawing;
use super::inputs::{Copied, Inputs};
use super::layout::{Batch, Layout, ROW_WORDS};
use super::{RunnerError, StepLimits};
use crate::buffers::{Buffer, Use};
use crate::clock::Clock;
use crate::device::Device;
use crate::error::DeviceError;
use crate::kernels::{Kernel, Text};
use crate::model::{Matrix, Model, ModelShape, Placed};
use crate::pages::PAGE_TOKENS;
use crate::texels::Texels;

/// Flags of `matmul`.
const ADD_BIAS: u32 = 1;
const ADD_TO_OUT: u32 = 2;

/// Buffers of a runner.
#[derive(Debug)]
pub(super) struct Memory {
    pub step_info: Buffer,
    /// The residual stream, `[rows, hidden]`.
    x: Buffer,
    /// `[rows, hidden]`.
    normed: Buffer,
    /// `[rows, qkv_width]`.
    qkv: Buffer,
    /// `[rows, heads * head_dim]`.
    attended: Buffer,
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
    none: Buffer,
    inputs: Inputs,
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
        [sum(&mut self.kv.iter()), sum(&mut others.into_iter()) + self.inputs.bytes()]
    }
}

/// How many of a batch's rows there are, and want what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    pub rows: u32,
    pub logits: u32,
    pub hidden: u32,
    pub drawn: u32,
}

impl Counts {
    pub fn of(batch: &Batch<'_>) -> Counts {
        let count = |len: usize| len as u32;
        Counts {
            rows: count(batch.rows.len()),
            logits: count(batch.logits.len()),
            hidden: count(batch.hidden.len()),
            drawn: count(batch.drawn.len()),
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
        let builder = Builder { device, model, memory, adapters };
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
            out: &memory.logits,
            out_stride: vocab,
            columns_at: Layout::LOGITS,
        };
        let logits = builder.matmul(head, &product, None, 0, 0)?;
        let drawn = drawing.map(|drawing| drawing.ops(device, &memory.logits)).transpose()?;
        Ok(Plan { rows, outputs, logits, drawn: drawn.unwrap_or_default() })
    }

    pub fn num_dispatches(&self) -> usize {
        let rows = self.rows.iter().filter(|op| !op.is_for_adapters).count();
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
        let rows = self.rows.iter().filter(move |op| with_adapters || !op.is_for_adapters);
        let num_outputs = counts.with_logits() + counts.hidden;
        let outputs = (num_outputs > 0).then_some((&self.outputs, num_outputs));
        let behind = [(&self.logits, counts.with_logits()), (&self.drawn, counts.drawn)];
        let behind = behind.into_iter().filter(|(_, num_rows)| *num_rows > 0);
        let behind = behind.flat_map(|(ops, num_rows)| ops.iter().map(move |op| (op, num_rows)));
        rows.map(move |op| (op, counts.rows)).chain(outputs).chain(behind)
    }
}

/// Where a product's columns come from and go to.
struct Product<'a> {
    x: &'a Buffer,
    /// Where matrices in textures read it.
    texels: Option<&'a Texels>,
    out: &'a Buffer,
    out_stride: u32,
    columns_at: u32,
}

struct Builder<'a> {
    device: &'a Device,
    model: &'a Model,
    memory: &'a Memory,
    adapters: &'a Adapters,
}

impl Builder<'_> {
    fn kernel(&self, name: &str, values: &[(&str, &str)]) -> Result<Arc<Kernel>, DeviceError> {
        self.device.kernel(&Text::new(name, values))
    }

    fn subgroups(&self) -> &'static str {
        if self.device.profile().subgroup_size.is_some() { "1" } else { "0" }
    }

    /// Whether kernels' threads hand each other what they read; see `attention.wgsl` and `matmul.wgsl`.
    fn share(&self) -> &'static str {
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
    fn op(
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
        Ok(Op { kernels, bound, grid, copied: None, is_for_adapters: false })
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
            out,
            out_stride,
            columns_at: Layout::ROWS,
        };
        ops.push(self.rms_norm(&memory.x, &layer.attn_norm, &memory.normed, 0)?);
        let product = every_row(&memory.normed, inputs.normed.as_ref(), &memory.qkv, shape.qkv_width());
        self.placed(&layer.qkv, &product, ops)?;
        self.adapt(idx, Place::Qkv, &product, ops)?;
        ops.push(self.rope_store(idx)?);
        ops.push(self.attention(idx)?);
        let product = every_row(&memory.attended, inputs.attended.as_ref(), &memory.x, shape.hidden);
        ops.extend(self.matmul(&layer.attn_out, &product, None, 0, ADD_TO_OUT)?);
        self.adapt(idx, Place::AttentionOut, &product, ops)?;
        ops.push(self.rms_norm(&memory.x, &layer.ffn_norm, &memory.normed, 0)?);
        let product = every_row(&memory.normed, inputs.normed.as_ref(), &memory.gate_up, 2 * shape.ffn);
        self.placed(&layer.gate_up, &product, ops)?;
        self.adapt(idx, Place::GateUp, &product, ops)?;
        ops.push(self.swiglu()?);
        let product = every_row(&memory.gated, inputs.gated.as_ref(), &memory.x, shape.hidden);
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
            ops.push(Op { kernels: vec![kernel], bound, grid, copied: None, is_for_adapters: true });
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

    fn placed(&self, placed: &[Placed], product: &Product<'_>, ops: &mut Vec<Op>) -> Result<(), DeviceError> {
        for part in placed {
            let flags = if part.bias.is_some() { ADD_BIAS } else { 0 };
            ops.extend(self.matmul(&part.matrix, product, part.bias.as_ref(), part.out_base, flags)?);
        }
        Ok(())
    }

    fn matmul(
        &self,
        matrix: &Matrix,
        product: &Product<'_>,
        bias: Option<&Buffer>,
        out_base: u32,
        flags: u32,
    ) -> Result<Vec<Op>, DeviceError> {
        let share = self.share();
        let texels = product.texels.filter(|_| matrix.in_texels);
        let (in_texels, x) = texels.map_or(("0", product.x.whole()), |texels| ("1", texels.whole()));
        let mut kernels = Vec::new();
        let num_variants = if in_texels == "1" { COLS.len() } else { COLS.len() - 1 };
        for cols in COLS[..num_variants].iter().map(u32::to_string) {
            let axes =
                [("QUANT", matrix.format.axis), ("COLS", &*cols), ("SHARE", share), ("TEXELS", in_texels)];
            kernels.push(self.kernel("matmul", &axes)?);
        }
        let panels_each = if share == "1" { 16 } else { 1 };
        let op = |shard: &crate::model::Shard| {
            let panels = shard.num_rows.div_ceil(8);
            let params = [
                matrix.num_groups,
                panels,
                shard.num_rows,
                matrix.num_groups * 8,
                out_base + shard.first_row,
                product.out_stride,
                product.columns_at,
                shard.first_row,
                flags,
            ];
            let buffers = [
                ("quants", shard.quants.whole()),
                ("highs", shard.highs.whole()),
                ("scales", shard.scales.whole()),
                ("bias", bias.unwrap_or(&self.memory.none).whole()),
                ("x", x.clone()),
                ("out", product.out.whole()),
            ];
            self.op(kernels.clone(), &params, &buffers, Grid::Panels(panels.div_ceil(panels_each)))
        };
        let mut ops = matrix.shards.iter().map(op).collect::<Result<Vec<_>, _>>()?;
        ops[0].copied = texels.map(|texels| Copied { from: product.x.clone(), to: texels.clone() });
        Ok(ops)
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

    fn attention(&self, idx: usize) -> Result<Op, DeviceError> {
        let (memory, shape) = (self.memory, &self.model.shape);
        let (dim, group) = (shape.head_dim.to_string(), shape.group().to_string());
        let axes = [("DIM", &*dim), ("GROUP", &*group), ("SHARE", self.share())];
        let kernel = self.kernel("attention", &axes)?;
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let params = [shape.heads, shape.kv_heads, Layout::ROWS_AT, scale.to_bits()];
        let buffers =
            [("qkv", memory.qkv.whole()), ("kv", memory.kv[idx].whole()), ("out", memory.attended.whole())];
        self.op(vec![kernel], &params, &buffers, Grid::Rows(shape.kv_heads))
    }

    fn swiglu(&self) -> Result<Op, DeviceError> {
        let kernel = self.kernel("swiglu", &[])?;
        let width = self.model.shape.ffn / 4;
        let buffers = [("gate_up", self.memory.gate_up.whole()), ("out", self.memory.gated.whole())];
        self.op(vec![kernel], &[width], &buffers, Grid::Each(width.div_ceil(64)))
    }
}
