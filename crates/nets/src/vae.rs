//! The autoencoder between pictures and latents (arXiv:2112.10752; diffusers' `AutoencoderKL`).

mod blocks;
mod config;
mod tiles;

pub use config::VaeConfig;

use crate::error::input;
use crate::load::Loader;
use crate::{Numbers, Result};
use blocks::{Decoder, Encoder};
use tensor::ops::{self, Linear};
use tensor::{DType, Device, Tensor};
use weights::Scope;

const MODEL: &str = "VAE";

/// Pictures to latents and back.
pub struct Vae {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Linear>,
    post_quant_conv: Option<Linear>,
    config: VaeConfig,
    dtype: DType,
}

/// The encoder's normal distribution, f32, each `[b, h, w, latent_channels]`.
#[derive(Debug, Clone)]
pub struct Moments {
    /// The mean, which is the latent where no noise is wanted.
    pub mean: Tensor,
    /// The logarithm of the variance, within -30 and 20.
    pub logvar: Tensor,
}

impl Moments {
    /// The mean plus the deviation times `noise` of the same shape.
    ///
    /// # Errors
    /// Another shape, no memory.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        if noise.shape() != self.mean.shape() {
            return Err(input(MODEL, "the noise", noise.shape(), format!("{:?}", self.mean.shape())));
        }
        let parts = (self.mean.to_vec_f32()?, self.logvar.to_vec_f32()?, noise.to_vec_f32()?);
        let triples = parts.0.iter().zip(&parts.1).zip(&parts.2);
        let values: Vec<f32> = triples.map(|((mean, logvar), noise)| mean + (0.5 * logvar).exp() * noise).collect();
        Ok(Tensor::from_f32(self.mean.device(), DType::F32, self.mean.shape(), &values)?)
    }
}

impl Vae {
    /// Builds the network from its tensors; the middle's attention may have its old names (`query`, `proj_attn`).
    ///
    /// # Errors
    /// As [`crate::UNet::load`].
    pub fn load(scope: &Scope, config: &VaeConfig, device: &Device, numbers: impl Into<Numbers>) -> Result<Vae> {
        config.check()?;
        let at = Loader::new(scope, device, numbers);
        let channels = config.latent_channels;
        // A handful of channels: f32 costs nothing and keeps the latent's last bits.
        let square = |name: &str, width: usize| at.push(name).in_f32().linear(width, width, true);
        Ok(Vae {
            encoder: Encoder::load(&at.push("encoder"), config)?,
            decoder: Decoder::load(&at.push("decoder"), config)?,
            quant_conv: config.use_quant_conv.then(|| square("quant_conv", 2 * channels)).transpose()?,
            post_quant_conv: config.use_post_quant_conv.then(|| square("post_quant_conv", channels)).transpose()?,
            config: config.clone(),
            dtype: at.numbers.dtype,
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// `image [b, H, W, 3]` with values from -1 to 1 -> the latent's distribution, [`VaeConfig::zoom`] times smaller.
    ///
    /// # Errors
    /// A shape that does not fit, no memory.
    pub fn encode(&self, image: &Tensor) -> Result<Moments> {
        self.check("the image", image, self.config.in_channels, self.config.zoom())?;
        self.moments(self.encode_plain(image)?)
    }

    /// As [`Vae::encode`], in overlapping tiles of `tile` latent pixels that share `overlap` with their neighbours.
    ///
    /// # Errors
    /// As [`Vae::encode`]; an overlap that is not smaller than the tile.
    pub fn encode_tiled(&self, image: &Tensor, tile: usize, overlap: usize) -> Result<Moments> {
        let zoom = self.config.zoom();
        self.check("the image", image, self.config.in_channels, zoom)?;
        let sizes = tiles::Tiles::new(tile * zoom, overlap * zoom, tile, overlap)?;
        if sizes.fits(image) {
            return self.encode(image);
        }
        self.moments(tiles::run(image, sizes, |tile| self.encode_plain(tile))?)
    }

    fn encode_plain(&self, image: &Tensor) -> Result<Tensor> {
        let x = self.encoder.forward(&image.cast(self.dtype)?)?.cast(DType::F32)?;
        Ok(match &self.quant_conv {
            Some(conv) => conv.forward(&x)?,
            None => x,
        })
    }

    fn moments(&self, both: Tensor) -> Result<Moments> {
        let mut halves = ops::split_last(&both, 2)?.into_iter();
        let (Some(mean), Some(logvar)) = (halves.next(), halves.next()) else {
            return Err(input(MODEL, "the encoder's result", both.shape(), "two halves"));
        };
        let clamped: Vec<f32> = logvar.to_vec_f32()?.into_iter().map(|x| x.clamp(-30.0, 20.0)).collect();
        Ok(Moments { logvar: Tensor::from_f32(mean.device(), DType::F32, mean.shape(), &clamped)?, mean })
    }

    /// `latent [b, h, w, latent_channels]` as [`Vae::to_decoder`] gives it -> `[b, H, W, 3]` in f32, about -1 to 1.
    ///
    /// # Errors
    /// A shape that does not fit, no memory.
    pub fn decode(&self, latent: &Tensor) -> Result<Tensor> {
        self.check("the latent", latent, self.config.latent_channels, 1)?;
        let latent = match &self.post_quant_conv {
            Some(conv) => conv.forward(&latent.cast(DType::F32)?)?,
            None => latent.clone(),
        };
        Ok(self.decoder.forward(&latent.cast(self.dtype)?)?.cast(DType::F32)?)
    }

    /// As [`Vae::decode`], in overlapping tiles of `tile` latent pixels that share `overlap` with their neighbours and
    /// are blended there: memory for one tile instead of the picture, and colours that may differ a little between
    /// tiles. diffusers takes 64 and 16 for pictures of 512, 128 and 32 for those of 1024.
    ///
    /// # Errors
    /// As [`Vae::decode`]; an overlap that is not smaller than the tile.
    pub fn decode_tiled(&self, latent: &Tensor, tile: usize, overlap: usize) -> Result<Tensor> {
        self.check("the latent", latent, self.config.latent_channels, 1)?;
        let zoom = self.config.zoom();
        let sizes = tiles::Tiles::new(tile, overlap, tile * zoom, overlap * zoom)?;
        if sizes.fits(latent) {
            return self.decode(latent);
        }
        tiles::run(latent, sizes, |tile| self.decode(tile))
    }

    /// From the diffusion's latent to the decoder's: undoes scaling, and shift or channel statistics where the model
    /// has them.
    ///
    /// # Errors
    /// No memory.
    pub fn to_decoder(&self, latent: &Tensor) -> Result<Tensor> {
        self.config.to_decoder(latent)
    }

    /// From the encoder's latent to the diffusion's.
    ///
    /// # Errors
    /// No memory.
    pub fn to_diffusion(&self, latent: &Tensor) -> Result<Tensor> {
        self.config.to_diffusion(latent)
    }

    fn check(&self, what: &'static str, x: &Tensor, channels: usize, least: usize) -> Result<()> {
        match *x.shape() {
            [b, h, w, c] if b > 0 && h >= least && w >= least && c == channels => Ok(()),
            _ => Err(input(
                MODEL,
                what,
                x.shape(),
                format!("[rows, height, width, {channels}] of at least {least}x{least}"),
            )),
        }
    }
}
