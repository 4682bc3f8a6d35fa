//! Fixtures that `reference/nets.py` wrote, and what tests ask of them.

#![allow(dead_code)] // Each test file uses a part.

#[path = "../../../tensor/tests/device/mod.rs"]
mod device;

pub(crate) use device::device;
use nets::*;
use serde_json::Value;
use std::path::Path;
use tensor::ops::Products;
use tensor::{DType, Device, Tensor};
use weights::{Scope, Weights};

/// Numbers with which the device computes and the relative error that the project promises in each.
pub(crate) fn precisions() -> Vec<(Numbers, f64)> {
    let in_parts = Numbers { dtype: DType::F32, products: Products::InParts };
    let mut all = vec![(DType::F32.into(), 1e-4), (in_parts, 1e-4), (DType::BF16.into(), 2e-2)];
    if device() != Device::Cpu {
        all.push((DType::F16.into(), 2e-2));
    }
    all
}

/// Named tensors with their values.
pub(crate) type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// One file: a network's weights and configuration, inputs, and the outputs of the reference library.
pub(crate) struct Fixture {
    pub(crate) name: &'static str,
    all: Weights,
    pub(crate) weights: Weights,
    pub(crate) config: Value,
    pub(crate) case: Value,
}

impl Fixture {
    pub(crate) fn open(name: &'static str) -> Fixture {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name).with_extension("safetensors");
        let all = Weights::open(&path).unwrap();
        let told: Value = serde_json::from_str(&all.metadata()["fixture"]).unwrap();
        let (config, case) = (told["config"].clone(), told["case"].clone());
        Fixture { name, weights: all.select("w"), config, case, all }
    }

    pub(crate) fn scope(&self) -> Scope {
        self.weights.root()
    }

    pub(crate) fn number(&self, key: &str) -> f32 {
        self.case[key].as_f64().unwrap() as f32
    }

    pub(crate) fn size(&self, key: &str) -> usize {
        self.case[key].as_u64().unwrap() as usize
    }

    pub(crate) fn try_input(&self, name: &str) -> Option<Tensor> {
        let view = self.all.root().get_any(&format!("in.{name}")).ok()?;
        Some(Tensor::from_f32(&device(), DType::F32, view.shape(), &view.to_f32().unwrap()).unwrap())
    }

    pub(crate) fn input(&self, name: &str) -> Tensor {
        self.try_input(name).unwrap_or_else(|| panic!("{}: no input {name}", self.name))
    }

    /// Inputs `{name}.0`, `{name}.1` and so on.
    pub(crate) fn inputs(&self, name: &str) -> Vec<Tensor> {
        (0..).map_while(|i| self.try_input(&format!("{name}.{i}"))).collect()
    }

    pub(crate) fn added(&self) -> Option<Added> {
        let ids = self.try_input("time_ids")?.to_vec_f32().unwrap();
        let time_ids = ids.chunks_exact(6).map(|row| row.try_into().unwrap()).collect();
        Some(Added { pooled: self.input("pooled"), time_ids })
    }

    /// The result must have the reference's shape and, in relative norm, agree within `tolerance`.
    pub(crate) fn agrees(&self, output: &str, got: &Tensor, numbers: impl Into<Numbers>, tolerance: f64) {
        let numbers = numbers.into();
        let view = self.all.root().get_any(&format!("out.{output}")).unwrap();
        assert_eq!(got.shape(), view.shape(), "{} {output}", self.name);
        let (got, expected) = (got.to_vec_f32().unwrap(), view.to_f32().unwrap());
        let square = |x: f32| f64::from(x) * f64::from(x);
        let difference: f64 = got.iter().zip(&expected).map(|(a, b)| square(a - b)).sum();
        let norm: f64 = expected.iter().map(|&x| square(x)).sum();
        let error = (difference / norm).sqrt();
        println!("{} {output} {numbers}: {error:.2e}", self.name);
        assert!(
            error <= tolerance,
            "{} {output} in {numbers}: relative error {error:.2e}, at most {tolerance:.0e}",
            self.name
        );
    }

    /// The weights as lists, to be changed and built anew.
    pub(crate) fn tensors(&self, prefix: &str) -> Tensors {
        let part = self.weights.select(prefix);
        let root = part.root();
        let read = |name: &&str| {
            let view = root.get_any(name).unwrap();
            (name.to_string(), view.shape().to_vec(), view.to_f32().unwrap())
        };
        part.names().iter().map(read).collect()
    }
}

pub(crate) fn unet(f: &Fixture, numbers: impl Into<Numbers>) -> UNet {
    UNet::load(&f.scope(), &UNetConfig::from_json(&f.config).unwrap(), &device(), numbers).unwrap()
}

/// The file's own request without identity and residuals.
pub(crate) fn unet_sample(f: &Fixture, unet: &UNet) -> Tensor {
    let mut context = unet.context(&f.input("text"), None, f.added().as_ref()).unwrap();
    if let Some(guidance) = f.case.get("guidance") {
        unet.set_guidance(&mut context, guidance.as_f64().unwrap() as f32).unwrap();
    }
    unet.forward(&f.input("latent"), f.number("timestep"), &context, 1.0, None).unwrap()
}

/// The numbers' bits.
pub(crate) fn bits(x: &Tensor) -> Vec<u32> {
    x.to_vec_f32().unwrap().into_iter().map(f32::to_bits).collect()
}
