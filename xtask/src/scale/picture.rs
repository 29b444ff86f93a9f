//! Curves on logarithmic axes, as SVG.
use std::fmt::Write as _;

/// A line and its colour.
pub(crate) struct Curve {
    pub(crate) name: &'static str,
    pub(crate) colour: &'static str,
    /// Both above 0.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Curves over one pair of axes.
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    pub(crate) along: &'static str,
    pub(crate) curves: Vec<Curve>,
}

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 180.0;

/// Panels beside each other.
pub(crate) fn draw(panels: &[Panel]) -> String {
    let width = 380.0 * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} 280\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"280\" fill=\"#fff\"/>\n"
    );
    for (i, panel) in panels.iter().enumerate() {
        one(&mut svg, panel, 55.0 + 380.0 * i as f64);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Writing into a String cannot fail.
fn one(svg: &mut String, panel: &Panel, left: f64) {
    let top = 45.0;
    let all = || panel.curves.iter().flat_map(|c| &c.points);
    let (from, to) = decades(all().map(|p| p.0));
    let (low, high) = decades(all().map(|p| p.1));
    let x = |value: f64| left + (value.log10() - from) / (to - from) * WIDTH;
    let y = |value: f64| top + HEIGHT - (value.log10() - low) / (high - low) * HEIGHT;
    let _ = writeln!(svg, "<path d=\"M{left} {top}v{HEIGHT}h{WIDTH}\" fill=\"none\" stroke=\"#888\"/>");
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"16\">{}</text>", panel.title);
    for decade in from as i32..=to as i32 {
        let at = 10f64.powi(decade);
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{at}</text>", x(at), top + HEIGHT + 18.0);
    }
    for decade in low as i32..=high as i32 {
        let at = 10f64.powi(decade);
        let _ = writeln!(svg, "<path d=\"M{left} {:.1}h{WIDTH}\" stroke=\"#eee\"/>", y(at));
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{at}</text>", left - 6.0, y(at) + 4.0);
    }
    let (middle, below) = (left + WIDTH / 2.0, top + HEIGHT + 38.0);
    let _ = writeln!(svg, "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{}</text>", panel.along);
    for (i, curve) in panel.curves.iter().enumerate() {
        let (at, colour) = (left + 4.0 + 140.0 * i as f64, curve.colour);
        let _ = writeln!(svg, "<path d=\"M{at} 30h16\" stroke=\"{colour}\" stroke-width=\"2\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"34\">{}</text>", at + 20.0, curve.name);
        let mut path = String::new();
        for (i, point) in curve.points.iter().enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, x(point.0), y(point.1));
            let _ = writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"{colour}\"/>", x(point.0), y(point.1));
        }
        let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>");
    }
}

/// The powers of ten around values, at least one apart.
fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (least, most) = values.fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(v), b.max(v)));
    let (low, high) = (least.log10().floor(), most.log10().ceil());
    (low, if high > low { high } else { low + 1.0 })
}
