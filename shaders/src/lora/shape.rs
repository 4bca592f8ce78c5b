//! What the LoRA kernels are told of the modules that one dispatch serves.

use super::{LoraBook, UNIT};

/// Modules in one dispatch: Q, K and V read the same input.
pub const MAX_MODULES: usize = 3;

/// Words in [`LoraShape::words`].
pub const SHAPE_WORDS: usize = 4 + 4 * MAX_MODULES;

/// Modules that read the same input and write to the same rows. The same for all layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraShape {
    /// Length of a row of the input.
    pub input: u32,
    /// Length of a row that outputs are added to.
    pub out_width: u32,
    pub(crate) modules: Vec<PlacedModule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlacedModule {
    /// See [`LoraBook::module_start`].
    pub start: u32,
    /// Its position in the book.
    pub module_idx: u32,
    pub first_column: u32,
    pub output: u32,
}

impl LoraBook {
    /// The shape of a dispatch for these modules, given with the column of `out_width` that the output of
    /// each begins at.
    ///
    /// # Panics
    /// When there are none or more than [`MAX_MODULES`], when their inputs differ in length, or when an
    /// output goes past the row.
    #[must_use]
    pub fn shape(&self, modules: &[(u32, u32)], out_width: u32) -> LoraShape {
        assert!((1..=MAX_MODULES).contains(&modules.len()), "one to {MAX_MODULES} modules share an input");
        let input = self.modules[modules[0].0 as usize].input;
        let place = |&(module_idx, first_column): &(u32, u32)| {
            let module = self.modules[module_idx as usize];
            assert_eq!(module.input, input, "modules of one dispatch read the same input");
            assert!(first_column + module.output <= out_width, "{} ends past the row", module.name);
            let start = self.module_start(module_idx);
            PlacedModule { start, module_idx, first_column, output: module.output }
        };
        LoraShape { input, out_width, modules: modules.iter().map(place).collect() }
    }
}

impl LoraShape {
    /// How many modules there are.
    #[must_use]
    pub fn num_modules(&self) -> usize {
        self.modules.len()
    }

    /// The input's length as it is stored, in units of eight values.
    pub(crate) fn input_units(&self) -> u32 {
        self.input.div_ceil(UNIT)
    }

    /// The kernels' uniform.
    #[must_use]
    pub fn words(&self) -> [u32; SHAPE_WORDS] {
        let mut words = [0; SHAPE_WORDS];
        let head = [self.input, self.input_units(), self.out_width, self.modules.len() as u32];
        words[..4].copy_from_slice(&head);
        for (place, module) in words[4..].as_chunks_mut::<4>().0.iter_mut().zip(&self.modules) {
            *place = [module.start, module.module_idx, module.first_column, module.output];
        }
        words
    }
}
