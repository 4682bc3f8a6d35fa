//! What the user's surroundings say about models: read once, by the caller, and handed in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Result};

/// Where models lie and where they come from.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// `$SAMEFACE_HOME`.
    pub home: Option<PathBuf>,
    /// `$SAMEFACE_HOME/models`, or `$SAMEFACE_HOME` itself where that is such a folder, if `SAMEFACE_HOME` is set.
    pub models: Option<PathBuf>,
    /// The hub's cache, which holds `models--ORG--NAME` folders.
    pub cache: PathBuf,
    /// The hub, without a slash at the end.
    pub endpoint: String,
    /// Sent to the endpoint's own host only.
    pub token: Option<String>,
    /// Whether asking the hub is forbidden.
    pub offline: bool,
    /// A proxy's address, if one is to be used.
    pub proxy: Option<String>,
    /// Hosts that are reached without the proxy, as `NO_PROXY` writes them.
    pub no_proxy: Option<String>,
    /// How long to wait and how often to try again.
    pub patience: Patience,
}

/// How long to wait and how often to try again.
#[derive(Clone, Debug)]
pub struct Patience {
    /// Failures in a row before giving up; an attempt that brought at least [`Patience::progress`] bytes forgives
    /// the earlier ones.
    pub attempts: u32,
    /// The wait after the first failure; it doubles each time, up to half a minute.
    pub first_wait: Duration,
    /// The longest that a server's `Retry-After` is obeyed.
    pub longest_wait: Duration,
    /// The longest silence on an open connection.
    pub silence: Duration,
    /// Bytes that count as progress.
    pub progress: u64,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            attempts: 6,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(120),
            silence: Duration::from_secs(30),
            progress: 1 << 20,
        }
    }
}

impl HubConfig {
    /// Reads the variables that `huggingface_hub` reads, by the same rules, and `SAMEFACE_HOME`. `var` answers with
    /// a variable's value; an empty one counts as unset.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<HubConfig> {
        let get = |names: &[&str]| names.iter().find_map(|name| var(name).filter(|value| !value.trim().is_empty()));
        let user = get(&["HOME", "USERPROFILE"]).map(PathBuf::from).unwrap_or_default();
        let path = |names: &[&str]| get(names).map(|text| expand(&text, &user));

        let caches = path(&["XDG_CACHE_HOME"]).unwrap_or_else(|| user.join(".cache"));
        let hf_home = path(&["HF_HOME"]).unwrap_or_else(|| caches.join("huggingface"));
        let cache = path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).unwrap_or_else(|| hf_home.join("hub"));
        let token_file = path(&["HF_TOKEN_PATH"]).unwrap_or_else(|| hf_home.join("token"));
        let token = get(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
            .or_else(|| std::fs::read_to_string(token_file).ok())
            .map(|text| text.trim().to_string())
            .filter(|text| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()));

        let endpoint = get(&["HF_ENDPOINT"]).unwrap_or_else(|| "https://huggingface.co".to_string());
        let endpoint = endpoint.trim().trim_end_matches('/').to_string();
        if !is_address(&endpoint) {
            let (variable, example) = ("HF_ENDPOINT", "https://huggingface.co");
            return Err(Error::BadAddress { variable, value: endpoint, example });
        }
        let proxies: &[&str] = match endpoint.starts_with("https:") {
            true => &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
            false => &["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
        };
        let home = path(&["SAMEFACE_HOME"]);
        Ok(HubConfig {
            models: home.as_deref().map(models_of),
            home,
            cache,
            endpoint,
            token,
            offline: get(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(|value| is_true(&value)),
            proxy: get(proxies),
            no_proxy: get(&["NO_PROXY", "no_proxy"]),
            patience: Patience::default(),
        })
    }
}

/// The folder of models of a home. Who names ComfyUI's or A1111's `models` itself means the same.
fn models_of(home: &Path) -> PathBuf {
    let models = home.join("models");
    let shelves = ["checkpoints", "Stable-diffusion", "controlnet", "ControlNet"];
    let is_it = !models.is_dir() && shelves.iter().any(|shelf| home.join(shelf).is_dir());
    if is_it { home.to_path_buf() } else { models }
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_lowercase().as_str())
}

pub(crate) fn is_address(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_graphic()) && !rest.starts_with('/'))
}

/// `~` at the beginning stands for the user's own folder, as in `huggingface_hub`.
fn expand(text: &str, user: &Path) -> PathBuf {
    match text.strip_prefix("~") {
        Some("") => user.to_path_buf(),
        Some(rest) if rest.starts_with('/') => user.join(&rest[1..]),
        _ => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vars: &[(&str, &str)]) -> HubConfig {
        HubConfig::from_vars(|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
            .unwrap()
    }

    #[test]
    fn the_cache_is_found_by_huggingface_hubs_rules() {
        let home = ("HOME", "/home/ada");
        for (vars, cache) in [
            (vec![home], "/home/ada/.cache/huggingface/hub"),
            (vec![home, ("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (vec![home, ("HF_HOME", "~/hf")], "/home/ada/hf/hub"),
            (vec![home, ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/elsewhere")], "/elsewhere"),
            (vec![home, ("HF_HOME", "")], "/home/ada/.cache/huggingface/hub"),
        ] {
            assert_eq!(config(&vars).cache, PathBuf::from(cache), "{vars:?}");
        }
    }

    #[test]
    fn switches_and_addresses() {
        assert!(config(&[("HF_HUB_OFFLINE", "1")]).offline);
        assert!(config(&[("HF_HUB_OFFLINE", "Yes")]).offline);
        assert!(!config(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert_eq!(config(&[("HF_ENDPOINT", "https://hf-mirror.com/")]).endpoint, "https://hf-mirror.com");
        assert_eq!(config(&[("HF_TOKEN", " hf_x\n")]).token.as_deref(), Some("hf_x"));
        assert_eq!(config(&[("SAMEFACE_HOME", "/s")]).models, Some(PathBuf::from("/s/models")));
        let wrong = HubConfig::from_vars(|name| (name == "HF_ENDPOINT").then(|| "huggingface.co".to_string()));
        assert!(wrong.unwrap_err().to_string().contains("HF_ENDPOINT is `huggingface.co`"));
    }
}
