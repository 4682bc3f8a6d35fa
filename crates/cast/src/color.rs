//! Colours as three numbers in 0..1 (sRGB, as written).

/// Red, green and blue in 0..1.
pub(crate) type Rgb = [f32; 3];

/// A colour from bytes.
pub(crate) const fn rgb(r: u8, g: u8, b: u8) -> Rgb {
    [r as f32 / 255.0, g as f32 / 255.0, b as f32 / 255.0]
}

/// `a` at 0, `b` at 1.
pub(crate) fn mix(a: Rgb, b: Rgb, t: f32) -> Rgb {
    [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t]
}

/// Piecewise linear colour table, `t` in 0..1.
pub(crate) fn ramp(table: &[Rgb], t: f32) -> Rgb {
    let x = t.clamp(0.0, 1.0) * (table.len() - 1) as f32;
    let i = (x as usize).min(table.len() - 2);
    mix(table[i], table[i + 1], x - i as f32)
}

/// Darker with a warm cast, as shadows on skin and cloth are.
pub(crate) fn shade(c: Rgb, t: f32) -> Rgb {
    mix(c, [c[0] * 0.55, c[1] * 0.44, c[2] * 0.47], t)
}

/// Shadow on skin: redder than on cloth.
pub(crate) fn skin_shade(c: Rgb, t: f32) -> Rgb {
    mix(c, [c[0] * 0.62, c[1] * 0.42, c[2] * 0.36], t)
}

/// Lighter, towards warm white.
pub(crate) fn light(c: Rgb, t: f32) -> Rgb {
    mix(c, [1.0, 0.98, 0.93], t)
}

/// Perceived brightness.
pub(crate) fn luma(c: Rgb) -> f32 {
    0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2]
}
