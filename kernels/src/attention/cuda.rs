//! Launches of `cuda.cu`.
use super::Heads;
use crate::cuda::{Device, Grid, Kernel, Operand, WARP, small};

/// Widest head that the kernels hold in registers and shared memory.
pub const MAX_DIM: usize = 128;
/// Keys of a part when decoding, as in `forward.cuh`.
const SPLIT: usize = 256;
/// Threads of a block: 4 warps.
const THREADS: usize = 4 * WARP;
/// Keys of a tile.
const KEYS: usize = WARP;
/// Query rows of a tile of each kernel, as in `forward.cuh`.
const FORWARD_ROWS: usize = 32;
const QUERY_ROWS: usize = 16;
const KEY_ROWS: usize = 8;

/// Where the rows of a batch lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// First query row, positions before it, query rows, first entry in `tables`, of each sequence. `[sequences, 4]`
    pub spans: Vec<u32>,
    /// First key/value row of each page of each sequence.
    pub tables: Vec<u32>,
    /// Rows of a page.
    page: usize,
    rows: usize,
    most_fresh: usize,
    most_seen: usize,
    packed: bool,
}

impl Plan {
    /// Sequences of these lengths one after the other, whose keys and values are rows of the same batch.
    #[must_use]
    pub fn packed(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut start = 0;
        let spans: Vec<_> = lengths
            .into_iter()
            .map(|fresh| {
                let first = start;
                start += fresh;
                (0, fresh, [first as u32])
            })
            .collect();
        Self { packed: true, ..Self::cached(spans.iter().map(|(past, fresh, table)| (*past, *fresh, &table[..])), 1 << 30) }
    }

    /// Sequences whose keys and values lie in a store: positions there before, positions of this pass, and the first row of
    /// each page of `page` positions.
    ///
    /// # Panics
    /// When a sequence has too few pages.
    #[must_use]
    pub fn cached<'a>(sequences: impl IntoIterator<Item = (usize, usize, &'a [u32])>, page: usize) -> Self {
        let mut plan = Self { spans: Vec::new(), tables: Vec::new(), page, rows: 0, most_fresh: 0, most_seen: 0, packed: false };
        for (past, fresh, pages) in sequences {
            let (seen, known) = (past + fresh, pages.len());
            let used = seen.div_ceil(page);
            assert!(used <= known, "{seen} positions in {known} pages of {page}");
            plan.spans.extend([plan.rows, past, fresh, plan.tables.len()].map(small));
            plan.tables.extend(&pages[..used]);
            plan.rows += fresh;
            plan.most_fresh = plan.most_fresh.max(fresh);
            plan.most_seen = plan.most_seen.max(seen);
        }
        plan
    }

    /// Query rows of all sequences.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn sequences(&self) -> usize {
        self.spans.len() / 4
    }

    /// Into how many parts keys are cut: one, but for decoding. A part's borders depend on positions alone.
    fn splits(&self) -> usize {
        if self.most_fresh == 1 { self.most_seen.div_ceil(SPLIT).max(1) } else { 1 }
    }

    /// Values of working memory that [`forward`] needs.
    #[must_use]
    pub fn parts_len(&self, heads: Heads) -> usize {
        if self.splits() == 1 { 0 } else { self.rows * heads.query * self.splits() * (2 + heads.dim) }
    }
}

/// A plan's tables on the device.
pub struct Tables<'a, D: Device> {
    /// [`Plan::spans`].
    pub spans: D::View<'a, u32>,
    /// [`Plan::tables`].
    pub tables: D::View<'a, u32>,
    /// Position of each query row. `[rows]`
    pub positions: D::View<'a, u32>,
}

/// Queries, keys and values: `[rows, query * dim]`, `[stored, key_value * dim]` twice.
pub struct Sources<'a, D: Device> {
    /// Queries, already turned by their position.
    pub q: D::View<'a, f32>,
    /// Keys, already turned by theirs.
    pub k: D::View<'a, f32>,
    /// Values.
    pub v: D::View<'a, f32>,
}

/// `out [rows, query * dim]` and `lse [rows, query]`: the natural logarithm of each row's sum of `e^score`. `parts` is
/// working memory of [`Plan::parts_len`] values; with any, `lse` is not written.
///
/// # Errors
/// When a launch fails.
///
/// # Panics
/// When a length does not fit the plan, or a head is wider than [`MAX_DIM`].
pub fn forward<D: Device>(
    device: &D,
    heads: Heads,
    (plan, tables): (&Plan, &Tables<'_, D>),
    sources: &Sources<'_, D>,
    (out, lse): (&mut D::ViewMut<'_, f32>, &mut D::ViewMut<'_, f32>),
    parts: &mut D::ViewMut<'_, f32>,
) -> Result<(), D::Error> {
    let shape = Shape::of(heads, plan, tables, sources);
    let splits = plan.splits();
    assert_eq!(D::len_mut(out), plan.rows * heads.query * heads.dim, "{heads:?}");
    assert_eq!(D::len_mut(lse), plan.rows * heads.query, "{heads:?}");
    assert_eq!(D::len_mut(parts), plan.parts_len(heads), "{heads:?} in {splits} parts");
    let target = if splits == 1 { D::again_mut(out) } else { D::again_mut(parts) };
    let mut operands = shape.sources(sources);
    operands.extend([Operand::Indices(D::again(&tables.spans)), Operand::Indices(D::again(&tables.tables))]);
    operands.extend([Operand::Out(target), Operand::Out(D::again_mut(lse))]);
    operands.extend(shape.counts());
    operands.push(Operand::Count(small(splits)));
    let values = (FORWARD_ROWS + KEYS) * stride(heads.dim) + FORWARD_ROWS * KEYS;
    let grid = shape.grid(plan.most_fresh * heads.group(), FORWARD_ROWS, splits, values);
    device.launch(kernel(FORWARD, heads), grid, operands)?;
    if splits == 1 {
        return Ok(());
    }
    let operands = vec![
        Operand::In(D::read(parts)),
        Operand::Indices(D::again(&tables.positions)),
        Operand::Out(D::again_mut(out)),
        Operand::Count(small(plan.rows)),
        Operand::Count(small(heads.query)),
        Operand::Count(small(heads.dim)),
        Operand::Count(small(splits)),
    ];
    device.launch(Kernel { folder: "attention", name: "attention_join" }, warps(plan.rows * heads.query), operands)
}

/// What [`backward`] reads beside the [`Sources`].
pub struct Upstream<'a, D: Device> {
    /// The forward's result. `[rows, query * dim]`
    pub out: D::View<'a, f32>,
    /// The forward's lse. `[rows, query]`
    pub lse: D::View<'a, f32>,
    /// dL/dout. `[rows, query * dim]`
    pub d_out: D::View<'a, f32>,
}

/// What [`backward`] writes. `[rows, query * dim]`, `[rows, key_value * dim]` twice.
pub struct Gradients<'a, D: Device> {
    /// dL/dq.
    pub dq: D::ViewMut<'a, f32>,
    /// dL/dk.
    pub dk: D::ViewMut<'a, f32>,
    /// dL/dv.
    pub dv: D::ViewMut<'a, f32>,
}

/// Gradients of [`forward`] on a [packed](Plan::packed) batch from what it gave and dL/dout. `delta` is working memory
/// of `lse`'s length.
///
/// # Errors
/// When a launch fails.
///
/// # Panics
/// When a length does not fit the plan, the plan is not packed, or a head is wider than [`MAX_DIM`].
pub fn backward<D: Device>(
    device: &D,
    heads: Heads,
    (plan, tables): (&Plan, &Tables<'_, D>),
    sources: &Sources<'_, D>,
    upstream: &Upstream<'_, D>,
    gradients: &mut Gradients<'_, D>,
    delta: &mut D::ViewMut<'_, f32>,
) -> Result<(), D::Error> {
    let shape = Shape::of(heads, plan, tables, sources);
    let (wide, narrow) = (plan.rows * heads.query * heads.dim, plan.rows * heads.key_value * heads.dim);
    assert!(plan.packed && shape.stored == plan.rows, "gradients of keys that lie in a store");
    assert_eq!([D::len(&upstream.out), D::len(&upstream.d_out), D::len_mut(&gradients.dq)], [wide; 3], "{heads:?}");
    assert_eq!([D::len_mut(&gradients.dk), D::len_mut(&gradients.dv)], [narrow; 2], "{heads:?}");
    assert_eq!([D::len(&upstream.lse), D::len_mut(delta)], [plan.rows * heads.query; 2], "{heads:?}");
    let operands = vec![
        Operand::In(D::again(&upstream.out)),
        Operand::In(D::again(&upstream.d_out)),
        Operand::Out(D::again_mut(delta)),
        Operand::Count(small(plan.rows * heads.query)),
        Operand::Count(small(heads.dim)),
    ];
    device.launch(Kernel { folder: "attention", name: "attention_delta" }, warps(plan.rows * heads.query), operands)?;

    let from_above =
        || [Operand::In(D::again(&upstream.d_out)), Operand::In(D::again(&upstream.lse)), Operand::In(D::read(delta))];
    let mut operands = shape.sources(sources);
    operands.extend(from_above());
    operands.extend([Operand::Indices(D::again(&tables.spans)), Operand::Indices(D::again(&tables.tables))]);
    operands.push(Operand::Out(D::again_mut(&mut gradients.dq)));
    operands.extend(shape.counts());
    let values = (2 * QUERY_ROWS + KEYS) * stride(heads.dim) + QUERY_ROWS * KEYS;
    let grid = shape.grid(plan.most_fresh * heads.group(), QUERY_ROWS, 1, values);
    device.launch(kernel(BACKWARD_QUERY, heads), grid, operands)?;

    let mut operands = shape.sources(sources);
    operands.extend(from_above());
    operands.push(Operand::Indices(D::again(&tables.spans)));
    operands.extend([Operand::Out(D::again_mut(&mut gradients.dk)), Operand::Out(D::again_mut(&mut gradients.dv))]);
    let sizes = [heads.query, heads.key_value, heads.dim, plan.rows];
    operands.extend(sizes.map(|n| Operand::Count(small(n))));
    operands.push(Operand::Factor(heads.scale()));
    let values = 2 * (KEYS + KEY_ROWS) * stride(heads.dim) + 2 * KEY_ROWS * KEYS;
    let grid = shape.grid(plan.most_fresh, KEYS, 1, values);
    device.launch(kernel(BACKWARD_KEY, heads), grid, operands)
}

const FORWARD: [&str; 4] = ["attention_forward_1", "attention_forward_2", "attention_forward_3", "attention_forward_4"];
const BACKWARD_QUERY: [&str; 4] =
    ["attention_backward_query_1", "attention_backward_query_2", "attention_backward_query_3", "attention_backward_query_4"];
const BACKWARD_KEY: [&str; 4] =
    ["attention_backward_key_1", "attention_backward_key_2", "attention_backward_key_3", "attention_backward_key_4"];

/// The kernel for heads of so many columns of 32.
fn kernel(names: [&'static str; 4], heads: Heads) -> Kernel {
    assert!((1..=MAX_DIM).contains(&heads.dim), "heads of {} values; the kernels take up to {MAX_DIM}", heads.dim);
    Kernel { folder: "attention", name: names[(heads.dim - 1) / WARP] }
}

/// Distance of two rows of a tile in shared memory, as in `tiles.cuh`.
fn stride(dim: usize) -> usize {
    dim.next_multiple_of(4) + 4
}

/// A warp for each of `count` rows and heads.
fn warps(count: usize) -> Grid {
    Grid { blocks: [small(count.div_ceil(THREADS / WARP)), 1, 1], threads: THREADS as u32, shared_bytes: 0 }
}

/// What all kernels are told.
struct Shape {
    heads: Heads,
    rows: usize,
    stored: usize,
    entries: usize,
    page: usize,
    sequences: usize,
}

impl Shape {
    fn of<D: Device>(heads: Heads, plan: &Plan, tables: &Tables<'_, D>, sources: &Sources<'_, D>) -> Self {
        let (wide, narrow) = (heads.query * heads.dim, heads.key_value * heads.dim);
        let stored = D::len(&sources.k) / narrow;
        assert_eq!(D::len(&sources.q), plan.rows * wide, "{} rows of {wide}", plan.rows);
        assert_eq!([D::len(&sources.k), D::len(&sources.v)], [stored * narrow; 2], "{stored} rows of {narrow}");
        assert_eq!(D::len(&tables.positions), plan.rows, "a position for each of {} rows", plan.rows);
        assert_eq!((D::len(&tables.spans), D::len(&tables.tables)), (plan.spans.len(), plan.tables.len()), "the plan's tables");
        assert!(heads.key_value <= usize::from(u16::MAX), "{heads:?}");
        Self { heads, rows: plan.rows, stored, entries: plan.tables.len(), page: plan.page, sequences: plan.sequences() }
    }

    fn sources<'b, D: Device>(&self, sources: &'b Sources<'_, D>) -> Vec<Operand<'b, D>> {
        [&sources.q, &sources.k, &sources.v].map(|source| Operand::In(D::again(source))).into()
    }

    fn counts<'b, D: Device + 'b>(&self) -> Vec<Operand<'b, D>> {
        let Heads { query, key_value, dim } = self.heads;
        let counts = [query, key_value, dim, self.rows, self.stored, self.entries, self.page];
        counts.map(|n| Operand::Count(small(n))).into_iter().chain([Operand::Factor(self.heads.scale())]).collect()
    }

    /// Tiles of the longest sequence, heads, sequences and their parts.
    fn grid(&self, longest: usize, tile: usize, splits: usize, shared: usize) -> Grid {
        let layers = self.sequences * splits;
        assert!(layers <= usize::from(u16::MAX), "{} sequences in {splits} parts in one launch", self.sequences);
        let blocks = [longest.div_ceil(tile), self.heads.key_value, layers].map(small);
        Grid { blocks, threads: THREADS as u32, shared_bytes: small(shared * size_of::<f32>()) }
    }
}
