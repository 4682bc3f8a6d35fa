//! What a model folder says about itself beyond diffusers' files: an optional `sameface.json`.
//!
//! ```json
//! {"defaults": {"steps": 20, "guidance": 3, "identitynet_scale": 1, "ip_adapter_scale": 1}, "subject": "drawn characters"}
//! ```
//!
//! `defaults` stand in for InstantID's own where the user says nothing; `subject` is all that the model can show, and a
//! photograph of anything else gets a note.

use crate::metadata;
use crate::request::Request;
use crate::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// Name of the file.
const FILE: &str = "sameface.json";

/// A model's own defaults and limits; nothing said by default.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct About {
    pub(crate) steps: Option<usize>,
    pub(crate) guidance: Option<f64>,
    pub(crate) identitynet_scale: Option<f64>,
    pub(crate) ip_adapter_scale: Option<f64>,
    pub(crate) subject: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    defaults: Defaults,
    subject: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Defaults {
    steps: Option<usize>,
    guidance: Option<f64>,
    identitynet_scale: Option<f64>,
    ip_adapter_scale: Option<f64>,
}

impl About {
    /// Reads the file of a model folder, if there is one.
    pub(crate) fn open(folder: &Path) -> Result<About> {
        let path = folder.join(FILE);
        if !path.is_file() {
            return Ok(About::default());
        }
        let text = std::fs::read(&path).map_err(Error::unread(&path))?;
        let File { defaults, subject } = serde_json::from_slice(&text)
            .map_err(|e| Error::Refused(format!("{} cannot be used: {e}", path.display())))?;
        let Defaults { steps, guidance, identitynet_scale, ip_adapter_scale } = defaults;
        let about = About { steps, guidance, identitynet_scale, ip_adapter_scale, subject };
        about.check().map_err(|e| Error::Refused(format!("{} cannot be used: {e}", path.display())))?;
        Ok(about)
    }

    /// The same ranges hold as for what the user says.
    fn check(&self) -> Result<()> {
        let mut said = Request::new("", crate::ModelPaths::default());
        (said.steps, said.guidance) = (self.steps, self.guidance);
        (said.identitynet_scale, said.ip_adapter_scale) = (self.identitynet_scale, self.ip_adapter_scale);
        said.check()
    }

    /// A sentence for each photo that shows what the model does not know.
    pub(crate) fn notes(&self, request: &Request) -> Vec<String> {
        let Some(subject) = self.subject.as_ref().filter(|_| request.wants_identity()) else { return Vec::new() };
        let photos = request.faces.iter().filter(|path| !faces::Identity::sniff(path));
        let strange = photos.filter(|path| metadata::drawn(path).is_none());
        strange
            .map(|path| {
                format!(
                    "these models know {subject} only, and {} is not one of them; `sameface models pull instantid` brings models for photographs",
                    path.display()
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_says_its_defaults_or_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(About::open(folder.path()).unwrap(), About::default());
        for (text, said) in [
            (r#"{"defaults": {"steps": 20, "guidance": 3}, "subject": "drawn characters"}"#, None),
            (r#"{"defaults": {"steps": 0}}"#, Some("--steps is 0")),
            (r#"{"defaults": {"stepz": 1}}"#, Some("stepz")),
            ("[", Some("sameface.json")),
        ] {
            std::fs::write(folder.path().join(FILE), text).unwrap();
            match (About::open(folder.path()), said) {
                (Ok(about), None) => assert_eq!((about.steps, about.guidance), (Some(20), Some(3.0))),
                (Err(error), Some(said)) => assert!(error.to_string().contains(said), "{error}"),
                (other, _) => panic!("{text}: {other:?}"),
            }
        }
    }
}
