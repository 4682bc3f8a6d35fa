//! Every network against the reference library, in every type in which the device computes.

mod common;

use common::*;
use nets::*;

/// Runs `case` for every fixture and precision, and asks that it used every tensor of the file.
fn each(names: &[&'static str], case: impl Fn(&Fixture, Numbers, f64)) {
    for name in names {
        // A failure in one type does not hide the others.
        let run = |(numbers, tolerance): &(Numbers, f64)| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let f = Fixture::open(name);
                case(&f, *numbers, *tolerance);
                assert_eq!(f.weights.unused(), [""; 0], "{name}: tensors not used");
            }))
            .is_err()
        };
        let failed: Vec<_> = precisions().into_iter().filter(run).collect();
        assert!(failed.is_empty(), "{name} fails in {failed:?} on {}", device());
    }
}

#[test]
fn unets() {
    each(&["unet_sdxl_a", "unet_sdxl_b", "unet_sd15"], |f, numbers, tolerance| {
        let unet = unet(f, numbers);
        f.agrees("sample", &unet_sample(f, &unet), numbers, tolerance);
    });
}

#[test]
fn unet_with_identity_and_residuals() {
    each(&["unet_identity"], |f, numbers, tolerance| {
        let mut unet = unet(f, numbers);
        unet.attach_identity(&f.scope().push("ip_adapter")).unwrap();
        let context = unet.context(&f.input("text"), Some(&f.input("identity")), f.added().as_ref()).unwrap();
        let residuals = Residuals { down: f.inputs("down"), mid: f.input("mid"), scale: 1.0 };
        let (latent, t, scale) = (f.input("latent"), f.number("timestep"), f.number("identity_scale"));
        let both = unet.forward(&latent, t, &context, scale, Some(&residuals)).unwrap();
        f.agrees("sample", &both, numbers, tolerance);
        let alone = unet.forward(&latent, t, &context, scale, None).unwrap();
        f.agrees("identity_alone", &alone, numbers, tolerance);
    });
}

#[test]
fn controlnets() {
    each(&["controlnet_sdxl", "controlnet_sd15"], |f, numbers, tolerance| {
        let config = ControlNetConfig::from_json(&f.config).unwrap();
        let net = ControlNet::load(&f.scope(), &config, &device(), numbers).unwrap();
        let context = net.context(&f.input("tokens"), f.added().as_ref(), &f.input("hint")).unwrap();
        let residuals = net.forward(&f.input("latent"), f.number("timestep"), &context, f.number("scale")).unwrap();
        for (i, down) in residuals.down.iter().enumerate() {
            f.agrees(&format!("down.{i}"), &tensor::ops::scale(down, residuals.scale).unwrap(), numbers, tolerance);
        }
        f.agrees("mid", &tensor::ops::scale(&residuals.mid, residuals.scale).unwrap(), numbers, tolerance);
    });
}

#[test]
fn resamplers() {
    each(&["resampler_a", "resampler_b"], |f, numbers, tolerance| {
        let config = ResamplerConfig::infer(&f.scope(), Some(&f.config)).unwrap();
        let net = Resampler::load(&f.scope(), &config, &device(), numbers).unwrap();
        f.agrees("tokens", &net.forward(&f.input("embedding")).unwrap(), numbers, tolerance);
    });
}

#[test]
fn text_encoders() {
    each(&["clip_plain", "clip_prefixed", "clip_projection"], |f, numbers, tolerance| {
        let config = ClipTextConfig::from_json(&f.config, &f.scope()).unwrap();
        let net = ClipText::load(&f.scope(), &config, &device(), numbers).unwrap();
        let ids: Vec<Vec<u32>> = serde_json::from_value(f.case["ids"].clone()).unwrap();
        let layers = config.num_hidden_layers;
        for skip in 0..=layers {
            let out = net.forward(&ids, skip).unwrap();
            f.agrees(&format!("hidden.{}", layers - skip), &out.hidden, numbers, tolerance);
            f.agrees("last", &out.last, numbers, tolerance);
            f.agrees("pooled", &out.pooled, numbers, tolerance);
        }
        let hidden = net.forward(&ids, 0).unwrap().hidden;
        f.agrees("last", &net.final_norm(&hidden).unwrap(), numbers, tolerance);
    });
}

#[test]
fn autoencoders() {
    each(&["vae_sdxl", "vae_old", "vae_plain"], |f, numbers, tolerance| {
        let net = Vae::load(&f.scope(), &VaeConfig::from_json(&f.config).unwrap(), &device(), numbers).unwrap();
        let moments = net.encode(&f.input("image")).unwrap();
        f.agrees("mean", &moments.mean, numbers, tolerance);
        f.agrees("logvar", &moments.logvar, numbers, tolerance);
        f.agrees("image", &net.decode(&f.input("latent")).unwrap(), numbers, tolerance);
        let (tile, overlap) = (f.size("tile"), f.size("overlap"));
        f.agrees("tiled", &net.decode_tiled(&f.input("tiled"), tile, overlap).unwrap(), numbers, tolerance);
        let moments = net.encode_tiled(&f.input("tiled_image"), tile, overlap).unwrap();
        f.agrees("tiled_mean", &moments.mean, numbers, tolerance);
        // A tile that holds the whole picture is the picture.
        let latent = f.input("latent");
        let plain = net.decode(&latent).unwrap();
        assert_eq!(bits(&net.decode_tiled(&latent, 64, 16).unwrap()), bits(&plain), "{}", f.name);
    });
}
