//! The page of a comparison: a table, curves where methods ran at several weights, and the pictures. It is one file: small
//! pictures lie in it, large ones beside it, and it needs no network and no script.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use ::compare::{Cell, Comparison, Measures, Summary};
use serde_json::Value;

use super::chart::Chart;
use super::table::{HEADS, Head, measured};
use super::{Made, pictures};
use crate::fault::Fault;

/// Rows whose pictures lie in the page; with more it would be too large to pass on.
const MOST_ROWS: usize = 40;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c1c22;--soft:#5d5d68;--paper:#fff;--line:#d5d5dc;--shade:#f2f2f5;--mark:#0b6e4f}\
@media(prefers-color-scheme:dark){:root{--ink:#e8e8ec;--soft:#a3a3ae;--paper:#151519;--line:#3a3a44;--shade:#212128;--mark:#58c9a0}}\
*{box-sizing:border-box}body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:100rem;padding:1rem;color:var(--ink);\
background:var(--paper)}h1{font-size:1.5rem;line-height:1.2}h2{font-size:1.2rem;margin:2rem 0 .5rem}p{max-width:46rem}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:.3rem .6rem;text-align:right;vertical-align:top;\
white-space:nowrap}thead th{border-bottom:2px solid var(--line)}tbody tr+tr>*{border-top:1px solid var(--line)}\
tbody th{text-align:left;position:sticky;left:0;background:var(--paper);font-weight:600}tbody th small{display:block;\
white-space:normal;min-width:11rem;max-width:20rem;font-weight:400;color:var(--soft)}.best{font-weight:700;color:var(--mark)}.control *{color:var(--soft)}\
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:6px}summary{font-size:1.2rem;font-weight:700;margin:1.5rem 0 .5rem;cursor:pointer}dl{max-width:60rem}dt{font-weight:600}dd{margin:0 0 .4rem 1rem}dd i{color:var(--soft)}\
.charts{display:flex;flex-wrap:wrap;gap:1rem}.charts figure{flex:1 1 20rem;max-width:44rem;margin:0}svg{width:100%;height:auto}\
article{margin:0 0 1.5rem}article p{margin:.2rem 0 .4rem}.row{display:grid;gap:.5rem;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr))}\
.row figure{margin:0;background:var(--shade);border-radius:6px;overflow:hidden}.row img{width:100%;height:auto;display:block}\
.row figcaption{padding:.25rem .45rem .4rem;font-size:.85rem;line-height:1.35}.row .given{outline:3px solid var(--mark);outline-offset:-3px}\
.row .control figcaption{color:var(--soft)}@media(max-width:40rem){tbody th small{display:none}th,td{padding:.3rem .45rem}}.empty{display:flex;aspect-ratio:1;align-items:center;justify-content:center;color:var(--soft)}";

/// The whole page.
pub(crate) fn page(
    comparison: &Comparison,
    made: &Made,
    settings: &Value,
    charts: &[Chart],
    folder: &Path,
) -> Result<String, Fault> {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\">\n<title>sameface compare</title>\n<style>{STYLE}</style>\n<h1>The same person by several methods</h1>\n"
    );
    introduction(&mut html, comparison, made, settings);
    summary_table(&mut html, made);
    if !charts.is_empty() {
        html.push_str("<h2>Against the weight</h2>\n<div class=\"charts\">");
        charts.iter().for_each(|chart| html.push_str(&format!("<figure>{}</figure>", chart.svg())));
        html.push_str("</div>\n");
    }
    meanings(&mut html, comparison, made);
    let none = BTreeMap::new();
    by_key(&mut html, "SimRef by style", &made.summaries, |summary| &summary.sim_ref_by_style, &none);
    let read = &made.reality.text_by_attribute;
    by_key(&mut html, "Text by attribute", &made.summaries, |summary| &summary.text_by_attribute, read);
    rows(&mut html, comparison, &made.measured, folder)?;
    html.push_str("</html>\n");
    Ok(html)
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn introduction(html: &mut String, comparison: &Comparison, made: &Made, settings: &Value) {
    let text = |key: &str| escaped(settings[key].as_str().unwrap_or("-"));
    let _ = writeln!(
        html,
        "<p>{} and {}; {}x{} pixels, {} steps, guidance {}, sampler {}, {} on {}. All methods of a row share prompt, noise and \
         pose. Rows in gray are controls. The judge, {}, steered none of the pictures; it found its person among {} at hand.</p>",
        counted(comparison.people.len(), "person", "people"),
        counted(comparison.prompts.len(), "prompt", "prompts"),
        settings["width"],
        settings["height"],
        settings["steps"],
        settings["guidance"],
        text("sampler"),
        text("precision"),
        text("device"),
        escaped(&made.judge),
        made.at_hand
    );
    if made.measured.len() < made.wanted {
        let _ = writeln!(html, "<p><b>Unfinished: {} of {} pictures.</b></p>", made.measured.len(), made.wanted);
    }
}

/// The best of the methods in each column, where one can be named.
fn best(summaries: &[Summary], head: &Head) -> Option<f64> {
    let values = summaries.iter().filter(|s| !s.control).filter_map(head.of);
    match head.better {
        // Among one there is no best.
        _ if values.clone().count() < 2 => None,
        better if better.starts_with("more") => values.reduce(f64::max),
        better if better.starts_with("less") => values.reduce(f64::min),
        _ => None,
    }
}

fn summary_table(html: &mut String, made: &Made) {
    let heads = measured(&made.summaries);
    html.push_str("<div class=\"scroll\"><table>\n<thead><tr><th></th>");
    for head in &heads {
        let _ = write!(html, "<th title=\"{}\">{}</th>", head.meaning, head.name);
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    let mut before = "";
    for summary in &made.summaries {
        let class = if summary.control { " class=\"control\"" } else { "" };
        let (title, about) = (escaped(&summary.title), escaped(summary.about));
        // Said once of a method at several weights.
        let about = if summary.method == before { String::new() } else { format!(" <small>{about}</small>") };
        before = summary.method;
        let _ = write!(html, "<tr{class}><th>{title}{about}</th>");
        for head in &heads {
            let value = (head.of)(summary);
            let is_best = !summary.control && value.is_some() && value == best(&made.summaries, head);
            let class = if is_best { " class=\"best\"" } else { "" };
            let _ = write!(html, "<td{class}>{}</td>", head.text(value));
        }
        html.push_str("</tr>\n");
    }
    html.push_str(
        "<tr class=\"control\"><th>their own pictures <small>what the judge says of real pictures of these people: the most \
         that a method can reach; under stranger, two different people</small></th>",
    );
    for head in &heads {
        let _ = write!(html, "<td>{}</td>", head.text((head.real)(&made.reality)));
    }
    html.push_str("</tr>\n</tbody></table></div>\n");
    let widest = made.summaries.iter().filter_map(|summary| summary.sim_ref_error).reduce(f64::max);
    if let Some(error) = widest {
        let _ = writeln!(
            html,
            "<p>With other people each SimRef could come out up to {:.3} higher or lower (two standard errors over the people). \
             All methods share people and noise, so differences between them are surer than that.</p>",
            2.0 * error
        );
    }
}

fn meanings(html: &mut String, comparison: &Comparison, made: &Made) {
    html.push_str("<details open><summary>What the methods and numbers are</summary>\n<dl>\n");
    let mut methods: Vec<(&str, &str)> = Vec::new();
    for column in &comparison.columns {
        let method = (column.method.title, column.method.about);
        if methods.last() != Some(&method) {
            methods.push(method);
        }
    }
    for (title, about) in methods {
        let _ = writeln!(html, "<dt>{}</dt><dd>{}</dd>", escaped(title), escaped(about));
    }
    html.push_str("</dl>\n<dl>\n");
    let heads = measured(&made.summaries);
    for head in &heads {
        let better = if head.better.is_empty() { String::new() } else { format!("; <i>{}</i>", head.better) };
        let _ = writeln!(html, "<dt>{}</dt><dd>{}{better}</dd>", head.name, head.meaning);
    }
    html.push_str("</dl>\n");
    let absent: Vec<&str> =
        HEADS.iter().map(|head| head.name).filter(|name| heads.iter().all(|head| head.name != *name)).collect();
    if !absent.is_empty() {
        let _ = writeln!(html, "<p>Not measured here: {}.</p>", absent.join(", "));
    }
    html.push_str("</details>\n");
}

/// A table of what was measured for each style or attribute.
fn by_key(
    html: &mut String,
    title: &str,
    summaries: &[Summary],
    of: fn(&Summary) -> &BTreeMap<String, f64>,
    real: &BTreeMap<String, f64>,
) {
    let keys: BTreeSet<&String> = summaries.iter().flat_map(|summary| of(summary).keys()).collect();
    if keys.is_empty() {
        return;
    }
    let _ = write!(html, "<h2>{title}</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th></th>");
    keys.iter().for_each(|key| html.push_str(&format!("<th>{}</th>", escaped(key))));
    html.push_str("</tr></thead>\n<tbody>\n");
    let mut line = |title: &str, control: bool, values: &BTreeMap<String, f64>| {
        let class = if control { " class=\"control\"" } else { "" };
        let _ = write!(html, "<tr{class}><th>{}</th>", escaped(title));
        for key in &keys {
            let value = values.get(*key).map_or_else(|| "-".into(), |value| format!("{value:.3}"));
            let _ = write!(html, "<td>{value}</td>");
        }
        html.push_str("</tr>\n");
    };
    summaries.iter().for_each(|summary| line(&summary.title, summary.control, of(summary)));
    if !real.is_empty() {
        line("their own pictures", true, real);
    }
    html.push_str("</tbody></table></div>\n");
}

/// The pictures, row by row, each with its method and measures below it.
fn rows(html: &mut String, comparison: &Comparison, measured: &[(Cell, Measures)], folder: &Path) -> Result<(), Fault> {
    let mut numbers: Vec<usize> = measured.iter().map(|(cell, _)| cell.row).collect();
    numbers.dedup();
    html.push_str("<h2>Pictures</h2>\n");
    if numbers.len() > MOST_ROWS {
        let _ = writeln!(
            html,
            "<p>The first {MOST_ROWS} of {} rows; all pictures lie in <code>pictures/</code> beside this page.</p>",
            numbers.len()
        );
    }
    for row in numbers.into_iter().take(MOST_ROWS) {
        let cells: Vec<&(Cell, Measures)> = measured.iter().filter(|(cell, _)| cell.row == row).collect();
        let Some((first, _)) = cells.first() else { continue };
        let person = &comparison.people[first.person];
        let (name, prompt) = (escaped(&person.name), escaped(&comparison.prompts[first.prompt].text));
        let _ = writeln!(html, "<article><p><b>{name}</b>: {prompt}</p><div class=\"row\">");
        let given = match &person.photo {
            Some(photo) => format!("<img decoding=\"async\" src=\"{}\" alt=\"\">", pictures::of(&photo.image)?),
            None => "<div class=\"empty\">no picture</div>".into(),
        };
        let what = if person.photo.is_some() { "the given picture" } else { "a saved identity" };
        let _ =
            writeln!(html, "<figure class=\"given\">{given}<figcaption><b>given</b><br>{what}</figcaption></figure>");
        for (cell, measures) in cells {
            let column = &comparison.columns[cell.column];
            let file = super::path(comparison, *cell);
            let class = if column.method.control { " class=\"control\"" } else { "" };
            let _ = writeln!(
                html,
                "<figure{class}><a href=\"{file}\"><img decoding=\"async\" src=\"{}\" alt=\"{name} by {title}\"></a>\
                 <figcaption><b>{title}</b><br>{}</figcaption></figure>",
                pictures::of_file(&folder.join(&file))?,
                told(measures),
                title = escaped(&column.title()),
            );
        }
        html.push_str("</div></article>\n");
    }
    Ok(())
}

/// What is told of one picture.
fn told(measures: &Measures) -> String {
    let named = [
        ("SimRef", measures.sim_ref),
        ("SimGT", measures.sim_gt.filter(|_| measures.sim_ref.is_none())),
        ("stranger", measures.sim_stranger),
        ("text", measures.text),
    ];
    let parts: Vec<String> =
        named.iter().filter_map(|(name, value)| Some(format!("{name} {:.2}", (*value)?))).collect();
    parts.join(", ")
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
