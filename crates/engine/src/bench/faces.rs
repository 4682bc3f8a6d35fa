//! Finding a face and reading whose it is.

use super::{BenchRequest, Measured, Time, rate, tensor_peak_mb, timed};
use crate::Result;
use crate::plan::Compute;
use ::faces::{FaceAnalyzer, Photo};
use std::path::Path;
use tensor::ops::Products;
use tensor::{DType, Device};

/// Times the face networks of a folder on a photo: the detector once at its size, and the encoder on one face, whatever
/// the photo shows.
///
/// # Errors
/// Files that cannot be used.
pub fn faces(folder: &Path, photo: &Photo, request: &BenchRequest) -> Result<Measured> {
    let (load_ms, analyzer) = timed(|| Ok(FaceAnalyzer::open(folder)?))?;
    let (side, (w, h)) = (0.25, photo.image.dimensions());
    // Where no face is found, as drawn people may not be by networks that know photographs: any points will do.
    let middle = [[0.35, 0.4], [0.65, 0.4], [0.5, 0.55], [0.4, 0.7], [0.6, 0.7]]
        .map(|[x, y]: [f32; 2]| [(0.5 + (x - 0.5) * side * 2.0) * w as f32, (0.5 + (y - 0.5) * side * 2.0) * h as f32]);
    let compute =
        Compute { device: Device::Cpu, second: None, dtype: DType::F32, products: Products::Whole, narrow: false };
    let mut found = None;
    let detect = request.repeat(compute.device, || {
        found = analyzer.detect_once(&photo.image)?.into_iter().next().and_then(|face| face.kps);
        Ok(())
    })?;
    let points = found.unwrap_or(middle);
    let embed = request.repeat(compute.device, || Ok(analyzer.embed(&photo.image, &points).map(|_| ())?))?;
    let (detector, recogniser) = analyzer.products();
    let ms = detect.median_ms + embed.median_ms;
    let name = folder.file_name().map_or_else(|| folder.display().to_string(), |n| n.to_string_lossy().into_owned());
    Ok(Measured {
        title: format!("finding and reading a face with {name}"),
        setting: request.setting(&name, None, compute),
        times: vec![
            Time { key: "face_ms", label: "one photo with one face", ms },
            Time { key: "detect_ms", label: "detector", ms: detect.median_ms },
            Time { key: "embed_ms", label: "encoder, for each face", ms: embed.median_ms },
            Time { key: "first_face_ms", label: "first time", ms: detect.first_ms + embed.first_ms },
            Time { key: "load_ms", label: "opening the files", ms: load_ms },
        ],
        rate: rate(2 * (detector + recogniser), ms, compute)?,
        operators: Vec::new(),
        page_faults: detect.page_faults.zip(embed.page_faults).map(|(a, b)| a + b),
        tensor_peak_mb: tensor_peak_mb(compute.device)?,
    })
}
