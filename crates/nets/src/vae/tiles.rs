//! Large pictures in tiles: each overlaps its neighbours above and to the left and is blended with them there.
//!
//! Which tiles there are and how they are blended is diffusers' way (`AutoencoderKL.tiled_decode`), so that results
//! agree. Only two rows of tiles are held at a time.

use super::MODEL;
use crate::Result;
use crate::error::input;
use tensor::{DType, Tensor, ops};

/// Sizes of tiles before and after the network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tiles {
    tile: usize,
    step: usize,
    /// Rows or columns of the result that are blended.
    blend: usize,
    /// Rows or columns of the result that a tile gives.
    keep: usize,
}

/// The network's result for one tile, on the host.
struct Tile {
    values: Vec<f32>,
    h: usize,
    w: usize,
    c: usize,
}

impl Tiles {
    pub(crate) fn new(tile: usize, overlap: usize, tile_out: usize, overlap_out: usize) -> Result<Tiles> {
        if tile == 0 || overlap >= tile {
            return Err(input(MODEL, "the overlap of tiles", overlap, format!("less than their size, {tile}")));
        }
        Ok(Tiles { tile, step: tile - overlap, blend: overlap_out, keep: tile_out - overlap_out })
    }

    /// Whether one tile holds all of `x [b, h, w, c]`.
    pub(crate) fn fits(&self, x: &Tensor) -> bool {
        x.dim(1) <= self.tile && x.dim(2) <= self.tile
    }
}

/// Runs `network` over tiles of `x [b, h, w, c]` and puts the results together, `[b, H, W, C]` in f32.
pub(crate) fn run(x: &Tensor, sizes: Tiles, network: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let pictures = (0..x.dim(0)).map(|i| one(&x.rows(i, 1)?, sizes, &network)).collect::<Result<Vec<_>>>()?;
    Ok(ops::concat_rows(&pictures.iter().collect::<Vec<_>>())?)
}

fn one(x: &Tensor, sizes: Tiles, network: &impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let [_, h, w, _] = x.dims4()?;
    // The result, row by row of the picture; its width is known after the first row of tiles.
    let mut rows: Vec<Vec<f32>> = Vec::new();
    let mut above: Vec<Tile> = Vec::new();
    let mut channels = 0;
    for y in (0..h).step_by(sizes.step) {
        let mut row: Vec<Tile> = Vec::new();
        for left in (0..w).step_by(sizes.step) {
            let part = ops::crop(x, y, left, sizes.tile.min(h - y), sizes.tile.min(w - left))?;
            let result = network(&part)?;
            let [_, th, tw, c] = result.dims4()?;
            let mut tile = Tile { values: result.to_vec_f32()?, h: th, w: tw, c };
            if let Some(upper) = above.get(row.len()) {
                tile.blend_below(upper, sizes.blend);
            }
            if let Some(before) = row.last() {
                tile.blend_right_of(before, sizes.blend);
            }
            row.push(tile);
        }
        let height = row.iter().map(|tile| tile.h).min().unwrap_or(0).min(sizes.keep);
        for y in 0..height {
            rows.push(row.iter().flat_map(|tile| tile.line(y, tile.w.min(sizes.keep))).copied().collect());
        }
        channels = row.first().map_or(channels, |tile| tile.c);
        above = row;
    }
    let width = rows.first().map_or(0, Vec::len) / channels.max(1);
    Ok(Tensor::from_f32(x.device(), DType::F32, &[1, rows.len(), width, channels], &rows.concat())?)
}

impl Tile {
    /// The first `width` pixels of line `y`.
    fn line(&self, y: usize, width: usize) -> &[f32] {
        &self.values[y * self.w * self.c..][..width * self.c]
    }

    /// Fades from the lower lines of `upper` into the upper lines of this tile.
    fn blend_below(&mut self, upper: &Tile, extent: usize) {
        let extent = extent.min(upper.h).min(self.h);
        let width = upper.w.min(self.w) * self.c;
        for y in 0..extent {
            let share = y as f32 / extent as f32;
            let from = &upper.values[(upper.h - extent + y) * upper.w * self.c..][..width];
            let to = &mut self.values[y * self.w * self.c..][..width];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * (1.0 - share) + *to * share);
        }
    }

    /// Fades from the right columns of `before` into the left columns of this tile.
    fn blend_right_of(&mut self, before: &Tile, extent: usize) {
        let extent = extent.min(before.w).min(self.w);
        for y in 0..self.h.min(before.h) {
            for x in 0..extent {
                let share = x as f32 / extent as f32;
                let from = &before.values[(y * before.w + before.w - extent + x) * self.c..][..self.c];
                let to = &mut self.values[(y * self.w + x) * self.c..][..self.c];
                to.iter_mut().zip(from).for_each(|(to, from)| *to = from * (1.0 - share) + *to * share);
            }
        }
    }
}
