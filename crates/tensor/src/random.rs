//! Noise that equals PyTorch's, so that a seed gives the picture it gives elsewhere.
//!
//! * [`TorchCpu`]: `torch.randn(n, generator=torch.Generator('cpu').manual_seed(seed))`, bit for bit, as computed
//!   by the PyTorch wheels for x86-64 with AVX2 (2.15 was compared). Two paths, as there: fewer than 16 values are drawn one by
//!   one in f64; 16 and more by a vectorised Box-Muller transform in f32 whose logarithm, sine and cosine are the
//!   Cephes approximations of `aten/src/ATen/native/cpu/avx_mathfun.h`. Those are written out here operation by
//!   operation, with the products that the compiler fused there, since the last bits of other functions differ.
//! * [`Philox`]: `torch.randn(n, device='cuda')`. The integers are exact; the hardware's fast sine and cosine are not
//!   reproducible elsewhere, so values agree to about 1.3e-6 (compared with an H100, also for tensors that take
//!   several rounds of the kernel).
//!
//! Both keep their state, so that samplers which draw again at every step continue the same stream.

/// Which generator draws the noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Source {
    /// PyTorch's CPU generator: what diffusers and ComfyUI give for a seed.
    #[default]
    Cpu,
    /// PyTorch's CUDA generator: what A1111 gives for a seed on an NVIDIA card.
    Philox,
}

/// A seeded stream of standard normal values.
#[derive(Clone, Debug)]
pub enum Generator {
    /// See [`TorchCpu`].
    Cpu(Box<TorchCpu>),
    /// See [`Philox`].
    Philox(Philox),
}

impl Generator {
    /// Starts the stream of `source` for `seed`.
    pub fn new(source: Source, seed: u64) -> Generator {
        match source {
            Source::Cpu => Generator::Cpu(Box::new(TorchCpu::new(seed))),
            Source::Philox => Generator::Philox(Philox::new(seed)),
        }
    }

    /// The next `n` values, equal to one call of `torch.randn` for a tensor of `n` elements.
    ///
    /// The grouping matters: two calls for 8 values are not one call for 16, here as there.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        match self {
            Generator::Cpu(g) => g.randn(n),
            Generator::Philox(g) => g.randn(n),
        }
    }
}

const N: usize = 624;
const M: usize = 397;

/// PyTorch's CPU generator: a Mersenne Twister, MT19937.
#[derive(Clone, Debug)]
pub struct TorchCpu {
    state: [u32; N],
    next: usize,
    /// The second value of the last pair of the short path (`next_double_normal_sample` in PyTorch).
    cached: Option<f64>,
}

impl TorchCpu {
    /// As `torch.Generator('cpu').manual_seed(seed)`: only the low 32 bits of the seed count.
    pub fn new(seed: u64) -> TorchCpu {
        let mut state = [0u32; N];
        state[0] = seed as u32;
        for i in 1..N {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        TorchCpu { state, next: N, cached: None }
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let mask = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ mask;
        }
        self.next = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// [0, 1) in steps of 2^-24.
    fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0)
    }

    /// [0, 1) in steps of 2^-53; the first 32 bits drawn are the high ones.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32());
        let low = u64::from(self.next_u32());
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    /// `torch.randn(n)`.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < 16 {
            return (0..n).map(|_| self.normal_f64() as f32).collect();
        }
        let mut out: Vec<f32> = (0..n).map(|_| self.uniform_f32()).collect();
        box_muller(&mut out);
        if !n.is_multiple_of(16) {
            // The last 16 values are drawn anew, overlapping the last whole block.
            let tail = &mut out[n - 16..];
            for v in tail.iter_mut() {
                *v = self.uniform_f32();
            }
            box_muller(tail);
        }
        out
    }

    fn normal_f64(&mut self) -> f64 {
        if let Some(v) = self.cached.take() {
            return v;
        }
        let u1 = self.uniform_f64();
        let u2 = self.uniform_f64();
        let r = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = 2.0 * std::f64::consts::PI * u1;
        self.cached = Some(r * theta.sin());
        r * theta.cos()
    }
}

/// Uniforms to normals in place, sixteen at a time; a rest of fewer stays as it is.
fn box_muller(data: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        /// The same code, so that `mul_add` is one instruction and the loop is vectorised.
        #[target_feature(enable = "avx2,fma")]
        unsafe fn vectorised(data: &mut [f32]) {
            data.chunks_exact_mut(16).for_each(box_muller_16);
        }
        // SAFETY: the processor has the instructions.
        return unsafe { vectorised(data) };
    }
    data.chunks_exact_mut(16).for_each(box_muller_16);
}

/// Eight pairs of uniforms (radius in the first half, angle in the second) to sixteen normals, in place.
#[inline(always)]
fn box_muller_16(block: &mut [f32]) {
    for j in 0..8 {
        let u1 = 1.0 - block[j]; // [0, 1) -> (0, 1], for the logarithm
        let u2 = block[j + 8];
        let radius = (-2.0 * log(u1)).sqrt();
        let (sin, cos) = sin_cos(std::f32::consts::TAU * u2);
        // Adding zero turns -0 into 0, as the scaling by deviation 1 and mean 0 does there.
        block[j] = radius * cos + 0.0;
        block[j + 8] = radius * sin + 0.0;
    }
}

/// Natural logarithm of a positive normal number: Cephes `logf`, with the fused products that PyTorch's build has.
#[inline(always)]
fn log(x: f32) -> f32 {
    let bits = x.to_bits();
    let mut e = (bits >> 23) as i32 as f32 - 126.0;
    let mut x = f32::from_bits((bits & !0x7f80_0000) | 0.5f32.to_bits()); // [0.5, 1)
    if x < std::f32::consts::FRAC_1_SQRT_2 {
        e -= 1.0;
        x += x - 1.0;
    } else {
        x -= 1.0;
    }
    let z = x * x;
    let mut y: f32 = 7.037_683_6e-2;
    for p in [
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_7e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        y = y.mul_add(x, p);
    }
    y = (y * x).mul_add(z, e * -2.121_944_4e-4);
    y = z.mul_add(-0.5, y);
    e.mul_add(0.693_359_4, x + y)
}

/// Sine and cosine of a number in [0, 2 pi): Cephes `sinf` and `cosf`, fused likewise.
#[inline(always)]
fn sin_cos(x: f32) -> (f32, f32) {
    let octant = ((x * 1.273_239_5) as i32 + 1) & !1;
    let y = octant as f32;
    let x = y.mul_add(-3.774_895e-8, y.mul_add(-2.418_756_5e-4, y.mul_add(-0.785_156_25, x)));
    let z = x * x;

    let mut c: f32 = 2.443_315_7e-5;
    c = c.mul_add(z, -1.388_731_6e-3);
    c = c.mul_add(z, 4.166_664_6e-2);
    c = (c * z).mul_add(z, z * -0.5) + 1.0;

    let mut s: f32 = -1.951_529_6e-4;
    s = s.mul_add(z, 8.332_161e-3);
    s = s.mul_add(z, -1.666_665_5e-1);
    s = (s * z).mul_add(x, x);

    let (sin, cos) = if octant & 2 == 0 { (s, c) } else { (c, s) };
    let sin = if octant & 4 != 0 { -sin } else { sin };
    let cos = if (octant - 2) & 4 == 0 { -cos } else { cos };
    (sin, cos)
}

/// PyTorch's CUDA generator: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
///
/// On the device thread `i` owns the counter's high half and draws four values at a time; a tensor too large for one
/// value per thread takes the other three, and then goes round again. How many threads run depends on the card, hence
/// [`Philox::with_threads`]. [`Philox::new`] stands for a card with a thread for every value, which holds for one
/// 1024x1024 picture's latent on every card with at least 43 multiprocessors.
#[derive(Clone, Debug)]
pub struct Philox {
    key: [u32; 2],
    /// Counter of the next draw: blocks of four values already used by each thread.
    offset: u64,
    threads: u64,
}

impl Philox {
    /// As `torch.Generator('cuda').manual_seed(seed)`, with a thread for every value.
    pub fn new(seed: u64) -> Philox {
        Philox::with_threads(seed, u64::MAX)
    }

    /// The same on a card that runs at most `threads` threads of the filling kernel:
    /// multiprocessors * (threads per multiprocessor / 256) * 256, as 270336 on an H100.
    pub fn with_threads(seed: u64, threads: u64) -> Philox {
        Philox { key: [seed as u32, (seed >> 32) as u32], offset: 0, threads: threads.max(256) / 256 * 256 }
    }

    /// `torch.randn(n, device='cuda')`.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n == 0 {
            return Vec::new();
        }
        let stride = self.threads.min((n as u64).div_ceil(256) * 256);
        let rounds = (n as u64).div_ceil(stride * 4);
        let mut out = vec![0.0; n];
        for round in 0..rounds {
            for thread in 0..stride {
                let first = round * stride * 4 + thread;
                if first >= n as u64 {
                    break;
                }
                let bits = philox(self.key, self.offset + round, thread);
                let values = [curand_normal2(bits[0], bits[1]), curand_normal2(bits[2], bits[3])];
                for (lane, value) in values.as_flattened().iter().enumerate() {
                    if let Some(slot) = out.get_mut((first + stride * lane as u64) as usize) {
                        *slot = *value;
                    }
                }
            }
        }
        self.offset += rounds;
        out
    }
}

/// Ten rounds of Philox 4x32.
fn philox(mut key: [u32; 2], low: u64, high: u64) -> [u32; 4] {
    let mut c = [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
    for _ in 0..10 {
        let a = u64::from(c[0]) * 0xd251_1f53;
        let b = u64::from(c[2]) * 0xcd9e_8d57;
        c = [(b >> 32) as u32 ^ c[1] ^ key[0], b as u32, (a >> 32) as u32 ^ c[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    c
}

/// cuRAND's Box-Muller transform, sine first.
fn curand_normal2(x: u32, y: u32) -> [f32; 2] {
    const STEP: f32 = 1.0 / 4_294_967_296.0;
    const ANGLE: f32 = STEP * std::f32::consts::TAU;
    let u = x as f32 * STEP + STEP / 2.0;
    let v = (y as f32).mul_add(ANGLE, ANGLE / 2.0);
    let radius = (-2.0 * u.ln()).sqrt();
    let (sin, cos) = f64::from(v).sin_cos();
    [radius * sin as f32, radius * cos as f32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_without_fused_products_get_the_same_bits() {
        let mut generator = TorchCpu::new(1);
        let uniform: Vec<f32> = (0..4096).map(|_| generator.uniform_f32()).collect();
        let (mut fast, mut portable) = (uniform.clone(), uniform);
        box_muller(&mut fast);
        portable.chunks_exact_mut(16).for_each(box_muller_16);
        assert_eq!(fast, portable);
    }

    #[test]
    fn extreme_uniforms_stay_finite_and_have_no_negative_zero() {
        let mut block = [0.0; 16]; // u1 = 1, radius 0
        block[0] = 1.0 - f32::EPSILON / 2.0; // the smallest u1
        block[9] = 1.0 - f32::EPSILON / 2.0; // the largest angle
        box_muller_16(&mut block);
        assert!(block.iter().all(|v| v.is_finite() && (*v != 0.0 || v.is_sign_positive())), "{block:?}");
    }
}
