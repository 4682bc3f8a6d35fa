//! How many parameters a configuration asks for, before anything is built. Biases and norms, less than a thousandth,
//! are left out: the count is for telling what cannot fit. Convolutions may be held in more numbers than files have
//! (`tensor::ops::Conv2d::held`), so how many a 3x3 convolution of stride 1 takes is an argument.

use crate::encoder::{EncoderConfig, Level, MidBlockConfig};
use crate::{ClipTextConfig, ControlNetConfig, UNetConfig, VaeConfig};

/// Numbers of a 3x3 convolution of stride 1 from so many channels to so many.
type Conv<'a> = &'a dyn Fn(usize, usize) -> usize;

/// As files hold it.
fn plain(inputs: usize, outputs: usize) -> usize {
    9 * inputs * outputs
}

/// Two 3x3 convolutions, the time projection, and the way around where the width changes.
fn resnet(inputs: usize, outputs: usize, time: usize, conv: Conv) -> usize {
    let around = if inputs == outputs { 0 } else { inputs * outputs };
    conv(inputs, outputs) + conv(outputs, outputs) + time * outputs + around
}

/// `depth` blocks of self-attention, cross-attention and gated feed-forward, between two projections.
fn transformer(width: usize, context: usize, depth: usize) -> usize {
    depth * (4 * width * width + 2 * width * (width + context) + 12 * width * width) + 2 * width * width
}

/// Channels of all cross-attentions of a level.
fn attended(level: &Level) -> usize {
    level.width * level.attention.iter().flatten().sum::<usize>()
}

impl EncoderConfig {
    /// Residual blocks and attention of a level; `inputs` gives the width that enters each layer.
    fn level(&self, level: &Level, inputs: impl Fn(usize) -> usize, conv: Conv) -> usize {
        let resnets: usize = (0..level.layers).map(|i| resnet(inputs(i), level.width, self.time_embed_dim, conv)).sum();
        let depths = level.attention.iter().flatten();
        resnets + depths.map(|depth| transformer(level.width, self.cross_attention_dim, *depth)).sum::<usize>()
    }

    /// As [`UNetConfig::key_parameters`], of the way down and the middle.
    fn key_parameters(&self) -> usize {
        let mid = match (self.mid, self.levels.last()) {
            (MidBlockConfig::CrossAttention { depth, .. }, Some(level)) => depth * level.width,
            _ => 0,
        };
        2 * self.cross_attention_dim * (self.levels.iter().map(attended).sum::<usize>() + mid)
    }

    fn largest(&self) -> usize {
        self.levels.iter().map(|level| 9 * level.width * level.width).max().unwrap_or(0)
    }

    fn held(&self, conv: Conv) -> usize {
        let (first, time) = (self.levels.first().map_or(0, |level| level.width), self.time_embed_dim);
        let added = self.addition.as_ref().map_or(0, |added| time * (added.input_dim + time));
        let mut sum = self.in_channels * first * self.conv_in_kernel.pow(2) + time * (first + time) + added;
        let mut entering = first;
        for (i, level) in self.levels.iter().enumerate() {
            sum += self.level(level, |layer| if layer == 0 { entering } else { level.width }, conv);
            entering = level.width;
            sum += if i + 1 < self.levels.len() { 9 * entering * entering } else { 0 };
        }
        sum + match self.mid {
            MidBlockConfig::None => 0,
            MidBlockConfig::Resnet => resnet(entering, entering, time, conv),
            MidBlockConfig::CrossAttention { depth, .. } => {
                2 * resnet(entering, entering, time, conv) + transformer(entering, self.cross_attention_dim, depth)
            }
        }
    }
}

impl UNetConfig {
    /// Parameters, without biases and norms.
    pub fn parameters(&self) -> usize {
        self.held(&plain, &plain)
    }

    /// Numbers held where a 3x3 convolution of stride 1 takes `conv(inputs, outputs)` of them, one of a doubled picture
    /// `doubled(inputs, outputs)`.
    pub fn held(&self, conv: &dyn Fn(usize, usize) -> usize, doubled: &dyn Fn(usize, usize) -> usize) -> usize {
        let levels = &self.encoder.levels;
        let mut sum = self.encoder.held(conv);
        let mut below = levels.last().map_or(0, |level| level.width);
        for (i, level) in self.up.iter().enumerate() {
            let above = levels[levels.len().saturating_sub(i + 2)].width;
            let entering = |layer| {
                let entering = if layer == 0 { below } else { level.width };
                entering + if layer + 1 == level.layers { above } else { level.width }
            };
            sum += self.encoder.level(level, entering, conv);
            sum += if i + 1 < self.up.len() { doubled(level.width, level.width) } else { 0 };
            below = level.width;
        }
        sum + below * self.out_channels * self.conv_out_kernel.pow(2)
    }

    /// Parameters of an identity adapter's branch of this UNet: keys and values in every cross-attention.
    pub fn adapter_parameters(&self) -> usize {
        self.key_parameters()
    }

    /// Parameters of keys and values of the text in every cross-attention: needed once for a picture.
    pub fn key_parameters(&self) -> usize {
        let up = self.up.iter().map(attended).sum::<usize>();
        self.encoder.key_parameters() + 2 * self.encoder.cross_attention_dim * up
    }

    /// Parameters of the largest layer.
    pub fn largest(&self) -> usize {
        // The first layer on the way up takes the lowest level's result and what its own level kept.
        let first = self.up.first().map_or(0, |level| 9 * 2 * level.width * level.width);
        self.encoder.largest().max(first)
    }
}

impl ControlNetConfig {
    /// As [`UNetConfig::key_parameters`].
    pub fn key_parameters(&self) -> usize {
        self.encoder.key_parameters()
    }

    /// Parameters, without biases and norms.
    pub fn parameters(&self) -> usize {
        self.held(&plain)
    }

    /// As [`UNetConfig::held`].
    pub fn held(&self, conv: &dyn Fn(usize, usize) -> usize) -> usize {
        let levels = &self.encoder.levels;
        let Some((first, last)) = levels.first().zip(levels.last()) else { return 0 };
        let widths = &self.conditioning_embedding_out_channels;
        let pairs: usize = widths.windows(2).map(|pair| 9 * pair[0] * (pair[0] + pair[1])).sum();
        let ends = 9 * (self.conditioning_channels * widths[0] + widths[widths.len() - 1] * first.width);
        let zero: usize = levels
            .iter()
            .enumerate()
            .map(|(i, level)| level.width.pow(2) * (level.layers + usize::from(i + 1 < levels.len())))
            .sum();
        self.encoder.held(conv) + pairs + ends + zero + first.width.pow(2) + last.width.pow(2)
    }
}

impl VaeConfig {
    /// Parameters of both halves, without biases and norms.
    pub fn parameters(&self) -> usize {
        let widths = &self.block_out_channels;
        let Some((first, last)) = widths.first().zip(widths.last()) else { return 0 };
        let attention = if self.mid_block_add_attention { 4 * last * last } else { 0 };
        let way = |widths: &mut dyn Iterator<Item = &usize>, layers: usize, entering: usize| -> usize {
            let mut entering = entering;
            let sum = widths.map(|&width| {
                let sum = resnet(entering, width, 0, &plain)
                    + (layers - 1) * resnet(width, width, 0, &plain)
                    + 9 * width * width;
                entering = width;
                sum
            });
            sum.sum()
        };
        let down = way(&mut widths.iter(), self.layers_per_block, *first) - 9 * last * last;
        let up = way(&mut widths.iter().rev(), self.layers_per_block + 1, *last) - 9 * first * first;
        let ends = 9 * (first * (self.in_channels + self.out_channels) + 3 * last * self.latent_channels);
        down + up + 2 * (2 * resnet(*last, *last, 0, &plain) + attention) + ends
    }
}

impl ClipTextConfig {
    /// Parameters, without biases and norms.
    pub fn parameters(&self) -> usize {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let layer = 4 * width * width + 2 * width * inner;
        let tables = width * (self.vocab_size + self.max_position_embeddings + self.projection_dim.unwrap_or(0));
        self.num_hidden_layers * layer + tables
    }
}
