//! The three products over packed panels, cut into tasks of a panel and a range of rows.
use super::pack::{GROUP, RowPacked, packed_len};
use super::{Matrix, Output, PANEL};
use crate::bf16::{self, interleave};
use crate::int8;
use crate::pool::Disjoint;
use crate::tile::{Ahead, MAX_ROWS, Store, Tile, run, run_ahead};
use crate::{Cpu, Format, Path, scratch};

/// Words of x that a range of rows may take, so that it stays in a core's second-level cache beside a panel.
const ROWS_IN_CACHE: usize = 96 * 1024;
/// Words of a column that are taken at a time, where a slice of 48 columns is to stay in the first-level cache.
const STEPS_IN_CACHE: usize = 128;

impl From<Output> for Store {
    fn from(output: Output) -> Self {
        match output {
            Output::Set => Self::Set,
            Output::Continue => Self::Chain,
            Output::Add => Self::Add,
        }
    }
}

/// One matrix of a [`forward`] call.
pub struct Projection<'a> {
    /// Packed `[out, in]`.
    pub weight: Matrix<'a>,
    /// Columns of y.
    pub out: usize,
    /// `[rows, out]`.
    pub y: &'a mut [f32],
}

/// `y = x W^T` for each of the projections, all of one format, of one input `x [rows, in]`.
///
/// # Panics
/// When a length does not fit the shapes.
pub fn forward(cpu: &Cpu, x: &[f32], inner: usize, output: Output, projections: &mut [Projection<'_>]) {
    let rows = x.len() / inner;
    assert_eq!(x.len(), rows * inner, "x [rows, {inner}]");
    let format = projections.first().map_or(Format::F32, |p| p.weight.format());
    let jobs: Vec<_> = projections
        .iter_mut()
        .map(|p| {
            let fits = p.weight.fits(p.out, inner) && p.weight.format() == format && p.y.len() == rows * p.out;
            assert!(fits, "{} x {inner}, {rows} rows", p.out);
            Job { weight: p.weight, out: p.out, panels: p.out.div_ceil(PANEL), y: Disjoint::new(p.y) }
        })
        .collect();
    with_words(cpu, format, x, inner, |x| products(cpu, format, x, inner, rows, output, &jobs));
}

/// Lends the rows of `x` as words of a format.
fn with_words<R>(cpu: &Cpu, format: Format, x: &[f32], inner: usize, job: impl FnOnce(&[u32]) -> R) -> R {
    match format {
        Format::F32 => job(bytemuck::cast_slice(x)),
        Format::Bf16 | Format::Int8 => scratch::with(x.len() / inner * format.row_words(inner), |memory| {
            let words = bytemuck::cast_slice_mut(memory);
            match format {
                Format::Int8 => int8::pack_rows(cpu, x, inner, words),
                Format::F32 | Format::Bf16 => bf16::pack_rows(cpu, x, inner, words),
            }
            job(words)
        }),
    }
}

fn products(cpu: &Cpu, format: Format, x: &[u32], inner: usize, rows: usize, output: Output, jobs: &[Job<'_>]) {
    let width = format.row_words(inner);
    let (panels, threads) = (jobs.iter().map(|job| job.panels).sum::<usize>(), cpu.pool().threads());
    let range = row_range(rows, width, panels, threads);
    cpu.pool().run(panels * rows.div_ceil(range), |task| {
        let first = task / panels * range;
        let count = range.min(rows - first);
        let Some((job, panel)) = place(jobs, task % panels) else { return };
        // With the threads side by side, this is the panel that this one takes next.
        let next = place(jobs, task % panels + threads);
        let ahead = next.map_or(&[][..], |(job, panel)| job.weight.panel(panel, inner));
        let x = &x[first * width..][..count * width];
        let target = Columns { y: &job.y, first, column: panel * PANEL, width: job.out };
        let operands = Operands { format, a: x, row: width, k: format.words(inner), panel: job.weight.panel(panel, inner) };
        // SAFETY: each (rows, panel) pair is one task's, so the columns written are too.
        unsafe { multiply(cpu.path(), output.into(), &operands, &target, ahead) };
    });
}

/// One matrix of a call.
struct Job<'a> {
    weight: Matrix<'a>,
    out: usize,
    panels: usize,
    y: Disjoint<'a, f32>,
}

/// A matrix and one of its panels, by the panel's number among those of all of them.
fn place<'a, 'b>(jobs: &'b [Job<'a>], mut panel: usize) -> Option<(&'b Job<'a>, usize)> {
    for job in jobs {
        if panel < job.panels {
            return Some((job, panel));
        }
        panel -= job.panels;
    }
    None
}

/// Rows a task takes: as many as stay in cache, fewer when there are too few panels for the threads.
fn row_range(rows: usize, inner: usize, panels: usize, threads: usize) -> usize {
    let cached = (ROWS_IN_CACHE / inner.max(1)).max(MAX_ROWS);
    let shared = (rows * panels).div_ceil(3 * threads);
    let range = cached.min(if panels >= 3 * threads { rows } else { shared / panels + MAX_ROWS });
    range.clamp(1, rows.max(1)).next_multiple_of(MAX_ROWS)
}

/// Up to 48 columns of some rows of an output.
struct Columns<'a> {
    y: &'a Disjoint<'a, f32>,
    first: usize,
    column: usize,
    width: usize,
}

/// Dense `a [rows, row]` and a panel `[k, 48]`, counting words.
struct Operands<'a> {
    format: Format,
    a: &'a [u32],
    row: usize,
    k: usize,
    panel: &'a [u32],
}

/// `y[first.., column..] = a B` for a panel B. `ahead` may be the panel of a later call: memory brings it while the tiles compute.
///
/// # Safety
/// No other task touches these rows of these columns.
unsafe fn multiply(path: Path, store: Store, operands: &Operands<'_>, target: &Columns<'_>, ahead: &[u32]) {
    let Operands { format, a, row: stride, k, panel } = *operands;
    let rows = a.len().checked_div(stride).unwrap_or(0);
    let width = target.width;
    let columns = PANEL.min(width - target.column);
    assert!(panel.len() >= k * PANEL && rows > 0 && (target.first + rows) * width <= target.y.len());
    let block = steps_at_once(path, format, store, rows, k);
    let mut step = 0;
    while step == 0 || step < k {
        let steps = block.min(k - step);
        let store = if step == 0 { store } else { Store::Chain };
        let (mut row, mut index) = (0, 0);
        while row < rows {
            // A rest of 9 to 15 rows goes as two tiles of about the same height.
            let left = rows - row;
            let count = if left > MAX_ROWS && left < 2 * MAX_ROWS { left.div_ceil(2) } else { left.min(MAX_ROWS) };
            // SAFETY: rows below `first + rows`, columns below `width`: inside y by the check above.
            let c = unsafe { target.y.as_mut_ptr().add((target.first + row) * width + target.column) };
            let a = a[row * stride + step..].as_ptr().cast();
            let b = panel[step * PANEL..].as_ptr().cast();
            let tile = Tile { k: steps, a, a_row: stride, a_k: 1, b, b_k: PANEL, b_vec: 16, c, c_row: width, c_vec: 16 };
            // SAFETY: `a` has `count` rows of `stride`, the panel `k` rows of 48; C as above.
            unsafe {
                if columns.is_multiple_of(16) {
                    let ahead = Ahead::part(ahead, index, rows, k).after(step);
                    run_ahead(path, format, count, columns / 16, store, &tile, ahead);
                } else {
                    run_narrow(path, format, count, columns, store, &tile);
                }
            }
            (row, index) = (row + count, index + 1);
        }
        step += block.max(1);
    }
}

/// Steps of the chains that all rows take before the next ones (C1: where a chain is cut changes nothing). Tiles of 256-bit
/// vectors read a panel twice as often as wider ones, too often for the second-level cache: a part of it that stays in the first
/// serves all rows.
fn steps_at_once(path: Path, format: Format, store: Store, rows: usize, k: usize) -> usize {
    let cut = path.is_narrow() && format != Format::Int8 && store != Store::Add && rows > MAX_ROWS;
    if cut { STEPS_IN_CACHE } else { k }
}

/// A tile whose last vector is not full: by way of a buffer.
///
/// # Safety
/// As [`run`], with `columns` valid columns of C.
unsafe fn run_narrow(path: Path, format: Format, rows: usize, columns: usize, store: Store, tile: &Tile) {
    let mut block = [0.0f32; MAX_ROWS * PANEL];
    for (r, line) in block.chunks_exact_mut(PANEL).take(rows).enumerate() {
        // SAFETY: `columns` valid columns in each of the rows; the caller alone touches them.
        let c = unsafe { std::slice::from_raw_parts_mut(tile.c.add(r * tile.c_row), columns) };
        line[..columns].copy_from_slice(c);
    }
    // SAFETY: A and B as the caller promises; C is the block.
    unsafe { run(path, format, rows, columns.div_ceil(16), store, &Tile { c: block.as_mut_ptr(), c_row: PANEL, ..*tile }) };
    for (r, line) in block.chunks_exact(PANEL).take(rows).enumerate() {
        // SAFETY: as above.
        let c = unsafe { std::slice::from_raw_parts_mut(tile.c.add(r * tile.c_row), columns) };
        c.copy_from_slice(&line[..columns]);
    }
}

/// `dx = dy W` for `dy [rows, out]`, `dx [rows, in]`; with [`Output::Continue`] the chain goes on over a further matrix
/// (or a further range of panels) with the same input.
///
/// # Panics
/// When a length does not fit the shapes, and for a matrix of int8.
pub fn backward_input(cpu: &Cpu, dy: &[f32], out: usize, weight: Matrix<'_>, inner: usize, output: Output, dx: &mut [f32]) {
    let rows = dy.len() / out;
    let fits = dy.len() == rows * out && weight.fits(out, inner) && dx.len() == rows * inner;
    assert!(fits, "{out} x {inner}, {rows} rows");
    assert_ne!(weight.format(), Format::Int8, "int8 has no gradients");
    let (format, panels) = (weight.format(), inner.div_ceil(PANEL));
    let k = format.words(out);
    // Each task transposes its slice of W, so rows are cut only where threads would have nothing to do.
    let parts = if panels >= cpu.pool().threads() { 1 } else { cpu.pool().threads().div_ceil(panels) };
    let range = rows.div_ceil(parts).next_multiple_of(MAX_ROWS);
    let dx = Disjoint::new(dx);
    with_words(cpu, format, dy, out, |dy| {
        cpu.pool().run(panels * rows.div_ceil(range), |task| {
            let (panel, first) = (task % panels, task / panels * range);
            let count = range.min(rows - first);
            scratch::with(k * PANEL, |columns| {
                let columns = bytemuck::cast_slice_mut(columns);
                transpose_columns(weight, inner, panel * PANEL, columns);
                let target = Columns { y: &dx, first, column: panel * PANEL, width: inner };
                let operands = Operands { format, a: &dy[first * k..][..count * k], row: k, k, panel: columns };
                // SAFETY: each (rows, panel) pair is one task's.
                unsafe { multiply(cpu.path(), output.into(), &operands, &target, &[]) };
            });
        });
    });
}

/// Columns `first..first + 48` of a packed `[out, in]` matrix as `[out, 48]`, with bf16 as `[out / 2, 48]` pairs of rows; zeros
/// past the last column.
fn transpose_columns(weight: Matrix<'_>, inner: usize, first: usize, columns: &mut [u32]) {
    let (format, width) = (weight.format(), PANEL.min(inner - first));
    let panels = weight.words().chunks_exact(PANEL * format.words(inner));
    for (block, panel) in columns.chunks_mut(PANEL * format.words(PANEL)).zip(panels) {
        let source = &panel[first / (PANEL / format.words(PANEL)) * PANEL..][..format.words(width) * PANEL];
        match format {
            Format::F32 | Format::Int8 => {
                for (lane, line) in block.chunks_exact_mut(PANEL).enumerate() {
                    for k in 0..width {
                        line[k] = source[k * PANEL + lane];
                    }
                    line[width..].fill(0);
                }
            }
            Format::Bf16 => {
                for (pair, line) in block.chunks_exact_mut(PANEL).enumerate() {
                    for (k, values) in line.as_chunks_mut::<2>().0.iter_mut().enumerate().take(width.div_ceil(2)) {
                        // Rows 2 pair and 2 pair + 1, columns 2 k and 2 k + 1; past the last of an odd number stand zeros.
                        let (even, odd) = (source[k * PANEL + 2 * pair], source[k * PANEL + 2 * pair + 1]);
                        *values = [even & 0xffff | odd << 16, even >> 16 | odd & 0xffff_0000];
                    }
                    line[width.next_multiple_of(2)..].fill(0);
                }
            }
        }
    }
}

/// `dW += dy^T x` into the packed f32 layout, one chain per element over all tokens ever added.
///
/// # Panics
/// When a length does not fit the shapes.
pub fn backward_weight(cpu: &Cpu, x: &RowPacked, dy: &[f32], out: usize, gradient: &mut [f32]) {
    let (rows, inner) = (x.rows(), x.inner());
    assert_eq!((dy.len(), gradient.len()), (rows * out, packed_len(out, inner)), "{out} x {inner}, {rows} rows");
    let panels = out.div_ceil(PANEL);
    let groups = inner.div_ceil(GROUP);
    // Each task regroups its columns of dy, so x is cut only where threads would have nothing to do.
    let parts = if panels >= 3 * cpu.pool().threads() { 1 } else { (3 * cpu.pool().threads()).div_ceil(panels).min(groups) };
    let range = groups.div_ceil(parts);
    let gradient = Disjoint::new(gradient);
    cpu.pool().run(panels * groups.div_ceil(range), |task| {
        let (panel, first) = (task % panels, task / panels * range);
        let last = (first + range).min(groups);
        let start = panel * PANEL * inner + first * GROUP * PANEL;
        let len = (last * GROUP).min(inner) * PANEL - first * GROUP * PANEL;
        // SAFETY: each (panel, groups) pair is one task's.
        let gradient = unsafe { gradient.slice(start, len) };
        scratch::with(x.format().words(rows) * PANEL, |columns| {
            let columns = bytemuck::cast_slice_mut(columns);
            gather_columns(cpu.path(), x.format(), dy, out, panel * PANEL, columns);
            weight_panel(cpu.path(), x, first..last, columns, gradient);
        });
    });
}

/// Columns `first..first + 48` of `dy [rows, out]` as `[rows, 48]`, with bf16 as `[rows / 2, 48]` pairs of rows; zeros past the
/// last column and the last row.
fn gather_columns(path: Path, format: Format, dy: &[f32], out: usize, first: usize, columns: &mut [u32]) {
    let width = PANEL.min(out - first);
    let part = |row: &'_ [f32]| -> [f32; PANEL] {
        let row = &row[first..first + width];
        // Of a known length the copy needs no call.
        row.first_chunk().copied().unwrap_or_else(|| {
            let mut part = [0.0; PANEL];
            part[..width].copy_from_slice(row);
            part
        })
    };
    match format {
        Format::F32 | Format::Int8 => {
            for (line, row) in columns.as_chunks_mut::<PANEL>().0.iter_mut().zip(dy.chunks_exact(out)) {
                *line = part(row).map(f32::to_bits);
            }
        }
        Format::Bf16 => {
            for (line, rows) in columns.chunks_exact_mut(PANEL).zip(dy.chunks(2 * out)) {
                let (even, odd) = rows.split_at(out);
                interleave(path, &part(even), &if odd.is_empty() { [0.0; PANEL] } else { part(odd) }, line);
            }
        }
    }
}

/// The gradient of one panel for some groups of 8 inputs: `gradient [inputs, 48]`, `columns [rows, 48]` or pairs of rows.
fn weight_panel(path: Path, x: &RowPacked, groups: std::ops::Range<usize>, columns: &[u32], gradient: &mut [f32]) {
    let steps = x.format().words(x.rows());
    let mut step = 0;
    while step < steps {
        let k = STEPS_IN_CACHE.min(steps - step);
        for (index, lines) in gradient.chunks_mut(GROUP * PANEL).enumerate() {
            let a = &x.group(groups.start + index)[step * GROUP..][..k * GROUP];
            let b = &columns[step * PANEL..][..k * PANEL];
            let (a, b, c) = (a.as_ptr().cast(), b.as_ptr().cast(), lines.as_mut_ptr());
            let tile = Tile { k, a, a_row: 1, a_k: GROUP, b, b_k: PANEL, b_vec: 16, c, c_row: PANEL, c_vec: 16 };
            // SAFETY: A is `k` rows of 8, B `k` rows of 48, C `lines.len() / 48` (at most 8) rows of 48.
            unsafe { run(path, x.format(), lines.len() / PANEL, 3, Store::Chain, &tile) };
        }
        step += k;
    }
}
