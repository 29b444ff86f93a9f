//! Two panels: reward against wall time and against another measure.
use super::{Curve, Point, WINDOW};
use std::fmt::Write as _;

/// Against wall time, and against what `along` gives.
pub(super) fn picture(curves: &[Curve], label: &str, along: impl Fn(&Point) -> f64) -> String {
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 300\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"760\" height=\"300\" fill=\"#fff\"/>\n",
    );
    panel(&mut svg, curves, 50.0, "seconds since launch", |p| p.seconds);
    panel(&mut svg, curves, 425.0, label, along);
    for (i, curve) in curves.iter().enumerate() {
        let x = 60.0 + 120.0 * i as f64;
        // Writing into a String cannot fail; the same below.
        let _ = writeln!(svg, "<path d=\"M{x} 18h20\" stroke=\"{}\" stroke-width=\"2\"/>", curve.colour);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"22\">{}</text>", x + 26.0, curve.name);
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, curves: &[Curve], left: f64, label: &str, along: impl Fn(&Point) -> f64) {
    let (top, width, height) = (40.0, 300.0, 200.0);
    let most = curves.iter().flat_map(|c| c.points.iter().map(&along)).fold(1.0, f64::max);
    let _ = writeln!(svg, "<path d=\"M{left} {top}v{height}h{width}\" fill=\"none\" stroke=\"#888\"/>");
    for tenth in [0.0, 0.5, 1.0] {
        let (x, y) = (left + tenth * width, top + height * (1.0 - tenth));
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{tenth}</text>", left - 6.0, y + 4.0);
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{:.0}</text>", top + height + 18.0, tenth * most);
    }
    let _ =
        writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", left + width / 2.0, top + height + 38.0);
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"{}\">reward, mean of {WINDOW} steps</text>", top - 6.0);
    for curve in curves {
        let mut path = String::new();
        for (i, point) in curve.points.iter().enumerate() {
            let (x, y) = (left + along(point) / most * width, top + height * (1.0 - point.reward.clamp(0.0, 1.0)));
            let _ = write!(path, "{}{x:.1} {y:.1}", if i == 0 { "M" } else { "L" });
        }
        let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"/>", curve.colour, curve.width);
    }
}
