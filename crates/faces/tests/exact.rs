//! Pixels that must be the reference's, byte for byte.

mod support;
use faces::{WorkingSize, align, draw_keypoints, prepare_like_reference, resize_bilinear, warp_affine};
use support::{digest, floats, json, keypoints, pair, texture};

#[test]
fn keypoint_images_equal_opencvs() {
    let rows = json("keypoints.json");
    let rows = rows.as_array().unwrap();
    assert!(rows.len() >= 500);
    let wrong: Vec<usize> = rows
        .iter()
        .enumerate()
        .filter(|(_, row)| {
            let (w, h) = pair(&row["size"]);
            let image = draw_keypoints(w, h, &keypoints(&row["kps"])).unwrap();
            digest(image.as_raw()) != row["sha"]
        })
        .map(|(i, _)| i)
        .collect();
    assert!(wrong.is_empty(), "{} of {} differ: {wrong:?}", wrong.len(), rows.len());
}

#[test]
fn resizes_equal_opencvs_and_pillows() {
    let rows = json("resample.json");
    for row in rows["resize"].as_array().unwrap() {
        let ((w, h), (tw, th)) = (pair(&row["from"]), pair(&row["to"]));
        let picture = texture(w, h, row["seed"].as_u64().unwrap() as u32);
        assert_eq!(digest(resize_bilinear(&picture, tw, th).as_raw()), row["sha"], "opencv {w}x{h} to {tw}x{th}");
    }
    for (key, resize) in
        [("pillow", faces::resize_like_pillow as fn(&_, _, _) -> _), ("lanczos", faces::resize_lanczos_like_pillow)]
    {
        for row in rows[key].as_array().unwrap() {
            let ((w, h), (tw, th)) = (pair(&row["from"]), pair(&row["to"]));
            let picture = texture(w, h, row["seed"].as_u64().unwrap() as u32);
            let resized: faces::RgbImage = resize(&picture, tw, th).unwrap();
            assert_eq!(digest(resized.as_raw()), row["sha"], "{key} {w}x{h} to {tw}x{th}");
        }
    }
}

#[test]
fn working_sizes_equal_the_references() {
    // The published defaults, from `resize_img` in InstantID's infer.py.
    for (from, to) in [
        ((512, 512), (1280, 1280)),
        ((1000, 1500), (832, 1280)),
        ((640, 480), (1280, 960)),
        ((1081, 1920), (704, 1280)),
    ] {
        assert_eq!(WorkingSize::default().of(from.0, from.1), to);
    }
    let size = WorkingSize { min_side: 256, max_side: 320, multiple: 16 };
    for row in json("resample.json")["working"].as_array().unwrap() {
        let (w, h) = pair(&row["from"]);
        let picture = texture(w, h, row["seed"].as_u64().unwrap() as u32);
        let resized = prepare_like_reference(&picture, size).unwrap();
        assert_eq!(resized.dimensions(), pair(&row["to"]));
        assert_eq!(size.of(w, h), pair(&row["to"]));
        assert_eq!(digest(resized.as_raw()), row["sha"], "{w}x{h}");
    }
    assert!(prepare_like_reference(&texture(4000, 10, 1), WorkingSize::default()).is_err());
}

#[test]
fn warps_equal_opencvs() {
    let rows = json("resample.json");
    let (mut same, mut all) = (0, 0);
    for row in rows["warp"].as_array().unwrap() {
        let (w, h) = pair(&row["from"]);
        let picture = texture(w, h, row["seed"].as_u64().unwrap() as u32);
        let side = row["side"].as_u64().unwrap() as u32;
        let m: Vec<f64> = row["matrix"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let warped = warp_affine(&picture, &[m[0], m[1], m[2], m[3], m[4], m[5]], side);
        assert_eq!(digest(warped.as_raw()), row["sha"], "warp {w}x{h} to {side}");
        // The reference estimates the map in single precision, so that a pixel in thousands may round
        // the other way; the map itself must agree.
        let kps = keypoints(&row["kps"]);
        same += usize::from(digest(align(&picture, &kps, side).unwrap().as_raw()) == row["aligned"]);
        all += 1;
        let estimate = faces::similarity(&kps, &template(side)).unwrap();
        for (a, b) in estimate.iter().zip(&m) {
            assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "{estimate:?} and {m:?}");
        }
    }
    println!("{same} of {all} aligned faces are equal to the byte");
}

fn template(side: u32) -> [[f64; 2]; 5] {
    let points =
        [[38.2946f32, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]];
    let (ratio, shift) =
        if side.is_multiple_of(112) { (side as f32 / 112.0, 0.0) } else { (side as f32 / 128.0, side as f32 / 16.0) };
    points.map(|[x, y]| [f64::from(x * ratio + shift), f64::from(y * ratio)])
}

#[test]
fn hostile_keypoints_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, -1e30] {
        let mut kps = [[10.0, 10.0]; 5];
        kps[3][1] = bad;
        assert!(draw_keypoints(64, 64, &kps).unwrap_err().to_string().contains("keypoint 4"));
    }
    assert!(draw_keypoints(0, 64, &[[1.0; 2]; 5]).is_err());
    assert!(draw_keypoints(100_000, 64, &[[1.0; 2]; 5]).is_err());
    assert!(align(&texture(64, 64, 1), &[[30.0, 30.0]; 5], 112).is_err());
    assert_eq!(floats(&serde_json::json!([1.5])), [1.5]);
}

#[test]
fn keypoints_are_placed_centred_and_whole() {
    let kps = [[0.0, 0.0], [200.0, 0.0], [100.0, 50.0], [0.0, 100.0], [200.0, 100.0]];
    let placed = faces::place_keypoints(&kps, (200, 100), (1000, 1000)).unwrap();
    assert_eq!(placed, [[0.0, 250.0], [1000.0, 250.0], [500.0, 500.0], [0.0, 750.0], [1000.0, 750.0]]);
    assert_eq!(faces::place_keypoints(&kps, (200, 100), (200, 100)).unwrap(), kps);
}
