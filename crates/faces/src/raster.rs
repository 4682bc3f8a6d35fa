//! Filled shapes with the pixel rules of OpenCV's `drawing.cpp`: `ellipse2Poly`, `fillConvexPoly`
//! and a filled `circle`, all 8-connected and without antialiasing.
//!
//! The rules were taken from OpenCV's behaviour (16 bits of fraction in polygon edges, outlines
//! drawn with a left-to-right Bresenham line clipped to the picture), because IdentityNet saw
//! exactly these pixels in training.

use image::{Rgb, RgbImage};

const SHIFT: u32 = 16;
const ONE: i64 = 1 << SHIFT;

type Point = (i64, i64);

/// Sine of whole degrees as OpenCV tabulates it: seven decimals, single precision.
fn sine(degrees: usize) -> f64 {
    let exact = (degrees as f64).to_radians().sin();
    f64::from(((exact * 1e7).round() / 1e7) as f32)
}

fn cosine(degrees: usize) -> f64 {
    sine(450 - degrees)
}

/// The polygon of a whole ellipse in steps of one degree: integer points, neighbours distinct.
pub(crate) fn ellipse_polygon(center: Point, axes: (f64, f64), angle: i32) -> Vec<Point> {
    let angle = angle.rem_euclid(360) as usize;
    let (cos, sin) = (cosine(angle), sine(angle));
    let mut points: Vec<Point> = Vec::with_capacity(361);
    for degree in 0..=360 {
        let (x, y) = (axes.0 * cosine(degree), axes.1 * sine(degree));
        let point = (
            (center.0 as f64 + x * cos - y * sin).round_ties_even() as i64,
            (center.1 as f64 + x * sin + y * cos).round_ties_even() as i64,
        );
        if points.last() != Some(&point) {
            points.push(point);
        }
    }
    if points.len() == 1 {
        points = vec![center; 2];
    }
    points
}

/// A black picture to draw on.
pub(crate) struct Canvas {
    image: RgbImage,
}

#[derive(Clone, Copy)]
struct Edge {
    index: usize,
    step: usize,
    x: i64,
    dx: i64,
    y_end: i64,
}

impl Canvas {
    pub(crate) fn new(width: u32, height: u32) -> Canvas {
        Canvas { image: RgbImage::new(width, height) }
    }

    pub(crate) fn over(image: RgbImage) -> Canvas {
        Canvas { image }
    }

    pub(crate) fn into_image(self) -> RgbImage {
        self.image
    }

    fn size(&self) -> (i64, i64) {
        (self.image.width().into(), self.image.height().into())
    }

    /// Sets the pixels `x0..=x1` of a row, clipped to the picture.
    pub(crate) fn row(&mut self, y: i64, x0: i64, x1: i64, color: [u8; 3]) {
        let (w, h) = self.size();
        if y < 0 || y >= h {
            return;
        }
        for x in x0.max(0)..=x1.min(w - 1) {
            self.image.put_pixel(x as u32, y as u32, Rgb(color));
        }
    }

    /// OpenCV's scan of a convex polygon: the outline first, then the rows between two edges.
    pub(crate) fn fill_convex(&mut self, points: &[Point], color: [u8; 3]) {
        let (width, height) = self.size();
        let n = points.len();
        let Some(&last) = points.last() else { return };
        let mut previous = last;
        let mut top = 0;
        for (i, &point) in points.iter().enumerate() {
            if point.1 < points[top].1 {
                top = i;
            }
            self.line(previous, point, color);
            previous = point;
        }
        let xs = || points.iter().map(|p| p.0);
        let ys = || points.iter().map(|p| p.1);
        let (xmin, xmax) = (xs().min().unwrap_or(0), xs().max().unwrap_or(0));
        let (ymin, ymax) = (ys().min().unwrap_or(0), ys().max().unwrap_or(0));
        if n < 3 || xmax < 0 || ymax < 0 || xmin >= width || ymin >= height {
            return;
        }
        let ymax = ymax.min(height - 1);
        let start = |step| Edge { index: top, step, x: -ONE, dx: 0, y_end: ymin };
        let mut edges = [start(1), start(n - 1)];
        let mut left_over = n as i64;
        for y in ymin..=ymax {
            for edge in &mut edges {
                if y >= edge.y_end {
                    advance(edge, points, y, &mut left_over);
                }
            }
            if left_over < 0 {
                break;
            }
            let [a, b] = [edges[0].x, edges[1].x];
            let half = ONE >> 1;
            let (x0, x1) = ((a.min(b) + half) >> SHIFT, (a.max(b) + half) >> SHIFT);
            self.row(y, x0, x1, color);
            for edge in &mut edges {
                edge.x += edge.dx;
            }
        }
    }

    /// An 8-connected Bresenham line, always walked from left to right, clipped before it is walked.
    fn line(&mut self, from: Point, to: Point, color: [u8; 3]) {
        let Some((mut a, mut b)) = clip(self.size(), from, to) else {
            return;
        };
        if b.0 < a.0 {
            std::mem::swap(&mut a, &mut b);
        }
        let (dx, dy) = (b.0 - a.0, (b.1 - a.1).abs());
        let sy = if b.1 < a.1 { -1 } else { 1 };
        let steep = dy > dx;
        let (long, short) = if steep { (dy, dx) } else { (dx, dy) };
        let mut error = long - 2 * short;
        let (mut x, mut y) = a;
        for _ in 0..=long {
            self.row(y, x, x, color);
            let side = error < 0;
            error += if side { 2 * long } else { 0 } - 2 * short;
            if steep {
                y += sy;
                x += i64::from(side);
            } else {
                x += 1;
                y += if side { sy } else { 0 };
            }
        }
    }

    /// A filled circle by the midpoint rule.
    pub(crate) fn fill_circle(&mut self, center: Point, radius: i64, color: [u8; 3]) {
        let (cx, cy) = center;
        let (mut error, mut dx, mut dy) = (0, radius, 0);
        let (mut plus, mut minus) = (1, 2 * radius - 1);
        while dx >= dy {
            for y in [cy - dy, cy + dy] {
                self.row(y, cx - dx, cx + dx, color);
            }
            for y in [cy - dx, cy + dx] {
                self.row(y, cx - dy, cx + dy, color);
            }
            dy += 1;
            error += plus;
            plus += 2;
            if error > 0 {
                error -= minus;
                dx -= 1;
                minus -= 2;
            }
        }
    }
}

/// Moves an edge to the next side of the polygon that reaches below row `y`.
fn advance(edge: &mut Edge, points: &[Point], y: i64, left_over: &mut i64) {
    let n = points.len();
    let mut from = edge.index;
    let mut to = (from + edge.step) % n;
    loop {
        let more = *left_over > 0;
        *left_over -= 1;
        if !more {
            return;
        }
        let y_end = points[to].1;
        if y_end > y {
            let (x0, x1) = (points[from].0 << SHIFT, points[to].0 << SHIFT);
            let rows = y_end - y;
            edge.y_end = y_end;
            edge.dx = ((x1 - x0) * 2 + rows) / (2 * rows);
            edge.x = x0;
            edge.index = to;
            return;
        }
        from = to;
        to = (to + edge.step) % n;
    }
}

/// Cohen-Sutherland in OpenCV's order of operations (top and bottom first, integer division).
fn clip((width, height): Point, from: Point, to: Point) -> Option<(Point, Point)> {
    let (right, bottom) = (width - 1, height - 1);
    let ((mut x1, mut y1), (mut x2, mut y2)) = (from, to);
    let side_x = |x: i64| i64::from(x < 0) + i64::from(x > right) * 2;
    let side_y = |y: i64| i64::from(y < 0) * 4 + i64::from(y > bottom) * 8;
    let mut c1 = side_x(x1) + side_y(y1);
    let mut c2 = side_x(x2) + side_y(y2);
    if c1 & c2 == 0 && c1 | c2 != 0 {
        if c1 & 12 != 0 {
            let edge = if c1 < 8 { 0 } else { bottom };
            x1 += (edge - y1) * (x2 - x1) / (y2 - y1);
            y1 = edge;
            c1 = side_x(x1);
        }
        if c2 & 12 != 0 {
            let edge = if c2 < 8 { 0 } else { bottom };
            x2 += (edge - y2) * (x2 - x1) / (y2 - y1);
            y2 = edge;
            c2 = side_x(x2);
        }
        if c1 & c2 == 0 && c1 | c2 != 0 {
            if c1 != 0 {
                let edge = if c1 == 1 { 0 } else { right };
                y1 += (edge - x1) * (y2 - y1) / (x2 - x1);
                x1 = edge;
                c1 = 0;
            }
            if c2 != 0 {
                let edge = if c2 == 1 { 0 } else { right };
                y2 += (edge - x2) * (y2 - y1) / (x2 - x1);
                x2 = edge;
                c2 = 0;
            }
        }
    }
    (c1 | c2 == 0).then_some(((x1, y1), (x2, y2)))
}
