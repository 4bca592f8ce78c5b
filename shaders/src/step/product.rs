//! Products of a step's rows with matrices: which kernels, for how many rows, on which parts of a matrix.

use super::dispatch::{Grid, Op, When, variants};
use super::halves::Halves;
use super::inputs::Copied;
use super::plan::Builder;
use crate::buffers::Buffer;
use crate::error::DeviceError;
use crate::model::{Matrix, Placed, Shard};
use crate::texels::Texels;

/// Flags of `matmul`.
const ADD_BIAS: u32 = 1;
pub(super) const ADD_TO_OUT: u32 = 2;

/// Where a product's columns come from and go to.
pub(super) struct Product<'a> {
    pub x: &'a Buffer,
    /// Where matrices in textures read it.
    pub texels: Option<&'a Texels>,
    /// Where cooperative matrices read it, in steps of many rows.
    pub halves: Option<&'a Halves>,
    pub out: &'a Buffer,
    pub out_stride: u32,
    pub columns_at: u32,
}

impl Builder<'_> {
    /// Products with matrices whose results stand side by side.
    pub fn placed(
        &self,
        placed: &[Placed],
        product: &Product<'_>,
        ops: &mut Vec<Op>,
    ) -> Result<(), DeviceError> {
        for part in placed {
            let flags = if part.bias.is_some() { ADD_BIAS } else { 0 };
            ops.extend(self.matmul(&part.matrix, product, part.bias.as_ref(), part.out_base, flags)?);
        }
        Ok(())
    }

    /// A matrix's products: few columns at a time, or many where there are many.
    pub fn matmul(
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
        let variants = variants(share == "1", in_texels == "1");
        let mut kernels = Vec::new();
        for variant in variants {
            let (quant, cols) = (("QUANT", matrix.format.axis), variant.cols.to_string());
            let texels = ("TEXELS", in_texels);
            kernels.push(match variant.is_tile {
                true => self.kernel("matmul_tile", &[quant, texels])?,
                false => self.kernel("matmul", &[quant, ("COLS", &cols), ("SHARE", share), texels])?,
            });
        }
        let mut ops = Vec::new();
        for shard in &matrix.shards {
            let (params, mut bindings) = self.product_on(matrix, shard, product, bias, out_base, flags);
            bindings.push(("x", x.clone()));
            let grid = Grid::Product(shard.num_panels(), variants);
            ops.push(self.op(kernels.clone(), &params, &bindings, grid)?);
        }
        ops[0].copied = texels.map(|texels| Copied { from: product.x.clone(), to: texels.clone() });
        let Some(halves) = product.halves else { return Ok(ops) };
        for op in &mut ops {
            op.when = When::FewRows;
        }
        for shard in &matrix.shards {
            let (params, mut bindings) = self.product_on(matrix, shard, product, bias, out_base, flags);
            bindings.extend(halves.bindings());
            let kernel = self.kernel("matmul_coop", &halves.axes(matrix.format))?;
            let grid = Grid::Tiles { panels: shard.num_panels(), panels_each: 8, cols_each: Halves::COLS };
            let op = self.op(vec![kernel], &params, &bindings, grid)?;
            ops.push(Op { when: When::ManyRows, ..op });
        }
        Ok(ops)
    }

    /// Parameters and bindings that all kernels have that multiply a part of a matrix.
    fn product_on<'b>(
        &'b self,
        matrix: &Matrix,
        shard: &'b Shard,
        product: &Product<'b>,
        bias: Option<&'b Buffer>,
        out_base: u32,
        flags: u32,
    ) -> ([u32; 9], Vec<(&'static str, wgpu::BindingResource<'b>)>) {
        let params = [
            matrix.num_groups,
            shard.num_panels(),
            shard.num_rows,
            matrix.num_groups * 8,
            out_base + shard.first_row,
            product.out_stride,
            product.columns_at,
            shard.first_row,
            flags,
        ];
        let bindings = vec![
            ("quants", shard.quants.whole()),
            ("highs", shard.highs.whole()),
            ("scales", shard.scales.whole()),
            ("bias", bias.unwrap_or(&self.memory.none).whole()),
            ("out", product.out.whole()),
        ];
        (params, bindings)
    }

    /// What products of many rows read in place of `product`'s columns, where they do.
    pub fn halve(&self, product: &Product<'_>, width: u32, ops: &mut Vec<Op>) -> Result<(), DeviceError> {
        let Some(halves) = product.halves else { return Ok(()) };
        let bindings: Vec<_> = halves.bindings().into_iter().chain([("x", product.x.whole())]).collect();
        let op = self.op(vec![self.kernel("halve", &[])?], &[width / 4], &bindings, Grid::Rows(1))?;
        ops.push(Op { when: When::ManyRows, ..op });
        Ok(())
    }
}
