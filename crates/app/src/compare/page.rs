//! The page of a comparison: a table, curves where methods ran at several weights, and all pictures. It needs no
//! network and no script.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use compare::{Cell, Comparison, Measures, Summary};
use serde_json::Value;

/// Heads of the table, here and on the terminal.
pub(crate) const HEADS: [&str; 10] =
    ["pictures", "found", "SimRef", "SimGT", "copy-paste", "top-1", "text", "keypoints", "stranger", "seconds"];
/// What they measure.
const MEANINGS: [&str; 10] = [
    "pictures made",
    "share in which the stack's detector finds a face; in the others the keypoints asked for are used",
    "cosine to the given picture",
    "mean cosine to other pictures of the person",
    "SimRef - SimGT: how much nearer to the given picture than to others of the same person",
    "share of pictures whose nearest person among all at hand is the right one",
    "share of what the prompt asks for that is seen; free text asks for nothing that can be checked",
    "mean distance of the keypoints seen from those asked for, over the distance of the eyes",
    "cosine to the person whose embedding was put in place",
    "time of making a picture",
];

/// A row of the table.
pub(crate) fn values(summary: &Summary) -> [String; 10] {
    let number = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.3}"));
    [
        summary.pictures.to_string(),
        format!("{:.2}", summary.found as f64 / summary.pictures.max(1) as f64),
        number(summary.sim_ref),
        number(summary.sim_gt),
        number(summary.copy_paste),
        number(summary.top1),
        number(summary.text),
        number(summary.keypoint_error),
        number(summary.sim_stranger),
        summary.seconds.map_or_else(|| "-".into(), |seconds| format!("{seconds:.1}")),
    ]
}

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:110rem;padding:0 1rem;color:#1c1c22;\
background:#fff}table{border-collapse:collapse}th,td{padding:.25rem .6rem;text-align:right;vertical-align:top}th:first-child,\
td:first-child{text-align:left}thead th{border-bottom:2px solid #888}.control td{color:#666}.scroll{overflow-x:auto}\
.pictures td{text-align:left;font-size:13px}.pictures img{width:192px;height:auto;display:block;border-radius:4px}dt{font-weight:600}\
dd{margin:0 0 .3rem 1rem}figure{display:inline-block;margin:0 2rem 1rem 0}@media(prefers-color-scheme:dark){body{background:#16161a;\
color:#e6e6ea}.control td{color:#a0a0a8}}";

/// The whole page.
pub(crate) fn page(
    comparison: &Comparison,
    summaries: &[Summary],
    measured: &[(Cell, Measures)],
    table: &Value,
) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>sameface compare</title>\n<style>{STYLE}</style>\n<h1>The same person by several methods</h1>\n"
    );
    let settings = &table["settings"];
    let _ = writeln!(
        html,
        "<p>{} and {}; {}x{} pixels, {} steps, guidance {}, sampler {}, {} on {}. All columns of a row share their \
         noise. The judge found its person among {} at hand. <a href=\"table.json\">All numbers</a>, \
         <a href=\"grid.png\">the grid</a>.</p>",
        counted(comparison.people.len(), "face", "faces"),
        counted(comparison.prompts.len(), "prompt", "prompts"),
        settings["width"],
        settings["height"],
        settings["steps"],
        settings["guidance"],
        escaped(settings["sampler"].as_str().unwrap_or_default()),
        escaped(settings["precision"].as_str().unwrap_or_default()),
        escaped(settings["device"].as_str().unwrap_or_default()),
        table["people_at_hand"]
    );
    summary_table(&mut html, summaries, &table["reality"]);
    by_key(&mut html, "SimRef by style", summaries, |summary| &summary.sim_ref_by_style);
    by_key(&mut html, "Text by attribute", summaries, |summary| &summary.text_by_attribute);
    curves(&mut html, summaries);
    pictures(&mut html, comparison, measured);
    html
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn summary_table(html: &mut String, summaries: &[Summary], reality: &Value) {
    html.push_str("<div class=\"scroll\"><table>\n<thead><tr><th></th>");
    for (head, meaning) in HEADS.iter().zip(MEANINGS) {
        let _ = write!(html, "<th title=\"{meaning}\">{head}</th>");
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for summary in summaries {
        let class = if summary.control { " class=\"control\"" } else { "" };
        let _ = write!(html, "<tr{class}><td title=\"{}\">{}</td>", escaped(summary.about), escaped(&summary.title));
        for value in values(summary) {
            let _ = write!(html, "<td>{value}</td>");
        }
        html.push_str("</tr>\n");
    }
    let number = |key: &str| reality[key].as_f64().map_or_else(|| "-".into(), |value| format!("{value:.3}"));
    let _ = write!(
        html,
        "<tr class=\"control\"><td>their own pictures</td><td></td><td></td><td>{}</td><td>{}</td><td></td><td>{}</td>\
         <td></td><td></td><td>{}</td><td></td></tr>\n</tbody></table></div>\n<dl>\n",
        number("sim_ref"),
        number("sim_gt"),
        number("top1"),
        number("sim_others")
    );
    for (head, meaning) in HEADS.iter().zip(MEANINGS) {
        let _ = writeln!(html, "<dt>{head}</dt><dd>{meaning}</dd>");
    }
    html.push_str(
        "<dt>their own pictures</dt><dd>what the judge says of real pictures of these people: the most that a method can \
         reach; under stranger, two different people</dd>\n</dl>\n",
    );
}

/// A table of what was measured for each style or attribute.
fn by_key(html: &mut String, title: &str, summaries: &[Summary], of: fn(&Summary) -> &BTreeMap<String, f64>) {
    let keys: BTreeSet<&String> = summaries.iter().flat_map(|summary| of(summary).keys()).collect();
    if keys.is_empty() {
        return;
    }
    let _ = write!(html, "<h2>{title}</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th></th>");
    keys.iter().for_each(|key| html.push_str(&format!("<th>{}</th>", escaped(key))));
    html.push_str("</tr></thead>\n<tbody>\n");
    for summary in summaries {
        let class = if summary.control { " class=\"control\"" } else { "" };
        let _ = write!(html, "<tr{class}><td>{}</td>", escaped(&summary.title));
        for key in &keys {
            let value = of(summary).get(*key).map_or_else(|| "-".into(), |value| format!("{value:.3}"));
            let _ = write!(html, "<td>{value}</td>");
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
}

/// A column of the table.
type Measure = fn(&Summary) -> Option<f64>;

/// Identity and text against the weight, a line for each method that ran at several.
fn curves(html: &mut String, summaries: &[Summary]) {
    let mut methods: Vec<&str> = summaries.iter().filter(|s| s.scale.is_some()).map(|s| s.method).collect();
    methods.dedup();
    let most = summaries.iter().filter_map(|s| s.scale).fold(0.0, f64::max);
    if methods.is_empty() || most == 0.0 {
        return;
    }
    html.push_str("<h2>Against the weight</h2>\n");
    let charts: [(&str, Measure); 2] = [("SimRef", |s| s.sim_ref), ("text", |s| s.text)];
    for (title, of) in charts {
        let points = |method: &str| -> Vec<(f64, f64)> {
            let mine = summaries.iter().filter(|s| s.method == method);
            mine.filter_map(|s| Some((s.scale?, of(s)?))).collect()
        };
        if methods.iter().all(|method| points(method).is_empty()) {
            continue;
        }
        let _ = write!(
            html,
            "<figure><figcaption>{title}</figcaption><svg width=\"420\" height=\"260\" viewBox=\"0 0 420 260\" \
             font-size=\"12\" fill=\"currentColor\" stroke-width=\"2\">"
        );
        let x = |scale: f64| 40.0 + 260.0 * scale / most;
        let y = |value: f64| 220.0 - 200.0 * value.clamp(-0.1, 1.0);
        for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let _ = write!(
                html,
                "<path d=\"M40 {0:.1}H300\" stroke=\"#8884\" stroke-width=\"1\"/><text x=\"4\" y=\"{0:.1}\">{tick}</text>",
                y(tick)
            );
        }
        for (i, method) in methods.iter().enumerate() {
            let color = ["#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#be123c", "#0e7490"][i % 6];
            let mut path = String::new();
            for (j, (scale, value)) in points(method).into_iter().enumerate() {
                let _ = write!(path, "{}{:.1} {:.1}", if j == 0 { "M" } else { "L" }, x(scale), y(value));
                let _ =
                    write!(html, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{color}\"/>", x(scale), y(value));
                let _ = write!(html, "<text x=\"{:.1}\" y=\"245\" text-anchor=\"middle\">{scale}</text>", x(scale));
            }
            let _ = write!(html, "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\"/>");
            let _ = write!(html, "<text x=\"310\" y=\"{}\" fill=\"{color}\">{}</text>", 30 + 18 * i, escaped(method));
        }
        html.push_str("</svg></figure>\n");
    }
}

fn pictures(html: &mut String, comparison: &Comparison, measured: &[(Cell, Measures)]) {
    html.push_str("<h2>Pictures</h2>\n<div class=\"scroll\"><table class=\"pictures\">\n<thead><tr><th>given</th>");
    for column in &comparison.columns {
        let _ = write!(html, "<th>{}</th>", escaped(&column.title()));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    let span = comparison.columns.len() + 1;
    for (cell, measures) in measured {
        let (person, prompt) = (&comparison.people[cell.person], &comparison.prompts[cell.prompt]);
        if cell.column == 0 {
            let (name, text) = (escaped(&person.name), escaped(&prompt.text));
            let _ = writeln!(html, "<tr><td colspan=\"{span}\"><b>{name}</b>: {text}</td></tr>");
            let _ = write!(
                html,
                "<tr><td><img loading=\"lazy\" src=\"{}\" alt=\"the given picture of {name}\"></td>",
                super::reference(cell.person).display()
            );
        }
        let column = &comparison.columns[cell.column];
        let text = measures.text.map(|text| format!(", text {text:.2}")).unwrap_or_default();
        let _ = write!(
            html,
            "<td><img loading=\"lazy\" src=\"pictures/{:03}-{:02}-{}.png\" alt=\"{}\">{:.2}{text}</td>",
            cell.person,
            cell.prompt,
            column.name(),
            escaped(&column.title()),
            measures.sim_ref
        );
        if cell.column + 2 == span {
            html.push_str("</tr>\n");
        }
    }
    html.push_str("</tbody></table></div>\n</html>\n");
}

/// Text that may stand anywhere in the page.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escaped("<a href=\"x\">'&"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;");
    }
}
