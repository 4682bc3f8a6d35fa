//! Layers whose weights wait on the host give the same bits as those whose weights stay, on the device that
//! SAMEFACE_TEST_DEVICE names (`cpu`, `cuda:0`), else the first GPU, else the CPU, where nothing waits.

mod device;

use device::device;
use tensor::ops::{Activation, Conv2d, ConvOptions, Linear};
use tensor::{DType, Device, Parking, Recording, Tensor, Turn};

const WIDTH: usize = 96;
const LAYERS: usize = 9;

fn numbers(seed: usize, shape: &[usize], size: f32) -> Tensor {
    let count = shape.iter().product::<usize>();
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
    let data: Vec<f32> = (0..count).map(|i| size * number(i)).collect();
    Tensor::from_f32(&device(), DType::F32, shape, &data).unwrap()
}

struct Net(Vec<(Linear, Conv2d)>);

impl Net {
    fn new(parking: Parking) -> Net {
        let layer = |i: usize| {
            let mut linear = Linear::new(&numbers(i, &[WIDTH, WIDTH], 0.2), Some(&numbers(i, &[WIDTH], 1.0))).unwrap();
            let mut conv =
                Conv2d::new(&numbers(50 + i, &[WIDTH, WIDTH, 3, 3], 0.05), None, ConvOptions::same3()).unwrap();
            linear.park(if i.is_multiple_of(3) { Turn::Once } else { Turn::Always }).unwrap();
            conv.park(Turn::Always).unwrap();
            (linear, conv)
        };
        device().parking(parking, || Net((0..LAYERS).map(layer).collect()))
    }

    fn forward(&self, x: &Tensor) -> tensor::Result<Tensor> {
        self.0.iter().try_fold(x.clone(), |x, (linear, conv)| {
            let y = linear.forward_with(&x, Activation::Silu, Some(&x))?;
            conv.forward(&y)
        })
    }
}

/// What one test takes of the device the other one would count.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn where_weights_wait_changes_no_bit() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let stays = Net::new(Parking::default());
    for share in [0.0, 0.4, 1.0] {
        let waits = Net::new(Parking { share, once: true, plain: true });
        // More than once: what waits passes through memory that the time before has read.
        for seed in 0..4 {
            let x = numbers(seed, &[2, 5, 7, WIDTH], 1.0);
            let [want, got] = [&stays, &waits].map(|net| net.forward(&x).unwrap().to_vec_f32().unwrap());
            assert!(want.iter().all(|x| x.is_finite()) && want == got, "share {share}");
        }
        let x = numbers(4, &[2, 5, 7, WIDTH], 1.0);
        let recorded = Recording::new::<tensor::Error>(&device(), || Ok(vec![waits.forward(&x)?])).unwrap();
        let Some((recording, results)) = recorded else { continue };
        for seed in 4..8 {
            let next = numbers(seed, &[2, 5, 7, WIDTH], 1.0);
            x.overwrite(&next).unwrap();
            recording.replay().unwrap();
            // Work between replays uses the same weights.
            let beside = waits.forward(&next).unwrap().to_vec_f32().unwrap();
            let want = stays.forward(&next).unwrap().to_vec_f32().unwrap();
            assert!(want == results[0].to_vec_f32().unwrap() && want == beside, "share {share}");
        }
    }
}

/// Weights that wait take none of the device's memory but what they pass through.
#[test]
fn what_waits_makes_room() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if device() == Device::Cpu {
        return;
    }
    let used = || tensor::memory_use_of(&device()).unwrap().used;
    let before = used();
    let _waits = Net::new(Parking { share: 1.0, once: true, plain: true });
    let weights = LAYERS * 10 * WIDTH * WIDTH * 4;
    assert!(used() < before + weights / 10, "{} of {weights}", used() - before);
}
