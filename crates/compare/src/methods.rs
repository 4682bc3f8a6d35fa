//! The methods as a table: a later one is one entry more.

use crate::{Error, Result};
use engine::{Embedding, Request};
use std::path::Path;

/// What a method may use beside the request.
pub struct Setting<'a> {
    /// The weight to run at; `None` is the model's own.
    pub scale: Option<f64>,
    /// Somebody else's saved identity.
    pub stranger: Option<&'a Path>,
}

/// A way to make a picture of a person, or a control beside it.
pub struct Method {
    /// On the command line and in files.
    pub name: &'static str,
    /// Over a column.
    pub title: &'static str,
    /// In a sentence.
    pub about: &'static str,
    /// Whether it shows what the others rest on; controls are always run.
    pub control: bool,
    /// Whether it has a weight.
    pub scaled: bool,
    /// Whether it needs a second person.
    pub(crate) needs_stranger: bool,
    /// Turns a request for InstantID into one for this method.
    pub(crate) apply: fn(&mut Request, &Setting),
}

/// All methods.
pub const METHODS: &[Method] = &[
    Method {
        name: "text",
        title: "text only",
        about: "the prompt alone, with the same noise",
        control: true,
        scaled: false,
        needs_stranger: false,
        apply: |request, _| request.faces.clear(),
    },
    Method {
        name: "adapter",
        title: "IP-Adapter",
        about: "the identity branch of cross-attention alone",
        control: false,
        scaled: true,
        needs_stranger: false,
        apply: |request, setting| {
            request.identitynet_scale = Some(0.0);
            request.ip_adapter_scale = setting.scale.or(request.ip_adapter_scale);
        },
    },
    Method {
        name: "identitynet",
        title: "IdentityNet",
        about: "IdentityNet alone: identity and keypoints",
        control: false,
        scaled: true,
        needs_stranger: false,
        apply: |request, setting| {
            request.ip_adapter_scale = Some(0.0);
            request.identitynet_scale = setting.scale.or(request.identitynet_scale);
        },
    },
    Method {
        name: "instantid",
        title: "InstantID",
        about: "IdentityNet and the adapter together",
        control: false,
        scaled: true,
        needs_stranger: false,
        apply: |request, setting| {
            request.ip_adapter_scale = setting.scale.or(request.ip_adapter_scale);
        },
    },
    Method {
        name: "nobody",
        title: "no identity",
        about: "control: InstantID with the keypoints kept and an embedding of zeros",
        control: true,
        scaled: false,
        needs_stranger: false,
        apply: |request, _| request.embedding = Some(Embedding::Zero),
    },
    Method {
        name: "stranger",
        title: "another's",
        about: "control: InstantID with the keypoints kept and another person's embedding",
        control: true,
        scaled: false,
        needs_stranger: true,
        apply: |request, setting| {
            request.embedding = setting.stranger.map(|path| Embedding::Of(path.to_path_buf()));
        },
    },
];

/// A method at a weight.
#[derive(Clone, Copy)]
pub struct Column {
    /// The method.
    pub method: &'static Method,
    /// Its weight; `None` is the model's own.
    pub scale: Option<f64>,
}

impl Column {
    /// For files.
    pub fn name(&self) -> String {
        self.scale.map_or_else(|| self.method.name.into(), |scale| format!("{}-{scale}", self.method.name))
    }

    /// For people.
    pub fn title(&self) -> String {
        self.scale.map_or_else(|| self.method.title.into(), |scale| format!("{} {scale}", self.method.title))
    }
}

/// The columns of a table: the methods asked for (all if none is), each at each weight, and the controls whether asked
/// for or not.
///
/// # Errors
/// A name that is no method, a weight out of its range.
pub fn columns(names: &[String], scales: &[f64]) -> Result<Vec<Column>> {
    if let Some(name) = names.iter().find(|name| METHODS.iter().all(|method| method.name != name.as_str())) {
        let known: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
        return Err(Error::Refused(format!(
            "--methods {name}: there is no such method; valid are {}",
            known.join(", ")
        )));
    }
    if let Some(scale) = scales.iter().find(|scale| !(0.0..=10.0).contains(*scale)) {
        return Err(Error::Refused(format!("--scales {scale}: a weight must be between 0 and 10")));
    }
    if let Some((_, scale)) = scales.iter().enumerate().find(|(i, scale)| scales[..*i].contains(scale)) {
        return Err(Error::Refused(format!("--scales names {scale} twice; each weight is a column of its own")));
    }
    let wanted = |method: &&Method| method.control || names.is_empty() || names.iter().any(|name| name == method.name);
    let weights = |method: &Method| match method.scaled && !scales.is_empty() {
        true => scales.iter().copied().map(Some).collect(),
        false => vec![None],
    };
    let all = METHODS.iter().filter(wanted);
    Ok(all.flat_map(|method| weights(method).into_iter().map(move |scale| Column { method, scale })).collect())
}
