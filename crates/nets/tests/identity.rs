//! The identity branch, and what is refused where adapters, contexts and inputs do not fit.

mod common;

use common::*;
use nets::*;
use tensor::{DType, Tensor};
use weights::Weights;

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(&device(), DType::F32, shape).unwrap()
}

/// The fixture's UNet with its adapter.
fn with_adapter(f: &Fixture, numbers: impl Into<Numbers>) -> UNet {
    let mut unet = unet(f, numbers);
    unet.attach_identity(&f.scope().push("ip_adapter")).unwrap();
    unet
}

#[test]
fn weights_of_zero_give_the_bytes_of_none() {
    for (numbers, _) in precisions() {
        let f = Fixture::open("unet_identity");
        let expected = bits(&unet_sample(&f, &unet(&f, numbers)));
        let unet = with_adapter(&f, numbers);
        let (latent, t, added) = (f.input("latent"), f.number("timestep"), f.added());
        let text = f.input("text");
        let without = unet.context(&text, None, added.as_ref()).unwrap();
        assert_eq!(bits(&unet.forward(&latent, t, &without, 0.8, None).unwrap()), expected);
        let context = unet.context(&text, Some(&f.input("identity")), added.as_ref()).unwrap();
        assert_eq!(bits(&unet.forward(&latent, t, &context, 0.0, None).unwrap()), expected);
        let residuals = Residuals { down: f.inputs("down"), mid: f.input("mid"), scale: 0.0 };
        assert_eq!(bits(&unet.forward(&latent, t, &context, 0.0, Some(&residuals)).unwrap()), expected);
        // And with a weight it is another picture, the same one each time.
        let some = bits(&unet.forward(&latent, t, &context, 0.5, None).unwrap());
        assert_ne!(some, expected);
        assert_eq!(some, bits(&unet.forward(&latent, t, &context, 0.5, None).unwrap()));
    }
}

/// The residuals' scale weighs them as the ControlNet's own would.
#[test]
fn scale_weighs_residuals() {
    let f = Fixture::open("unet_identity");
    let unet = unet(&f, DType::F32);
    let context = unet.context(&f.input("text"), None, f.added().as_ref()).unwrap();
    let run = |residuals: Residuals| unet.forward(&f.input("latent"), 7.0, &context, 0.0, Some(&residuals)).unwrap();
    let half = |x: &Tensor| tensor::ops::scale(x, 0.5).unwrap();
    let weighed = run(Residuals { down: f.inputs("down"), mid: f.input("mid"), scale: 0.5 });
    let down = f.inputs("down").iter().map(half).collect();
    assert_eq!(bits(&weighed), bits(&run(Residuals { down, mid: half(&f.input("mid")), scale: 1.0 })));
}

#[test]
fn adapters_of_other_unets_are_refused() {
    let f = Fixture::open("unet_identity");
    let own = f.tensors("ip_adapter");
    let refusal = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = own.clone();
        change(&mut tensors);
        let mut unet = unet(&f, DType::F32);
        let weights = Weights::from_f32("adapter.bin", tensors).unwrap();
        let error = unet.attach_identity(&weights.root()).unwrap_err().to_string();
        assert!(!unet.has_identity());
        error
    };
    let layers = own.len() / 2;
    let last = 2 * layers - 1;
    type Change<'a> = &'a dyn Fn(&mut Tensors);
    let rows: [(Change<'_>, String); 5] = [
        (
            &|t| t.clear(),
            format!(
                "the identity adapter in adapter.bin does not fit this UNet: it is for 0 text cross-attentions and the UNet has {layers}; `1.to_k_ip.weight` is missing"
            ),
        ),
        (
            &|t| t.retain(|(name, ..)| !name.starts_with("3.")),
            format!(
                "it is for {} text cross-attentions and the UNet has {layers}; `3.to_k_ip.weight` is missing",
                layers - 1
            ),
        ),
        (
            &|t| t.push((format!("{}.to_k_ip.weight", last + 2), vec![1], vec![0.0])),
            format!("it is for {} text cross-attentions and the UNet has {layers}", layers + 1),
        ),
        (
            &|t| t.retain(|(name, ..)| name != "1.to_v_ip.weight"),
            "`1.to_v_ip.weight` is missing from adapter.bin; this model needs it as [16, 18]".into(),
        ),
        (&|t| t[0].1.reverse(), "`1.to_k_ip.weight` in adapter.bin is [18, 16]; this model needs [16, 18]".into()),
    ];
    for (row, expected) in rows {
        let message = refusal(row);
        assert!(message.contains(&expected), "{message}\nnot: {expected}");
    }
}

#[test]
fn wrong_tensors_are_named() {
    let f = Fixture::open("unet_identity");
    let config = UNetConfig::from_json(&f.config).unwrap();
    let load = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = f.tensors("");
        change(&mut tensors);
        let weights = Weights::from_f32("unet.safetensors", tensors).unwrap();
        UNet::load(&weights.root(), &config, &device(), DType::F32).err().unwrap().to_string()
    };
    let norm = "mid_block.attentions.0.norm.weight";
    let find = |t: &mut Tensors| t.iter().position(|(name, ..)| name == norm).unwrap();
    let renamed = load(&|t| {
        let i = find(t);
        t[i].0 = "mid_block.attentions.0.norme.weight".into();
    });
    assert_eq!(
        renamed,
        "`mid_block.attentions.0.norm.weight` is missing from unet.safetensors; this model needs it as [16]"
    );
    let reshaped = load(&|t| {
        let i = find(t);
        t[i].1 = vec![8, 2];
    });
    assert_eq!(reshaped, "`mid_block.attentions.0.norm.weight` in unet.safetensors is [8, 2]; this model needs [16]");
    let damaged = load(&|t| {
        let i = find(t);
        t[i].2[3] = f32::NAN;
    });
    assert!(
        damaged
            .starts_with("`mid_block.attentions.0.norm.weight` in unet.safetensors holds values that are not finite")
    );
}

/// Inputs of another shape than the network's are refused with the shape that would be valid.
#[test]
fn inputs_that_do_not_fit_are_refused() {
    let f = Fixture::open("unet_identity");
    let (plain, unet) = (unet(&f, DType::F32), with_adapter(&f, DType::F32));
    let (text, identity, added) = (f.input("text"), f.input("identity"), f.added().unwrap());
    let context = unet.context(&text, Some(&identity), Some(&added)).unwrap();
    let other = Fixture::open("unet_sd15");
    let other = common::unet(&other, DType::F32).context(&other.input("text"), None, None).unwrap();
    let latent = f.input("latent");
    let down = f.inputs("down");
    let residuals = |down: &[Tensor], mid: Tensor| Residuals { down: down.to_vec(), mid, scale: 1.0 };
    let fewer = Added { time_ids: vec![], ..added.clone() };
    let wider = Added { pooled: zeros(&[2, 11]), ..added.clone() };
    let flat = Added { pooled: zeros(&[20]), ..added.clone() };
    let (few, wrong) = (residuals(&down[1..], f.input("mid")), residuals(&down, zeros(&[2, 1, 1, 16])));
    let forward = |latent: &Tensor, context: &UNetContext, residuals: Option<&Residuals>| {
        unet.forward(latent, 1.0, context, 1.0, residuals).unwrap_err()
    };
    let rows = [
        (
            unet.context(&zeros(&[2, 9, 17]), None, Some(&added)).unwrap_err(),
            "the text is [2, 9, 17]; expected [rows, tokens, 18]",
        ),
        (unet.context(&zeros(&[18]), None, Some(&added)).unwrap_err(), "the text is [18]"),
        (unet.context(&zeros(&[0, 9, 18]), None, Some(&added)).unwrap_err(), "the text is [0, 9, 18]"),
        (
            unet.context(&text, Some(&zeros(&[1, 4, 18])), Some(&added)).unwrap_err(),
            "the identity is [1, 4, 18]; expected [2, tokens, 18]",
        ),
        (plain.context(&text, Some(&identity), Some(&added)).unwrap_err(), "none: no identity adapter is attached"),
        (unet.context(&text, None, None).unwrap_err(), "the pooled text is \"none\"; expected some"),
        (unet.context(&text, None, Some(&fewer)).unwrap_err(), "is (2, 0); expected 2"),
        (unet.context(&text, None, Some(&wider)).unwrap_err(), "the width of the pooled text is 11; expected 10"),
        (unet.context(&text, None, Some(&flat)).unwrap_err(), "the pooled text is [20]; expected two dimensions"),
        (
            forward(&zeros(&[1, 6, 10, 4]), &context, None),
            "the latent is [1, 6, 10, 4]; expected [2, height, width, 4]",
        ),
        (forward(&zeros(&[2, 0, 10, 4]), &context, None), "the latent is [2, 0, 10, 4]"),
        (forward(&zeros(&[4]), &context, None), "the latent is [4]"),
        (forward(&latent, &other, None), "the context must be of the same UNet"),
        (forward(&latent, &context, Some(&few)), "a ControlNet's residual is"),
        (
            forward(&latent, &context, Some(&wrong)),
            "a ControlNet's residual is [2, 1, 1, 16] at place 4; expected [2, 3, 5, 16]",
        ),
    ];
    for (error, expected) in rows {
        assert!(error.to_string().contains(expected), "{error}\nnot: {expected}");
    }
}

#[test]
fn controlnet_inputs_that_do_not_fit_are_refused() {
    let f = Fixture::open("controlnet_sd15");
    let config = ControlNetConfig::from_json(&f.config).unwrap();
    let net = ControlNet::load(&f.scope(), &config, &device(), DType::F32).unwrap();
    let tokens = f.input("tokens");
    assert_eq!(net.hint_zoom(), 4);
    let context = net.context(&tokens, None, &f.input("hint")).unwrap();
    let rows = [
        (
            net.context(&tokens, None, &zeros(&[1, 20, 28, 1])).unwrap_err(),
            "the hint is [1, 20, 28, 1]; expected [1 or 1, height, width, 3]",
        ),
        (net.context(&tokens, None, &zeros(&[3])).unwrap_err(), "the hint is [3]"),
        (
            net.forward(&zeros(&[1, 6, 7, 4]), 1.0, &context, 1.0).unwrap_err(),
            "expected [5, 7]: the hint must be 4 times the latent's size",
        ),
        (net.forward(&zeros(&[]), 1.0, &context, 1.0).unwrap_err(), "the latent is []"),
    ];
    for (error, expected) in rows {
        assert!(error.to_string().contains(expected), "{error}\nnot: {expected}");
    }
    // One hint serves all rows.
    let two = tensor::ops::repeat_rows(&tokens, 2).unwrap();
    let shared = net.context(&two, None, &f.input("hint")).unwrap();
    let latent = tensor::ops::repeat_rows(&f.input("latent"), 2).unwrap();
    let both = net.forward(&latent, 3.0, &shared, 1.0).unwrap().mid;
    f.agrees("mid", &both.rows(1, 1).unwrap(), DType::F32, 1e-4);
}

#[test]
fn the_other_networks_refuse_too() {
    let f = Fixture::open("clip_plain");
    let config = ClipTextConfig::from_json(&f.config, &f.scope()).unwrap();
    let clip = ClipText::load(&f.scope(), &config, &device(), DType::F32).unwrap();
    let f = Fixture::open("vae_plain");
    let vae = Vae::load(&f.scope(), &VaeConfig::from_json(&f.config).unwrap(), &device(), DType::F32).unwrap();
    let f = Fixture::open("resampler_a");
    let config = ResamplerConfig::infer(&f.scope(), None).unwrap();
    let resampler = Resampler::load(&f.scope(), &config, &device(), DType::F32).unwrap();
    let rows = [
        (
            clip.forward(&[], 0).unwrap_err(),
            "the number of tokens in each row is []; expected the same everywhere, 1 to 7",
        ),
        (clip.forward(&[vec![1; 8]], 0).unwrap_err(), "is [8]"),
        (clip.forward(&[vec![1; 3], vec![1; 2]], 0).unwrap_err(), "is [3, 2]"),
        (clip.forward(&[vec![1, 64]], 0).unwrap_err(), "a token is 64; expected less than 64"),
        (clip.forward(&[vec![1]], 4).unwrap_err(), "the number of skipped layers is 4; expected 0 to 3"),
        (
            vae.decode(&zeros(&[1, 4, 4, 3])).unwrap_err(),
            "the latent is [1, 4, 4, 3]; expected [rows, height, width, 4]",
        ),
        (vae.encode(&zeros(&[1, 1, 9, 3])).unwrap_err(), "of at least 2x2"),
        (
            vae.decode_tiled(&zeros(&[1, 4, 4, 4]), 2, 2).unwrap_err(),
            "the overlap of tiles is 2; expected less than their size, 2",
        ),
        (vae.decode_tiled(&zeros(&[1, 4, 4, 4]), 0, 0).unwrap_err(), "the overlap of tiles is 0"),
        (resampler.forward(&zeros(&[1, 32])).unwrap_err(), "the face embedding is [1, 32]; expected [rows, faces, 32]"),
    ];
    for (error, expected) in rows {
        assert!(error.to_string().contains(expected), "{error}\nnot: {expected}");
    }
}

/// Scaling to the diffusion's latent and back: with channel statistics, and plain.
#[test]
fn latents_are_scaled_both_ways() {
    let x = [0.5, -1.0, 2.0, 0.0];
    let stats = VaeConfig {
        latents_mean_std: Some((vec![0.1, -0.2, 0.3, 0.4], vec![1.1, 0.9, 1.3, 0.7])),
        ..VaeConfig::sd15()
    };
    let rows = [
        (VaeConfig::sdxl(), x.map(|x| x / 0.13025)),
        (stats, [0.5 * 1.1 / 0.18215 + 0.1, -0.9 / 0.18215 - 0.2, 2.0 * 1.3 / 0.18215 + 0.3, 0.4]),
    ];
    for (config, expected) in rows {
        let latent = Tensor::from_f32(&device(), DType::F32, &[1, 1, 1, 4], &x).unwrap();
        let decoder = config.to_decoder(&latent).unwrap();
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close(&decoder.to_vec_f32().unwrap(), &expected));
        assert!(close(&config.to_diffusion(&decoder).unwrap().to_vec_f32().unwrap(), &x));
    }
}
