//! `lora_shrink` and `lora_expand`: against their twins, and rows together against rows alone.

mod common;

use std::sync::OnceLock;

use quern_shaders::Device;
use quern_shaders::harness::{Content, POISON, assert_close, assert_same, devices, run};
use quern_shaders::kernels::{Kernel, Text};
use quern_shaders::lora::{LoraBook, LoraMatrices, LoraModule, LoraShape, MAX_RANK, NO_SLOT};
use quern_shaders::twins::{LoraBuffers, lora_expand, lora_shrink};

struct Kernels {
    device: &'static Device,
    shrink: Kernel,
    expand: Kernel,
}

/// Unchecked and checked; these kernels do without subgroups.
fn kernels() -> &'static [Kernels] {
    static KERNELS: OnceLock<Vec<Kernels>> = OnceLock::new();
    KERNELS.get_or_init(|| {
        let build = |device: &'static Device| {
            let kernel = |name| Kernel::new(device, &Text::new(name, &[])).expect("the kernel compiles");
            Kernels { device, shrink: kernel("lora_shrink"), expand: kernel("lora_expand") }
        };
        let plain = devices().iter().filter(|device| device.profile().subgroup_size.is_none());
        plain.map(build).collect()
    })
}

/// A model of one layer with adapters 1, 2, ... of these ranks in it; all that no adapter uses is NaN.
struct World {
    shape: LoraShape,
    slots: Vec<u32>,
    pool: Vec<u32>,
    book: LoraBook,
}

impl World {
    /// `skips` are places that an adapter does not change, as (adapter, module).
    fn new(modules: &[LoraModule], ranks: &[u32], skips: &[(u32, u32)]) -> World {
        let mut book = LoraBook::new(modules.to_vec(), 1, [2, 2, 2, 2]);
        let mut pool = vec![POISON; book.pool_bytes() as usize / 4];
        for (adapter_id, &rank) in (1..).zip(ranks) {
            let values = |module: &LoraModule, part: u32| {
                let length = if part == 0 { module.input } else { module.output };
                let seed = u64::from(adapter_id * 100 + module.output * 2 + part);
                common::floats(seed, (rank * length) as usize)
            };
            let owned: Vec<_> = modules.iter().map(|module| (values(module, 0), values(module, 1))).collect();
            let pairs =
                owned.iter().zip(0..).filter(|(_, module_idx)| !skips.contains(&(adapter_id, *module_idx)));
            let pairs: Vec<LoraMatrices> = pairs
                .map(|((a, b), module_idx)| LoraMatrices { layer_idx: 0, module_idx, rank, a, b, scale: 2.0 })
                .collect();
            for upload in book.load(adapter_id, &pairs).expect("there is a slot") {
                pool[upload.offset_bytes as usize / 4..][..upload.words.len()].copy_from_slice(&upload.words);
            }
        }
        let columns = |idx: usize| modules[..idx].iter().map(|module| module.output).sum::<u32>();
        let placed: Vec<(u32, u32)> = (0..modules.len()).map(|idx| (idx as u32, columns(idx))).collect();
        let shape = book.shape(&placed, columns(modules.len()));
        World { shape, slots: book.table(), pool, book }
    }

    /// The slots of rows with these adapters; 0 is none.
    fn row_slots(&self, adapters: &[u32]) -> Vec<u32> {
        adapters
            .iter()
            .map(|id| if *id == 0 { NO_SLOT } else { self.book.slot_of(*id).expect("it is loaded") })
            .collect()
    }

    fn buffers<'a>(&'a self, row_slots: &'a [u32]) -> LoraBuffers<'a> {
        LoraBuffers { shape: &self.shape, slots: &self.slots, row_slots, pool: &self.pool }
    }

    fn shrink(&self, kernels: &Kernels, row_slots: &[u32], x: &[f32]) -> Vec<f32> {
        let num_modules = self.shape.num_modules();
        let contents = [
            ("shape", Content::of(&self.shape.words())),
            ("slots", Content::of(&self.slots)),
            ("row_slots", Content::of(row_slots)),
            ("pool", Content::of(&self.pool)),
            ("x", Content::of(x)),
            ("shrunk", Content::poisoned(row_slots.len() * num_modules * MAX_RANK)),
        ];
        let groups = [MAX_RANK as u32 / 8, row_slots.len() as u32, num_modules as u32];
        run(kernels.device, &kernels.shrink, &contents, groups).expect("the kernel runs").floats("shrunk")
    }

    fn expand(&self, kernels: &Kernels, row_slots: &[u32], shrunk: &[f32], out: &[f32]) -> Vec<f32> {
        let contents = [
            ("shape", Content::of(&self.shape.words())),
            ("slots", Content::of(&self.slots)),
            ("row_slots", Content::of(row_slots)),
            ("pool", Content::of(&self.pool)),
            ("shrunk", Content::of(shrunk)),
            ("out", Content::of(out)),
        ];
        let groups = [self.shape.out_width.div_ceil(64), row_slots.len() as u32, 1];
        run(kernels.device, &kernels.expand, &contents, groups).expect("the kernel runs").floats("out")
    }
}

/// Runs rows with these adapters together and alone, on every device, and the twins.
#[track_caller]
fn check(world: &World, adapters: &[u32]) {
    let (input, width) = (world.shape.input as usize, world.shape.out_width as usize);
    let row_slots = world.row_slots(adapters);
    let (mut x, base) =
        (common::floats(5, adapters.len() * input), common::floats(6, adapters.len() * width));
    // What rows without an adapter hold must reach nobody.
    for (row, _) in adapters.iter().enumerate().filter(|(_, id)| **id == 0) {
        x[row * input..][..input].fill(f32::NAN);
    }
    let mut want_shrunk = vec![f32::NAN; adapters.len() * world.shape.num_modules() * MAX_RANK];
    lora_shrink(world.buffers(&row_slots), &x, &mut want_shrunk);
    let mut want = base.clone();
    lora_expand(world.buffers(&row_slots), &want_shrunk, &mut want);

    for kernels in kernels() {
        let shrunk = world.shrink(kernels, &row_slots, &x);
        // Written where the twin writes and nowhere else.
        assert!(shrunk.iter().zip(&want_shrunk).all(|(got, want)| got.is_nan() == want.is_nan()));
        let finite =
            |values: &[f32]| values.iter().copied().filter(|value| !value.is_nan()).collect::<Vec<_>>();
        assert_close("lora_shrink", &finite(&shrunk), &finite(&want_shrunk), 1e-12);
        let out = world.expand(kernels, &row_slots, &shrunk, &base);
        assert_close("lora_expand", &out, &want, 1e-12);

        for (row, id) in adapters.iter().enumerate() {
            let (slot, base) = (&row_slots[row..=row], &base[row * width..][..width]);
            let shrunk = world.shrink(kernels, slot, &x[row * input..][..input]);
            let alone = world.expand(kernels, slot, &shrunk, base);
            let together = &out[row * width..][..width];
            assert_same(&format!("row {row} of adapter {id}"), together, &alone);
            if *id == 0 {
                assert_same("a row without an adapter", together, base);
            }
        }
    }
}

const fn module(name: &'static str, input: u32, output: u32) -> LoraModule {
    LoraModule { name, input, output }
}

#[test]
fn rows_of_many_adapters_are_rows_alone() {
    let qkv = [module("q_proj", 896, 896), module("k_proj", 896, 128), module("v_proj", 896, 128)];
    let world = World::new(&qkv, &[8, 64, 16, 32, 5], &[(2, 1), (4, 0)]);
    check(&world, &[1, 0, 2, 3, 2, 4, 0, 5, 1]);
}

#[test]
fn shapes_that_fit_no_tile() {
    // Neither inputs nor outputs are multiples of anything that kernels count in.
    check(&World::new(&[module("q_proj", 1, 1)], &[1], &[]), &[1, 0]);
    check(
        &World::new(&[module("gate_proj", 515, 67), module("up_proj", 515, 130)], &[11, 33], &[(1, 1)]),
        &[2, 1, 0, 2],
    );
}

#[test]
fn an_adapter_that_went_leaves_nothing_behind() {
    let mut world = World::new(&[module("o_proj", 24, 40)], &[8, 8], &[]);
    let before = world.pool.clone();
    world.book.unload(1).unwrap();
    // Fewer ranks than the one before, in its slot.
    let (a, b) = (common::floats(1, 3 * 24), common::floats(2, 3 * 40));
    let pair = LoraMatrices { layer_idx: 0, module_idx: 0, rank: 3, a: &a, b: &b, scale: 1.0 };
    for upload in world.book.load(3, &[pair]).unwrap() {
        world.pool[upload.offset_bytes as usize / 4..][..upload.words.len()].copy_from_slice(&upload.words);
    }
    world.slots = world.book.table();
    assert_eq!(world.book.slot_of(3), Some(0));
    assert_ne!(before, world.pool);
    check(&world, &[3, 2, 0]);
}
