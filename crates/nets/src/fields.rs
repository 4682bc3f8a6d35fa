//! Reading config.json: every value checked, refusals by name.

use crate::{Error, Result};
use serde_json::{Map, Value};
use tensor::ops::Activation;

/// No published model comes near; anything above is damage or malice.
pub(crate) const LARGEST: usize = 1 << 16;
/// Blocks of one network, layers of one block.
pub(crate) const DEEPEST: usize = 256;

/// The fields of one configuration.
pub(crate) struct Fields<'a> {
    pub(crate) model: &'static str,
    map: &'a Map<String, Value>,
}

/// An error about a configuration field.
pub(crate) fn config_error(
    model: &'static str,
    field: impl Into<String>,
    value: impl std::fmt::Display,
    expected: impl Into<String>,
) -> Error {
    let mut shown = value.to_string();
    if shown.chars().count() > 80 {
        shown = shown.chars().take(77).chain("...".chars()).collect();
    }
    Error::Config { model, field: field.into(), value: shown, expected: expected.into() }
}

impl<'a> Fields<'a> {
    pub(crate) fn new(model: &'static str, config: &'a Value) -> Result<Self> {
        let map = config
            .as_object()
            .ok_or_else(|| config_error(model, "config.json", config, "expected an object with named fields"))?;
        Ok(Fields { model, map })
    }

    /// The value, unless it is absent or null.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is there and null.
    pub(crate) fn is_null(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(Value::is_null)
    }

    pub(crate) fn refuse(&self, field: &str, expected: impl Into<String>) -> Error {
        config_error(self.model, field, self.map.get(field).unwrap_or(&Value::Null), expected)
    }

    /// Refuses every value but null and the given ones: the network has no code for others.
    pub(crate) fn only(&self, field: &str, neutral: &[Value]) -> Result<()> {
        match self.get(field) {
            Some(value)
                if !neutral.iter().any(|n| n == value || n.as_f64().is_some_and(|n| value.as_f64() == Some(n))) =>
            {
                let valid: Vec<String> = std::iter::once(&Value::Null).chain(neutral).map(Value::to_string).collect();
                Err(self.refuse(field, format!("only {} is supported", valid.join(" or "))))
            }
            _ => Ok(()),
        }
    }

    fn as_size(value: &Value, largest: usize) -> Option<usize> {
        value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=largest).contains(n))
    }

    /// A positive whole number, none where the field is absent or null.
    pub(crate) fn size_if(&self, field: &str) -> Result<Option<usize>> {
        self.get(field)
            .map(|value| {
                Self::as_size(value, LARGEST)
                    .ok_or_else(|| self.refuse(field, format!("expected a whole number from 1 to {LARGEST}")))
            })
            .transpose()
    }

    pub(crate) fn size(&self, field: &str, default: usize) -> Result<usize> {
        Ok(self.size_if(field)?.unwrap_or(default))
    }

    /// A list of positive whole numbers.
    pub(crate) fn sizes(&self, field: &str) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let expected =
            || self.refuse(field, format!("expected a list of 1 to {DEEPEST} whole numbers from 1 to {LARGEST}"));
        let list = value.as_array().filter(|list| (1..=DEEPEST).contains(&list.len())).ok_or_else(expected)?;
        list.iter().map(|item| Self::as_size(item, LARGEST)).collect::<Option<_>>().map(Some).ok_or_else(expected)
    }

    /// One number for all levels, or a list with one for each.
    pub(crate) fn per_level(&self, field: &str, levels: usize, default: usize) -> Result<Vec<usize>> {
        match self.get(field) {
            None => Ok(vec![default; levels]),
            Some(Value::Number(_)) => Ok(vec![self.size(field, default)?; levels]),
            Some(_) => match self.sizes(field)? {
                Some(list) if list.len() == levels => Ok(list),
                _ => Err(self.refuse(field, format!("expected one number, or {levels}: one for each level"))),
            },
        }
    }

    pub(crate) fn number(&self, field: &str, default: f32) -> Result<f32> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .map(|x| x as f32)
                .filter(|x| x.is_finite())
                .ok_or_else(|| self.refuse(field, "expected a finite number")),
        }
    }

    /// A small positive number that is added to variances.
    pub(crate) fn eps(&self, field: &str, default: f32) -> Result<f32> {
        Some(self.number(field, default)?)
            .filter(|eps| (0.0..=1.0).contains(eps))
            .ok_or_else(|| self.refuse(field, "expected a number from 0 to 1"))
    }

    pub(crate) fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.refuse(field, "expected true or false")),
        }
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<&'a str>> {
        self.get(field).map(|value| value.as_str().ok_or_else(|| self.refuse(field, "expected a text"))).transpose()
    }

    /// A list of names.
    pub(crate) fn texts(&self, field: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let list = value.as_array().map(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        list.flatten().map(Some).ok_or_else(|| self.refuse(field, "expected a list of names"))
    }

    /// A list of finite numbers of the given length.
    pub(crate) fn numbers(&self, field: &str, len: usize) -> Result<Option<Vec<f32>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let parsed = value
            .as_array()
            .filter(|list| list.len() == len)
            .and_then(|list| list.iter().map(|x| x.as_f64().map(|x| x as f32)).collect::<Option<Vec<f32>>>())
            .filter(|list| list.iter().all(|x| x.is_finite()));
        parsed.map(Some).ok_or_else(|| self.refuse(field, format!("expected {len} finite numbers")))
    }

    pub(crate) fn activation(&self, field: &str, default: Activation) -> Result<Activation> {
        Ok(match self.text(field)? {
            None => default,
            Some("silu" | "swish") => Activation::Silu,
            Some("gelu") => Activation::Gelu,
            Some("quick_gelu") => Activation::QuickGelu,
            Some("gelu_pytorch_tanh" | "gelu_new") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            Some(_) => return Err(self.refuse(field, "expected silu, swish, gelu, quick_gelu, gelu_new or relu")),
        })
    }
}
