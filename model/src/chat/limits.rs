//! What a template may ask for. Templates come with model files, and numbers in them decide how much memory their rendering takes.
//!
//! Bounded here: the text that comes out, widths of formats and indents, the depth of what becomes JSON. What a template puts
//! together itself, by `~` or nested lists, is bounded by its fuel alone.
use minijinja::value::{Kwargs, Rest, Value, ValueOrKwargs};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;
use std::io;

/// Bytes of a rendered conversation.
pub(super) const LONGEST_TEXT: usize = 64 << 20;
/// Columns of an indent, and of a field of a format.
pub(super) const WIDEST: usize = 1000;
/// Lists and maps within each other that become JSON.
const DEEPEST: usize = 100;
/// Where the library's own `indent` and `format` stand.
pub(super) const INDENT: &str = "unbounded indent";
pub(super) const FORMAT: &str = "unbounded format";

/// `indent`, as far as [`WIDEST`].
pub(super) fn indent(state: &mut State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    for arg in args.iter() {
        let named = Kwargs::try_from(arg.clone()).and_then(|kwargs| kwargs.peek::<Option<usize>>("width"));
        width(arg.as_usize().or(named.ok().flatten()).unwrap_or(0))?;
    }
    state.apply_filter(INDENT, &[&[value], &args[..]].concat())
}

/// `format`, as far as [`WIDEST`].
pub(super) fn format(state: &mut State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    widths(&value)?;
    state.apply_filter(FORMAT, &[&[value], &args[..]].concat())
}

/// Python's methods of strings, lists and maps; `format` as far as [`WIDEST`].
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if name == "format" {
        widths(value)?;
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

/// The width of an indent that was asked for.
pub(super) fn width(columns: usize) -> Result<usize, Error> {
    if columns > WIDEST {
        return Err(refused(format!("a width of {columns}, at most {WIDEST}")));
    }
    Ok(columns)
}

/// The numbers in the text of a format.
fn widths(text: &Value) -> Result<(), Error> {
    let text = text.as_str().unwrap_or_default();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    numbers.try_for_each(|digits| width(digits.parse().unwrap_or(usize::MAX)).map(drop))
}

/// Refuses what is nested so deeply that writing it would end the stack.
pub(super) fn depth(value: &Value) -> Result<(), Error> {
    if within(value, DEEPEST) { Ok(()) } else { Err(refused(format!("more than {DEEPEST} lists and maps within each other"))) }
}

fn within(value: &Value, levels: usize) -> bool {
    let Some(below) = levels.checked_sub(1) else { return false };
    if value.as_str().is_some() {
        return true;
    }
    let Ok(items) = value.try_iter() else { return true };
    let mut items = items.peekable();
    items.all(|item| {
        within(&value.get_item(&item).ok().filter(|inner| !inner.is_undefined()).unwrap_or_default(), below)
            && within(&item, below)
    })
}

fn refused(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Takes a rendered text, up to [`LONGEST_TEXT`].
#[derive(Debug, Default)]
pub(super) struct Bounded(Vec<u8>);

impl Bounded {
    /// What was rendered.
    pub(super) fn into_text(self) -> Result<String, Error> {
        String::from_utf8(self.0).map_err(|e| refused(e.to_string()))
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > LONGEST_TEXT - self.0.len() {
            return Err(io::Error::other(format!("its text is longer than {} MiB", LONGEST_TEXT >> 20)));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
