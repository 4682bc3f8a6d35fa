//! Boxes, keypoints and embeddings against insightface with onnxruntime, on networks of other shapes.

mod support;
use faces::{Analysis, Face, FaceAnalyzer, Identity, Photo, PhotoLimits, cosine};
use support::{fixture, floats, json, keypoints};

fn open(net: &str) -> FaceAnalyzer {
    FaceAnalyzer::open(&fixture("nets").join(net)).unwrap_or_else(|e| panic!("{net}: {e}"))
}

#[test]
fn faces_equal_insightfaces() {
    for row in json("faces.json").as_array().unwrap() {
        let (net, file) = (row["net"].as_str().unwrap(), row["photo"].as_str().unwrap());
        if net == "boxes" || !row["fade"].is_null() {
            continue;
        }
        let analyzer = open(net);
        let photo = Photo::open(&fixture(file)).unwrap();
        let found = analyzer.detect(&photo.image).unwrap();
        let expected = row["faces"].as_array().unwrap();
        assert_eq!(found.len(), expected.len(), "{net} {file}");
        let (mut worst_box, mut worst_point, mut worst_cosine) = (0f32, 0f32, 1f64);
        for (i, want) in expected.iter().enumerate() {
            let bbox = floats(&want["bbox"]);
            let face = &found[i];
            worst_box = (0..4).map(|k| (face.bbox[k] - bbox[k]).abs()).fold(worst_box, f32::max);
            for (p, q) in face.kps.iter().zip(keypoints(&want["kps"])) {
                worst_point = worst_point.max((p[0] - q[0]).abs()).max((p[1] - q[1]).abs());
            }
            assert!((f64::from(face.det_score) - want["det_score"].as_f64().unwrap()).abs() < 1e-4);
            if !want["embedding"].is_null() {
                worst_cosine = worst_cosine.min(cosine(&face.embedding, &floats(&want["embedding"])));
            }
        }
        println!(
            "{net} {file}: {} faces, box {worst_box:.6} px, points {worst_point:.6} px, cosine {worst_cosine:.9}",
            found.len()
        );
        assert!(worst_box < 0.01 && worst_point < 0.01, "{net} {file}: {worst_box} {worst_point}");
        assert!(worst_cosine > 0.999999, "{net} {file}: {worst_cosine}");
    }
}

#[test]
fn a_photo_gives_the_largest_face_first() {
    let analyzer = open("plain");
    let photo = Photo::open(&fixture("face.png")).unwrap();
    let analysis = analyzer.analyze(&photo).unwrap();
    assert!(analysis.faces.windows(2).all(|w| w[0].area() >= w[1].area()));
    let (face, told) = analysis.choose(None).unwrap();
    assert_eq!(face.bbox, analysis.faces[0].bbox);
    assert!(told.unwrap().contains("the largest is used"));
    assert_eq!(analysis.choose(Some(1)).unwrap().0.bbox, analysis.faces[1].bbox);
    let error = analysis.choose(Some(99)).unwrap_err().to_string();
    assert!(error.contains("valid are 0 to"), "{error}");
    let drawn = faces::draw_faces(&photo.image, &analysis.faces);
    assert_eq!(drawn.dimensions(), photo.image.dimensions());
    assert_ne!(drawn, photo.image);
    let norm: f32 = analysis.faces[0].normed_embedding().iter().map(|v| v * v).sum();
    assert!((norm - 1.0).abs() < 1e-5);
}

#[test]
fn unusable_faces_are_refused_with_their_sentence() {
    let mut analysis =
        Analysis { name: "photo".into(), size: (100, 100), faces: vec![], detection_side: 640, notices: vec![] };
    assert!(analysis.choose(None).unwrap_err().to_string().contains("no face was found"));
    let tiny = Face { bbox: [1.0, 1.0, 13.0, 15.0], kps: [[1.0; 2]; 5], det_score: 0.9, embedding: vec![1.0; 512] };
    analysis.faces.push(tiny);
    assert!(analysis.choose(None).unwrap_err().to_string().contains("at least 20"));
    // A detector without keypoints finds boxes but no identity.
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("nets/boxes/det.onnx"), folder.path().join("det.onnx")).unwrap();
    std::fs::copy(fixture("nets/plain/glintr100.onnx"), folder.path().join("rec.onnx")).unwrap();
    let analyzer = FaceAnalyzer::open(folder.path()).unwrap();
    let photo = Photo::open(&fixture("face.png")).unwrap();
    let rows = json("faces.json");
    let expected = rows.as_array().unwrap().iter().find(|r| r["net"] == "boxes").unwrap();
    let found = analyzer.detections(&photo.image).unwrap().faces;
    for (want, got) in expected["faces"].as_array().unwrap().iter().zip(&found) {
        assert!(floats(&want["bbox"]).iter().zip(got.bbox).all(|(a, b)| (a - b).abs() < 0.01));
    }
    assert_eq!(found.len(), expected["faces"].as_array().unwrap().len());
    let error = analyzer.analyze(&photo).unwrap().choose(None).unwrap_err().to_string();
    assert!(error.contains("no keypoints"), "{error}");
}

#[test]
fn smaller_detection_sizes_are_tried_when_nothing_is_found() {
    let rows = json("faces.json");
    let row = rows.as_array().unwrap().iter().find(|r| !r["fade"].is_null()).unwrap();
    let (divisor, base) = support::pair(&row["fade"]);
    let crop: Vec<u32> = floats(&row["crop"]).iter().map(|&v| v as u32).collect();
    let mut photo = Photo::open(&fixture("face.png")).unwrap();
    photo.image = image::imageops::crop_imm(&photo.image, crop[0], crop[1], crop[2], crop[3]).to_image();
    for v in photo.image.iter_mut() {
        *v = (u32::from(*v) / divisor + base).min(255) as u8;
    }
    let analysis = open("plain").analyze(&photo).unwrap();
    assert_eq!(u64::from(analysis.detection_side), row["side"].as_u64().unwrap());
    assert!(analysis.notices.iter().any(|n| n.contains("detection size")), "{:?}", analysis.notices);
    let expected = row["faces"].as_array().unwrap();
    assert_eq!(analysis.faces.len(), expected.len());
    for want in expected {
        let bbox = floats(&want["bbox"]);
        assert!(analysis.faces.iter().any(|f| (0..4).all(|k| (f.bbox[k] - bbox[k]).abs() < 0.01)), "{bbox:?}");
    }
    // Nothing in a picture of one colour, at any size; said once.
    let blank = faces::RgbImage::from_pixel(300, 200, image::Rgb([127, 127, 127]));
    let analysis = open("five").analyze(&Photo::from_image("blank", blank)).unwrap();
    assert!(analysis.faces.is_empty() == analysis.choose(None).is_err());
}

#[test]
fn a_small_picture_is_measured_as_it_is() {
    let analyzer = open("plain");
    let photo = Photo::open(&fixture("face.png")).unwrap().image;
    let (as_it_is, magnified) =
        (analyzer.detections_unmagnified(&photo).unwrap(), analyzer.detections(&photo).unwrap());
    assert_eq!((photo.dimensions(), as_it_is.side, magnified.side), ((200, 240), 256, 640));
    assert!(!as_it_is.faces.is_empty() && as_it_is.faces != magnified.faces);
    // Strides of 64 and 128 have to fit into the side.
    assert_eq!(open("five").detections_unmagnified(&photo).unwrap().side, 256);
    let large = image::imageops::resize(&photo, 700, 840, image::imageops::FilterType::Triangle);
    let (one, other) = (analyzer.detections_unmagnified(&large).unwrap(), analyzer.detections(&large).unwrap());
    assert_eq!((one.faces, one.side), (other.faces, other.side));
}

#[test]
fn hostile_networks_are_refused_with_their_sentence() {
    let detector = std::fs::read(fixture("nets/plain/scrfd_10g_bnkps.onnx")).unwrap();
    let photo = Photo::open(&fixture("face.png")).unwrap();
    for (file, word) in json("hostile.json").as_object().unwrap() {
        let bytes = std::fs::read(fixture("hostile").join(file)).unwrap();
        let sentence = match FaceAnalyzer::from_bytes(detector.clone(), bytes) {
            Err(error) => error.to_string(),
            Ok(analyzer) => {
                let analysis = analyzer.analyze(&photo).unwrap();
                assert!(analysis.faces.is_empty(), "{file} gave an embedding");
                analysis.choose(None).unwrap_err().to_string()
            }
        };
        println!("{file}: {sentence}");
        assert!(sentence.contains(word.as_str().unwrap()), "{file}: {sentence}");
    }
}

#[test]
fn folders_without_networks_say_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let error = FaceAnalyzer::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("holds no detector"), "{error}");
    std::fs::copy(fixture("nets/plain/scrfd_10g_bnkps.onnx"), folder.path().join("a.onnx")).unwrap();
    let error = FaceAnalyzer::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("holds no recogniser"), "{error}");
    std::fs::write(folder.path().join("glintr100.onnx"), b"version https://git-lfs").unwrap();
    let error = FaceAnalyzer::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("glintr100.onnx"), "{error}");
    assert!(FaceAnalyzer::open(&fixture("nowhere")).err().unwrap().to_string().contains("no such folder"));
}

#[test]
fn several_pictures_are_averaged_and_bad_ones_reported() {
    let analyzer = open("plain");
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("saved.safetensors");
    let limits = PhotoLimits::default();
    let (first, _) = analyzer.identity(&fixture("face.png"), None, &limits).unwrap();
    first.save(&saved).unwrap();
    assert_eq!(Identity::open(&saved).unwrap(), first);
    assert_eq!(std::fs::read(&saved).unwrap(), first.to_bytes().unwrap());
    std::fs::write(folder.path().join("broken.png"), b"\x89PNG\r\n\x1a\nnothing").unwrap();
    let paths = [saved.clone(), folder.path().join("broken.png"), fixture("face.png")];
    let averaged = analyzer.average(&paths, None, &limits).unwrap();
    assert!(cosine(&averaged.identity.embedding, &first.embedding) > 0.9999999);
    let skipped: Vec<bool> = averaged.reports.iter().map(|r| r.skipped.is_some()).collect();
    assert_eq!(skipped, [false, true, false]);
    let error = analyzer.average(&paths[1..2], None, &limits).unwrap_err().to_string();
    assert!(error.contains("broken.png"), "{error}");
    let both = [paths[1].clone(), paths[1].clone()];
    let error = analyzer.average(&both, None, &limits).unwrap_err().to_string();
    assert!(error.contains("none of the 2 pictures"), "{error}");
}

#[test]
fn a_stranger_among_three_is_skipped() {
    let person = |sign: f32, shift: usize| {
        let embedding = (0..512).map(|i| sign * ((i * 37 % 101) as f32 - 50.0) + ((i * shift) % 13) as f32).collect();
        Ok((Identity { embedding, ..Identity::default() }, Vec::new()))
    };
    let read = vec![("a".into(), person(1.0, 3)), ("b".into(), person(1.0, 5)), ("c".into(), person(-1.0, 7))];
    let averaged = faces::average(read).unwrap();
    assert!(averaged.reports[2].skipped.as_ref().unwrap().contains("somebody else"));
    assert!(averaged.reports[0].skipped.is_none() && averaged.reports[1].skipped.is_none());
    let two = faces::average(vec![("a".into(), person(1.0, 3)), ("c".into(), person(-1.0, 7))]).unwrap();
    assert!(two.reports[1].notices[0].contains("two people"));
}

#[test]
fn identity_files_of_reactor_and_hostile_ones() {
    let reactor = Identity::open(&fixture("reactor.safetensors")).unwrap();
    assert_eq!(reactor.embedding.len(), 512);
    assert_eq!(reactor.bbox, Some([10.0, 20.0, 110.0, 150.0]));
    assert_eq!(reactor.det_score, Some(0.83));
    assert!(reactor.kps.is_some() && reactor.size.is_none());
    assert!(Identity::sniff(&fixture("reactor.safetensors")));
    assert!(!Identity::sniff(&fixture("face.png")));

    let file = |header: &str, data: &[u8]| {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.as_bytes());
        out.extend(data);
        out
    };
    let one = |name: &str, kind: &str, shape: &str, bytes: usize, fill: u8| {
        let header = format!("{{\"{name}\":{{\"dtype\":\"{kind}\",\"shape\":{shape},\"data_offsets\":[0,{bytes}]}}}}");
        file(&header, &vec![fill; bytes])
    };
    let rows = [
        (Vec::new(), "no valid safetensors"),
        (u64::MAX.to_le_bytes().to_vec(), "no valid safetensors"),
        (file("{}", &[]), "no tensor `embedding`"),
        (one("embedding", "F32", "[512]", 2048, 0), "is zero"),
        (one("embedding", "F32", "[512]", 2048, 0xff), "not finite"),
        (one("embedding", "I64", "[16]", 128, 1), "floating point"),
        (one("embedding", "F32", "[3]", 12, 1), "has 3 values"),
        (one("embedding", "F32", "[4611686018427387904]", 16, 1), "no valid safetensors"),
        (file(&"[".repeat(100_000), &[]), "no valid safetensors"),
    ];
    for (bytes, word) in rows {
        let error = Identity::from_bytes("x", &bytes).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}
