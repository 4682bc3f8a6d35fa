//! Pulling from a server on this machine: what arrives, what is asked again, and what is said.

mod server;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hub::{Error, Event, HubConfig, Patience, Plan, plan, pull};
use server::{COMMIT, Fault, REPO, Server, Storage, git_hash, sha256};

const FILE: &str = "unet/weights.safetensors";

fn config(server: &Server, cache: &Path) -> HubConfig {
    let quick = Patience {
        attempts: 4,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(20),
        silence: Duration::from_millis(400),
        progress: 1000,
    };
    HubConfig {
        home: None,
        models: None,
        cache: cache.to_path_buf(),
        endpoint: server.endpoint.clone(),
        token: None,
        offline: false,
        proxy: None,
        no_proxy: None,
        patience: quick,
    }
}

/// Content that no two places share.
fn content(length: usize) -> Vec<u8> {
    (0..length as u32).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8).collect()
}

fn server() -> Server {
    Server::start(&[
        ("model_index.json", b"{\"_class_name\": \"X\"}".to_vec(), Storage::Here),
        ("unet/config.json", b"{}".to_vec(), Storage::Here),
        (FILE, content(100_000), Storage::Elsewhere),
    ])
}

/// Plans and pulls `REPO`; returns the outcome and all that was said.
fn run(config: &HubConfig) -> (Result<PathBuf, Error>, Vec<String>) {
    let mut notes = Vec::new();
    let outcome = plan(config, REPO).and_then(|plan| run_plan(config, &plan, &mut notes));
    (outcome, notes)
}

fn run_plan(config: &HubConfig, plan: &Plan, notes: &mut Vec<String>) -> Result<PathBuf, Error> {
    let mut tell = |event: Event| {
        if let Event::Note(note) = event {
            notes.push(note);
        }
        ControlFlow::Continue(())
    };
    pull(config, plan, &mut tell).map(|pulled| pulled[0].path.clone())
}

fn blobs(cache: &Path) -> Vec<String> {
    let folder = cache.join("models--org--model/blobs");
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn the_cache_looks_as_huggingface_hub_leaves_it() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let (outcome, notes) = run(&config(&server, cache.path()));
    let path = outcome.unwrap();
    let repo = cache.path().join("models--org--model");
    assert_eq!(path, repo.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read(path.join(FILE)).unwrap(), content(100_000));
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let mut sums = vec![sha256(&content(100_000)), git_hash(b"{}"), git_hash(b"{\"_class_name\": \"X\"}")];
    sums.sort();
    assert_eq!(blobs(cache.path()), sums);
    #[cfg(unix)]
    assert_eq!(
        std::fs::read_link(path.join("unet/config.json")).unwrap(),
        Path::new("../../../blobs").join(git_hash(b"{}"))
    );
    assert!(notes.is_empty(), "{notes:?}");

    // Again: nothing is fetched, not even asked for by file.
    server.state().log.clear();
    assert_eq!(run(&config(&server, cache.path())).0.unwrap(), path);
    assert!(server.state().log.iter().all(|(_, path, ..)| path.starts_with("/api/models/")));
}

#[test]
fn interruptions_and_wrong_bytes_are_survived() {
    let ranges = |ranges: &[&str]| -> Vec<Option<String>> {
        ranges.iter().map(|range| (!range.is_empty()).then(|| format!("bytes={range}-"))).collect()
    };
    for (faults, asked, said) in [
        (vec![Fault::Cut(30_000)], vec!["", "30000"], "the connection"),
        (vec![Fault::Cut(1), Fault::Cut(1), Fault::Cut(50_000)], vec!["", "1", "2", "50002"], "the connection"),
        (vec![Fault::Cut(99_999)], vec!["", "99999"], "the connection"),
        (vec![Fault::Cut(30_000), Fault::NoRanges], vec!["", "30000"], "the connection"),
        (vec![Fault::Cut(30_000), Fault::WrongPlace], vec!["", "30000", ""], "another place"),
        (vec![Fault::WrongBytes], vec!["", ""], "fetching it once more"),
        (vec![Fault::Longer], vec!["", ""], "more bytes where 100000 bytes was expected"),
        (vec![Fault::Cut(30_000), Fault::WrongBytes], vec!["", "30000", ""], "fetching it once more"),
        (vec![Fault::Status(503, ""), Fault::Status(500, "")], vec!["", "", ""], "the server says 503"),
        (vec![Fault::Status(429, "Retry-After: 1\r\n")], vec!["", ""], "the server says 429"),
        (vec![Fault::Silence], vec!["", ""], "silent"),
    ] {
        let (server, cache) = (server(), tempfile::tempdir().unwrap());
        server.fault(FILE, &faults);
        let (outcome, notes) = run(&config(&server, cache.path()));
        let path = outcome.unwrap_or_else(|error| panic!("{faults:?}: {error}"));
        assert_eq!(std::fs::read(path.join(FILE)).unwrap(), content(100_000), "{faults:?}");
        assert_eq!(server.ranges(), ranges(&asked), "{faults:?}");
        assert!(notes.iter().any(|note| note.contains(said)), "{faults:?}: {notes:?}");
        assert!(blobs(cache.path()).iter().all(|name| !name.contains("incomplete")), "{faults:?}");
    }
}

#[test]
fn what_does_not_pass_ends_with_a_sentence() {
    let cut = |n: usize| vec![Fault::NoRangesCut(n); 9];
    for (faults, said, kept) in [
        (vec![Fault::WrongBytes, Fault::WrongBytes], "twice; nothing was kept", false),
        (vec![Fault::Status(503, ""); 9], "after 4 attempts: the server says 503", false),
        (vec![Fault::Cut(100); 9], "what arrived is kept", true),
        // A server without ranges that never gets farther is not asked for ever.
        (cut(50_000), "after 4 attempts", true),
        (vec![Fault::Status(404, "")], "has no unet/weights.safetensors in org/model", false),
        (vec![Fault::Status(403, "")], "refuses org/model (403): it is private, gated or absent", false),
        (vec![Fault::Status(418, "")], "gave a reply that the hub would not give", false),
    ] {
        let (server, cache) = (server(), tempfile::tempdir().unwrap());
        server.fault(FILE, &faults);
        let (outcome, _) = run(&config(&server, cache.path()));
        let error = outcome.expect_err(said);
        assert!(error.to_string().contains(said), "{faults:?}: {error}");
        assert!(!error.is_given());
        let partial = blobs(cache.path()).iter().any(|name| name.ends_with(".incomplete"));
        assert_eq!(partial, kept, "{faults:?}");
        let pointer = cache.path().join("models--org--model/snapshots").join(COMMIT).join(FILE);
        assert!(!pointer.exists(), "{faults:?}");
    }
}

#[test]
fn the_next_run_goes_on_where_the_last_one_stopped() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let config = config(&server, cache.path());
    let mut tell = |event: Event| match event {
        Event::Bytes(progress) if progress.done > 50_000 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    server.fault(FILE, &[Fault::Cut(60_000)]);
    let plan = plan(&config, REPO).unwrap();
    assert!(matches!(pull(&config, &plan, &mut tell), Err(Error::Cancelled)));
    let partial =
        cache.path().join("models--org--model/blobs").join(format!("{}.incomplete", sha256(&content(100_000))));
    let kept = std::fs::metadata(&partial).unwrap().len();
    assert!(kept > 0);
    let again = hub::plan(&config, REPO).unwrap();
    assert_eq!(again.missing(), plan.missing() - kept - 22, "a finished file and a partial one count");
    run(&config).0.unwrap();
    assert_eq!(server.ranges().last().unwrap(), &Some(format!("bytes={kept}-")));

    // A partial file that is longer than the file, or spoilt, does no harm.
    for junk in [vec![7; 100_001], vec![7; 100]] {
        let cache = tempfile::tempdir().unwrap();
        let partial = cache.path().join("models--org--model/blobs").join(partial.file_name().unwrap());
        std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
        std::fs::write(&partial, junk).unwrap();
        let path = run(&HubConfig { cache: cache.path().to_path_buf(), ..config.clone() }).0.unwrap();
        assert_eq!(std::fs::read(path.join(FILE)).unwrap(), content(100_000));
    }
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    (server.state().needs_token, server.state().error_code) = (Some("hf_secret".to_string()), "GatedRepo");
    let closed = config(&server, cache.path());
    let error = run(&closed).0.unwrap_err().to_string();
    assert!(error.contains("gated; accept its terms") && error.contains("HF_TOKEN"), "{error}");
    let open = HubConfig { token: Some("hf_secret".to_string()), ..closed.clone() };
    run(&open).0.unwrap();
    let state = server.state();
    assert!(state.log.iter().filter(|(_, path, ..)| path.starts_with("/store")).all(|(.., token)| !token));
    assert!(state.log.iter().any(|(.., token)| *token));
    drop(state);
    let wrong = HubConfig { token: Some("hf_other".to_string()), cache: cache.path().join("b"), ..closed };
    let error = run(&wrong).0.unwrap_err().to_string();
    assert!(error.contains("with the account of your token"), "{error}");
}

#[test]
fn a_head_request_may_fail_too() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let faults = [Fault::Status(503, "Retry-After: 0\r\n"), Fault::Cut(0)];
    server.state().head_faults.insert(FILE.to_string(), faults.into());
    let (outcome, notes) = run(&config(&server, cache.path()));
    outcome.unwrap();
    assert_eq!(notes.len(), 2, "{notes:?}");
}

#[test]
fn nothing_is_asked_when_offline() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let offline = HubConfig { offline: true, ..config(&server, cache.path()) };
    assert!(matches!(run(&offline).0, Err(Error::Offline { .. })));
    let named = plan(&offline, "antelopev2").unwrap();
    assert!(matches!(run_plan(&offline, &named, &mut Vec::new()), Err(Error::Offline { .. })));
    assert!(server.state().log.is_empty());
}

#[test]
fn content_other_than_published_is_refused_before_it_comes() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let config = config(&server, cache.path());
    let mut wrong_sum = plan(&config, REPO).unwrap();
    for file in &mut wrong_sum.parts[0].files {
        file.sha256 = Some("0".repeat(64));
    }
    let error = run_plan(&config, &wrong_sum, &mut Vec::new()).unwrap_err();
    // The small file's ETag says nothing about sha256, so its bytes are judged; the large one's does.
    assert!(matches!(error, Error::WrongBytes { .. } | Error::BadReply { .. }), "{error}");
    assert!(server.ranges().is_empty());
}

#[test]
fn an_unknown_repository_and_a_dead_server() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let config = config(&server, cache.path());
    let error = plan(&config, "org/other").unwrap_err().to_string();
    assert!(error.contains("has no repository org/other"), "{error}");
    // A port that was just free again.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dead = HubConfig { endpoint: format!("http://127.0.0.1:{port}"), ..config };
    let error = plan(&dead, REPO).unwrap_err().to_string();
    assert!(error.contains("after 4 attempts"), "{error}");
}

#[test]
fn two_at_once_fetch_once() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let config = config(&server, cache.path());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| run(&config).0.unwrap());
        }
    });
    assert_eq!(server.ranges(), [None]);
}

#[test]
fn a_disk_without_room_is_seen_before_anything_comes() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let config = config(&server, cache.path());
    let mut plan = plan(&config, REPO).unwrap();
    plan.parts[0].missing = 1 << 60;
    let error = run_plan(&config, &plan, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert!(server.ranges().is_empty());
}
