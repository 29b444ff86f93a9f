//! What a finished run says to people.
use super::CliError;
use crate::progress::{ExampleDialogue, GroupCounts, LaunchReport, Rise};
use cohort_protocol::{Turn, TurnRole};
use std::io::Write;

/// Longest turn that is shown, in characters.
const TURN_CHARS: usize = 240;

/// Writes the summary: a held-out dialogue before and after, the figures, the run directory, what to try next.
pub(super) fn write(report: &LaunchReport, out: &mut dyn Write) -> Result<(), CliError> {
    writeln!(out)?;
    if let Some(before) = &report.example_before {
        dialogue("before training", before, out)?;
    }
    if let Some(after) = &report.example_after {
        dialogue("after training", after, out)?;
    }
    figures(report, out)?;
    next(report, out)
}

fn dialogue(when: &str, example: &ExampleDialogue, out: &mut dyn Write) -> Result<(), CliError> {
    writeln!(out, "Held-out prompt {} {when} (reward {:.2}):", example.prompt, example.reward)?;
    turns(&example.turns, "  ", out)?;
    writeln!(out)?;
    Ok(())
}

/// Turns of a dialogue, one a line, long ones shortened.
pub(super) fn turns(turns: &[Turn], indent: &str, out: &mut dyn Write) -> Result<(), CliError> {
    for turn in turns {
        let who = match turn.role {
            TurnRole::System => "system",
            TurnRole::User => "user",
            TurnRole::Assistant => "agent",
            TurnRole::Tool => "tool",
        };
        writeln!(out, "{indent}{who:>6}  {}", shown(&turn.content))?;
        for call in &turn.tool_calls {
            writeln!(out, "{indent}        calls {}({})", call.name, shown(&call.arguments))?;
        }
    }
    Ok(())
}

/// Text on one line without control characters: what a policy writes must not drive the terminal.
pub(super) fn shown(text: &str) -> String {
    let plain: String = text
        .chars()
        .flat_map(|c| match c {
            '\n' => "⏎".chars().collect::<Vec<_>>(),
            c if c.is_control() => c.escape_default().collect(),
            c => vec![c],
        })
        .collect();
    match plain.char_indices().nth(TURN_CHARS) {
        Some((end, _)) => format!("{}…", &plain[..end]),
        None => plain,
    }
}

fn figures(report: &LaunchReport, out: &mut dyn Write) -> Result<(), CliError> {
    let pair = |before: Option<f64>, after: Option<f64>| match (before, after) {
        (None, None) => None,
        (before, after) => {
            let text = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.3}"));
            Some(format!("{} -> {}", text(before), text(after)))
        }
    };
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut row = |name: &str, value: Option<String>| rows.extend(value.map(|value| (name.to_owned(), value)));
    row("held-out reward, sampled", pair(report.heldout_before, report.heldout_after));
    let interval = |r: Rise| format!("{:+.3} [{:+.3}, {:+.3}] over {} prompts", r.mean, r.low, r.high, r.prompts);
    row("  rise, 95 % interval", report.heldout_rise.map(interval));
    row("held-out reward, greedy", pair(report.heldout_greedy_before, report.heldout_greedy_after));
    for (part, before, after) in &report.heldout_parts {
        row(&format!("  of it {part}"), pair(Some(*before), Some(*after)));
    }
    row("training reward, first and last 5 steps", pair(report.reward_first5, report.reward_last5));
    row("steps", Some(format!("{} in {:.1} s", report.steps, report.wall_s)));
    row("tokens/s", Some(format!("{:.0} generated, {:.0} trained", report.rollout_tokens_per_s, report.train_tokens_per_s)));
    let exact = match report.logprob_tokens_compared {
        0 => "not compared: every token was stale or inexact".to_owned(),
        tokens => format!("{} over {tokens} tokens", report.max_logprob_diff),
    };
    row("largest sampler/learner difference", Some(exact));
    let idle = report.learner_idle.zip(report.rollout_idle);
    row("idle", idle.map(|(l, r)| format!("learner {:.0} %, rollout workers {:.0} % of the time", l * 100.0, r * 100.0)));
    if report.staleness_max > 0 {
        row("oldest token consumed", Some(format!("{} policy versions behind", report.staleness_max)));
    }
    row("groups", Some(groups(&report.groups)));
    row("restarts", Some(report.restarts.to_string()));
    row("weights", Some(report.weights_sha256.clone()));
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in rows {
        writeln!(out, "{name:<width$}  {value}")?;
    }
    Ok(())
}

/// What became of the groups, on one line.
pub(super) fn groups(counts: &GroupCounts) -> String {
    let mut text = format!("{} generated, {} consumed, {} in flight", counts.generated, counts.consumed, counts.in_flight);
    if counts.inexact > 0 {
        text = text.replacen(" consumed", &format!(" consumed ({} inexact, corrected for)", counts.inexact), 1);
    }
    if counts.ready > 0 {
        text.push_str(&format!(" ({} ready)", counts.ready));
    }
    for (reason, count) in &counts.dropped {
        text.push_str(&format!(", {count} dropped ({reason})"));
    }
    text
}

fn next(report: &LaunchReport, out: &mut dyn Write) -> Result<(), CliError> {
    let run = report.run_dir.display();
    writeln!(out, "\nRun directory: {run}")?;
    if !report.finished {
        writeln!(out, "The run was stopped before its last step. Go on with:\n  cluster launch --resume {run}")?;
        return Ok(());
    }
    writeln!(out, "Try next:")?;
    if report.steps > 0 {
        writeln!(out, "  cluster rollouts {run} --step {}   the groups of the last step side by side", report.steps)?;
    }
    writeln!(out, "  cluster audit {run}   prove that no group was lost or counted twice")?;
    writeln!(out, "  cluster init plugin --lang python my-reward   train on a reward of your own")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_policy_cannot_drive_the_terminal() {
        assert_eq!(shown("a\nb\u{1b}[31m\u{7}"), "a⏎b\\u{1b}[31m\\u{7}");
        assert_eq!(shown(&"ä".repeat(500)).chars().count(), TURN_CHARS + 1);
    }
}
