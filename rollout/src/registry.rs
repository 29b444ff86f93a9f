//! From names in the configuration to agents, environments and data.
use crate::agents::{Agent, chat::ChatAgent, tool::ToolAgent};
use crate::dataset::{Dataset, RowDataset, TwoFiles};
use crate::environments::order_desk::{OrderDesk, Orders};
use crate::environments::{Environment, prompts, scenarios};
use crate::format::ChatFormat;
use crate::scene::limits_of;
use crate::{AgentConfig, EnvironmentConfig, Grammar, RolloutError, tools};
use cohort_engine::sampler;
use cohort_engine::stub::Script;
use cohort_model::ModelFiles;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// Agents by name.
pub const AGENTS: [&str; 2] = ["chat", "tool"];
/// Environments by name.
pub const ENVIRONMENTS: [&str; 3] = ["order_desk", "prompts", "scenarios"];

/// Keys that [`sampler::check`] may find fault with.
const SAMPLING: [&str; 5] =
    ["agent.top_p", "agent.min_p", "agent.repetition_penalty", "agent.presence_penalty", "agent.frequency_penalty"];

/// The agent of a section for a model.
pub fn agent(config: &AgentConfig, model: &ModelFiles) -> Result<Arc<dyn Agent>, RolloutError> {
    check_agent(config)?;
    let format = ChatFormat::new(model)?;
    let grammar = config.constraint.as_ref().map(|constraint| Grammar::compile(constraint, model)).transpose()?;
    match config.r#type.as_str() {
        "chat" => Ok(Arc::new(ChatAgent::new(config.clone(), format, grammar))),
        "tool" => {
            let tools = config.tools.iter().map(|name| tools::by_name(name)).collect::<Result<_, _>>()?;
            Ok(Arc::new(ToolAgent::new(config.clone(), format, grammar, tools)))
        }
        other => Err(unknown("agent.type", other, &AGENTS)),
    }
}

/// Checks a section.
pub fn check_agent(config: &AgentConfig) -> Result<(), RolloutError> {
    let fail = |place, problem: String| Err(RolloutError::Config { place, problem });
    if config.max_new_tokens == 0 {
        return fail("agent.max_new_tokens", "0 leaves no room to answer".into());
    }
    if !(config.temperature > 0.0 && config.temperature.is_finite()) {
        return fail("agent.temperature", format!("{} is not above 0", config.temperature));
    }
    let (penalties, truncation) = limits_of(&config.sampling());
    if let Err(bad) = sampler::check(&penalties, &truncation) {
        let place = SAMPLING.into_iter().find(|place| place.ends_with(bad.field)).unwrap_or("agent");
        return fail(place, format!("{} {}", bad.value, bad.rule));
    }
    if config.stop.iter().any(String::is_empty) {
        return fail("agent.stop", "an empty text would stop every turn at once".into());
    }
    if !config.tools.is_empty() && config.r#type == "chat" {
        return fail("agent.tools", "only agent.type = \"tool\" calls tools".into());
    }
    Ok(())
}

/// The environment of a section.
pub fn environment(config: &EnvironmentConfig) -> Result<Arc<dyn Environment>, RolloutError> {
    if config.max_turns == 0 {
        return Err(RolloutError::Config { place: "environment.max_turns", problem: "0 leaves no turn to speak in".into() });
    }
    match config.r#type.as_str() {
        "order_desk" => Ok(Arc::new(OrderDesk::new(config))),
        "prompts" => Ok(Arc::new(prompts::Prompts::new(config))),
        "scenarios" => Ok(Arc::new(scenarios::Scenarios::new(config))),
        other => Err(unknown("environment.type", other, &ENVIRONMENTS)),
    }
}

/// The data of a section. `base` is the folder that relative paths start from, `seed` the run's.
pub fn dataset(config: &EnvironmentConfig, base: &Path, seed: u64) -> Result<Arc<dyn Dataset>, RolloutError> {
    match config.r#type.as_str() {
        "order_desk" => Ok(Arc::new(Orders::new(config, seed)?)),
        "prompts" => from_files(prompts::rows, config, base, seed),
        "scenarios" => from_files(scenarios::rows, config, base, seed),
        other => Err(unknown("environment.type", other, &ENVIRONMENTS)),
    }
}

/// One file that is split, or two.
fn from_files(
    read: fn(&Path) -> Result<Vec<Value>, RolloutError>,
    config: &EnvironmentConfig,
    base: &Path,
    seed: u64,
) -> Result<Arc<dyn Dataset>, RolloutError> {
    let path = config.path.as_deref().ok_or_else(|| RolloutError::Config {
        place: "environment.path",
        problem: format!("environment {} reads its rows from a file; name it", config.r#type),
    })?;
    let path = base.join(path);
    let (rows, place) = (read(&path)?, path.display().to_string());
    let Some(apart) = &config.heldout_path else { return Ok(Arc::new(RowDataset::new(rows, config, seed, &place)?)) };
    let apart = base.join(apart);
    let heldout = read(&apart)?;
    Ok(Arc::new(TwoFiles::new(rows, heldout, config, seed, (&place, &apart.display().to_string()))?))
}

/// What a `stub://` model says for this agent, for [`cohort_engine::stub::StubBackend`].
pub fn stub_script(config: &AgentConfig, model: &ModelFiles) -> Result<Script, RolloutError> {
    let format = ChatFormat::new(model)?;
    if config.stub_responses.is_empty() {
        return Err(RolloutError::Config {
            place: "agent.stub_responses",
            problem: "a stub model needs something to say".into(),
        });
    }
    let replies = config.stub_responses.iter().map(|text| format.encode(text)).collect::<Result<_, _>>()?;
    Ok(Script { replies, opening: format.opening()?, end: format.end().first().copied().unwrap_or_default() })
}

fn unknown(place: &'static str, name: &str, known: &[&str]) -> RolloutError {
    RolloutError::Config { place, problem: format!("there is no {name:?}; there are {}", known.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_names_and_values_name_their_place() {
        let model = ModelFiles::open("random://tiny").unwrap();
        let agent_error = |config: AgentConfig| agent(&config, &model).err().map(|e| e.to_string()).unwrap_or_default();
        let base = AgentConfig::default();
        assert!(
            agent_error(AgentConfig { r#type: "chatty".into(), ..base.clone() })
                .contains("agent.type: there is no \"chatty\"; there are chat, tool")
        );
        assert!(agent_error(AgentConfig { max_new_tokens: 0, ..base.clone() }).starts_with("agent.max_new_tokens"));
        assert!(agent_error(AgentConfig { temperature: 0.0, ..base.clone() }).starts_with("agent.temperature"));
        assert!(agent_error(AgentConfig { stop: vec![String::new()], ..base.clone() }).starts_with("agent.stop"));
        assert!(agent_error(AgentConfig { tools: vec!["calculator".into()], ..base.clone() }).starts_with("agent.tools"));
        assert!(agent_error(AgentConfig { tools: vec!["x".into()], r#type: "tool".into(), ..base }).contains("calculator"));
        let prompts = EnvironmentConfig { r#type: "prompts".into(), ..EnvironmentConfig::default() };
        let error = dataset(&prompts, Path::new("."), 1).unwrap_err().to_string();
        assert!(error.starts_with("environment.path"), "{error}");
        let error = environment(&EnvironmentConfig { r#type: "x".into(), ..prompts }).err().unwrap().to_string();
        assert!(error.contains("order_desk, prompts, scenarios"), "{error}");
    }
}
