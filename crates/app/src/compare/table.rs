//! The numbers: as an object for programs, as a table for a terminal, and what each means.

use ::compare::{Cell, Comparison, Measures, Reality, Summary};
use serde_json::{Value, json};

use super::Made;
use super::journal::Journal;
use crate::fault::Fault;
use crate::output;

/// A column of the table.
pub(crate) struct Head {
    pub(crate) name: &'static str,
    pub(crate) meaning: &'static str,
    /// Whether more is better, where that can be said.
    pub(crate) better: &'static str,
    pub(crate) of: fn(&Summary) -> Option<f64>,
    /// The same of the people's own pictures.
    pub(crate) real: fn(&Reality) -> Option<f64>,
    digits: usize,
}

/// All columns, here and on the terminal.
pub(crate) const HEADS: [Head; 10] = [
    Head {
        name: "SimRef",
        meaning: "similarity to the given picture: the cosine of the judge's embeddings, 1 for the same picture, 0 for strangers",
        better: "more is better, up to what their own pictures have",
        of: |s| s.sim_ref,
        real: |r| r.sim_ref,
        digits: 3,
    },
    Head {
        name: "SimGT",
        meaning: "mean similarity to other pictures of the person, which no method has seen",
        better: "more is better, up to what their own pictures have",
        of: |s| s.sim_gt,
        real: |r| r.sim_gt,
        digits: 3,
    },
    Head {
        name: "copy-paste",
        meaning: "SimRef - SimGT: how much nearer to the given picture than to others of the same person; copying raises it",
        better: "about as much as their own pictures have",
        of: |s| s.copy_paste,
        real: |r| Some(r.sim_ref? - r.sim_gt?),
        digits: 3,
    },
    Head {
        name: "top-1",
        meaning: "share of pictures whose nearest person among all at hand is the right one",
        better: "more is better",
        of: |s| s.top1,
        real: |r| r.top1,
        digits: 3,
    },
    Head {
        name: "text",
        meaning: "share of what the prompt asks for (style, clothing, background and so on) that the judge's content \
                  network reads in the picture; prompts in free words ask for nothing that can be checked",
        better: "more is better, up to what is read right in drawings",
        of: |s| s.text,
        real: |r| r.text,
        digits: 3,
    },
    Head {
        name: "keypoints",
        meaning: "mean distance of the keypoints that the judge's content network reads from those asked for, over the \
                  distance of the eyes",
        better: "less is better, down to the error in drawings",
        of: |s| s.keypoint_error,
        real: |r| r.keypoint_error,
        digits: 3,
    },
    Head {
        name: "stranger",
        meaning: "similarity to the person whose embedding was put in place",
        better: "as high as SimRef is elsewhere: then identity follows the embedding and nothing else",
        of: |s| s.sim_stranger,
        real: |r| r.sim_others,
        digits: 3,
    },
    Head {
        name: "pictures",
        meaning: "pictures made",
        better: "",
        of: |s| Some(s.pictures as f64),
        real: |_| None,
        digits: 0,
    },
    Head {
        name: "found",
        meaning: "share in which the stack's detector finds a face; in the others the keypoints asked for are used",
        better: "",
        of: |s| Some(s.found as f64 / s.pictures.max(1) as f64),
        real: |_| None,
        digits: 2,
    },
    Head {
        name: "seconds",
        meaning: "time of making a picture, the median",
        better: "",
        of: |s| s.seconds,
        real: |_| None,
        digits: 1,
    },
];

impl Head {
    /// A number as it is written.
    pub(crate) fn text(&self, value: Option<f64>) -> String {
        let Some(value) = value else { return "-".into() };
        let text = format!("{value:.*}", self.digits);
        // A zero has no sign.
        match text.strip_prefix('-') {
            Some(zero) if zero.chars().all(|c| matches!(c, '0' | '.')) => zero.into(),
            _ => text,
        }
    }
}

/// The columns in which anything was measured.
pub(crate) fn measured(summaries: &[Summary]) -> Vec<&'static Head> {
    HEADS.iter().filter(|head| summaries.iter().any(|summary| (head.of)(summary).is_some())).collect()
}

/// Everything, for programs.
pub(crate) fn table(comparison: &Comparison, made: &Made, journal: &Journal) -> Value {
    let people = comparison.people.iter().enumerate().map(|(i, person)| {
        let reference = person.photo.is_some().then(|| super::reference(i));
        json!({"name": person.name, "reference": reference, "others": person.others()})
    });
    let prompts = comparison.prompts.iter().map(|prompt| json!({"prompt": prompt.text, "asks": prompt.asks}));
    let line = |(cell, _): &(Cell, Measures)| journal.get(&super::path(comparison, *cell)).map(|entry| entry.line());
    json!({
        "columns": made.summaries,
        "reality": made.reality,
        "people_at_hand": made.at_hand,
        "judge": made.judge,
        "people": people.collect::<Vec<_>>(),
        "prompts": prompts.collect::<Vec<_>>(),
        "settings": journal.settings(),
        "pictures_wanted": made.wanted,
        "pictures": made.measured.iter().filter_map(line).collect::<Vec<_>>(),
    })
}

/// The table for a terminal.
pub(crate) fn tell(made: &Made) -> Result<(), Fault> {
    const OWN: &str = "their own pictures";
    let width = made.summaries.iter().map(|s| s.title.chars().count()).max().unwrap_or(0).max(OWN.len());
    let heads = measured(&made.summaries);
    let line = |title: &str, value: &dyn Fn(&Head) -> String| {
        let values: String =
            heads.iter().map(|head| format!("{:>1$}", value(head), head.name.len().max(6) + 2)).collect();
        output::line(&format!("{title:width$}{values}"))
    };
    line("", &|head| head.name.into())?;
    for summary in &made.summaries {
        line(&summary.title, &|head| head.text((head.of)(summary)))?;
    }
    line(OWN, &|head| head.text((head.real)(&made.reality)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_with_the_digits_that_mean_something() {
        let head = |name: &str| HEADS.iter().find(|head| head.name == name).unwrap();
        for (name, value, text) in [
            ("SimRef", Some(0.2966), "0.297"),
            ("copy-paste", Some(-0.0004), "0.000"),
            ("copy-paste", Some(-0.0006), "-0.001"),
            ("pictures", Some(24.0), "24"),
            ("text", None, "-"),
        ] {
            assert_eq!(head(name).text(value), text, "{name}");
        }
    }
}
