//! Bars, in SVG.

use std::fmt::Write as _;

/// Bars that are compared with each other.
#[derive(Debug)]
pub(crate) struct Group {
    /// Above the bars.
    pub(crate) title: String,
    /// Names and lengths.
    pub(crate) bars: Vec<(String, f64)>,
}

/// In pixels: the picture, the column of names, what a bar's number needs, the lines.
const WIDTH: f64 = 720.0;
const NAMES: f64 = 210.0;
const NUMBERS: f64 = 70.0;
const LINE: f64 = 22.0;
/// The first bar of a group is what the others are compared with.
const COLOURS: [&str; 3] = ["#8a8f98", "#2563a8", "#8fb4dc"];

/// A picture of `groups`, each at a scale of its own.
pub(crate) fn svg(title: &str, groups: &[Group]) -> String {
    let mut body = String::new();
    let mut y = LINE;
    text(&mut body, 12.0, y, "font-weight=\"bold\" font-size=\"15\"", title);
    for Group { title, bars } in groups {
        y += LINE * 1.5;
        text(&mut body, 12.0, y, "font-weight=\"bold\"", title);
        let longest = bars.iter().map(|(_, value)| *value).fold(1.0, f64::max);
        let scale = (WIDTH - NAMES - NUMBERS) / longest;
        for ((name, value), colour) in bars.iter().zip(COLOURS.iter().cycle()) {
            y += LINE;
            let length = value * scale;
            text(&mut body, NAMES - 8.0, y, "text-anchor=\"end\"", name);
            let (top, height) = (y - LINE * 0.65, LINE * 0.8);
            // Writing to a String does not fail.
            let _ = writeln!(
                body,
                "<rect x=\"{NAMES}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
            );
            text(&mut body, NAMES + length + 6.0, y, "", &format!("{value:.0}"));
        }
    }
    let height = y + LINE;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#1c1f24\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

fn text(body: &mut String, x: f64, y: f64, attributes: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(body, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{words}</text>");
}
