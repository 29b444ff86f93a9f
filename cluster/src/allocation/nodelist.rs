//! Slurm's compressed lists of hosts, as `gpu[01-03,7],login`: names separated by commas, with numbers and ranges in brackets,
//! zeros in front as the range's first number has them.

/// Names that one list may stand for.
pub const MOST: usize = 65_536;
/// Digits of a number in brackets.
const DIGITS: usize = 9;

/// The names that a list stands for, in its order.
///
/// # Errors
/// What is wrong with which part.
pub fn expand(list: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    for item in split(list)? {
        let mut prefixes = vec![String::new()];
        let mut rest = item;
        while let Some((literal, after)) = rest.split_once('[') {
            let (inside, tail) = after.split_once(']').ok_or_else(|| format!("has a bracket that is not closed in {item:?}"))?;
            let numbers = numbers(inside)?;
            if names.len() + prefixes.len().saturating_mul(numbers.len()) > MOST {
                return Err(format!("stands for more than {MOST} hosts"));
            }
            let of = |prefix: &String| numbers.iter().map(|n| format!("{prefix}{literal}{n}")).collect::<Vec<_>>();
            prefixes = prefixes.iter().flat_map(of).collect();
            rest = tail;
        }
        names.extend(prefixes.into_iter().map(|prefix| prefix + rest));
        if names.len() > MOST {
            return Err(format!("stands for more than {MOST} hosts"));
        }
    }
    Ok(names)
}

/// At the commas that stand outside of brackets.
fn split(list: &str) -> Result<Vec<&str>, String> {
    let (mut items, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, c) in list.char_indices() {
        match c {
            '[' if inside => return Err(format!("has a bracket within a bracket at character {at}")),
            '[' => inside = true,
            ']' if !inside => return Err(format!("has a bracket that was not opened, at character {at}")),
            ']' => inside = false,
            ',' if !inside => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            c if c.is_whitespace() || c.is_control() => return Err(format!("has a blank at character {at}")),
            _ => {}
        }
    }
    items.push(&list[start..]);
    if items.iter().any(|item| item.is_empty()) {
        return Err("has an empty name".to_owned());
    }
    Ok(items)
}

/// `01-03,7`: as they stand in names.
fn numbers(inside: &str) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    for part in inside.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            let digits = (1..=DIGITS).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            let number = digits.then(|| text.parse::<u32>().ok()).flatten();
            number.ok_or_else(|| format!("has {part:?} in brackets, which is no number or range"))
        };
        let (low, high) = (number(first)?, number(last)?);
        if low > high {
            return Err(format!("has the range {part:?}, which runs backwards"));
        }
        if out.len() + (high - low) as usize >= MOST {
            return Err(format!("stands for more than {MOST} hosts"));
        }
        let width = if first.starts_with('0') { first.len() } else { 1 };
        out.extend((low..=high).map(|n| format!("{n:0width$}")));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_are_expanded_in_order_with_their_zeros() {
        for (list, names) in [
            ("login", "login"),
            ("gpu[01-03,7],login", "gpu01 gpu02 gpu03 gpu7 login"),
            ("a[8-11]", "a8 a9 a10 a11"),
            ("n[008-010]-ib", "n008-ib n009-ib n010-ib"),
            ("r[1-2]n[0,5]", "r1n0 r1n5 r2n0 r2n5"),
            ("x,y.example,z-1", "x y.example z-1"),
        ] {
            assert_eq!(expand(list).unwrap().join(" "), names, "{list}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused_with_the_part() {
        for (list, why) in [
            ("", "empty"),
            ("a,,b", "empty"),
            ("a[1-2", "not closed"),
            ("a]1", "not opened"),
            ("][0]", "not opened"),
            ("a[[1]]", "within a bracket"),
            ("a[3-1]", "backwards"),
            ("a[x]", "\"x\""),
            ("a[]", "\"\""),
            ("a[1-2-3]", "no number"),
            ("a[0-99999]", "more than"),
            ("a[0-999][0-999]", "more than"),
            ("a b", "blank"),
        ] {
            let error = expand(list).unwrap_err();
            assert!(error.contains(why), "{list}: {error}");
        }
    }

    proptest! {
        /// Runs of numbers of one width, packed as Slurm packs them.
        #[test]
        fn what_is_packed_is_found_again(
            prefix in "[a-z]{1,4}-?",
            runs in prop::collection::vec((0u32..90, 1u32..9), 1..6),
            suffix in "(-[a-z]{1,3})?",
            alone in prop::option::of("[a-z]{1,6}"),
        ) {
            let inside: Vec<String> = runs.iter().map(|&(from, n)| match n {
                1 => format!("{from:03}"),
                n => format!("{from:03}-{:03}", from + n - 1),
            }).collect();
            let mut list = format!("{prefix}[{}]{suffix}", inside.join(","));
            let mut names: Vec<String> =
                runs.iter().flat_map(|&(from, n)| from..from + n).map(|i| format!("{prefix}{i:03}{suffix}")).collect();
            if let Some(alone) = alone {
                list = format!("{list},{alone}");
                names.push(alone);
            }
            prop_assert_eq!(expand(&list).unwrap(), names);
        }

        /// Whatever stands there: an answer, and no more names than promised.
        #[test]
        fn any_text_has_an_answer(list in "[ab0-9\\[\\],-]{0,40}") {
            if let Ok(names) = expand(&list) {
                prop_assert!(!names.is_empty() && names.len() <= MOST);
                prop_assert!(names.iter().all(|name| !name.is_empty() && !name.contains(['[', ']', ','])));
            }
        }
    }
}
