//! Chat templates: Jinja text that turns messages into the one string that the model was taught on.
//!
//! Invariants
//! - **C1** rendering is a pure function of template and messages: the date that a template may ask for is fixed, so a
//!   group generated again has the same prompt.
//! - **C2** a template that never ends runs out of fuel; it is an error, not a hang.
//! - **C3** numbers in a template do not decide how much memory it takes (`limits`).
mod limits;

use crate::ModelError;
use limits::Bounded;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};

/// Instructions that one rendering may take.
const FUEL: u64 = 20_000_000;
/// What stands for the assistant's text while the text after it is sought.
const SENTINEL: &str = "\u{e000}assistant\u{e001}";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Text.
    pub content: String,
    /// A tool's or speaker's name, for templates that show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Calls as the template expects them, for templates that write calls themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<serde_json::Value>,
}

impl ChatMessage {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }
}

/// What a template sees besides the messages.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChatContext {
    /// Text of the begin-of-sequence token.
    pub bos_token: Option<String>,
    /// Text of the end-of-sequence token.
    pub eos_token: Option<String>,
    /// Tool schemas, for templates that list them.
    pub tools: Option<serde_json::Value>,
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    context: ChatContext,
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Compiles a template as transformers would (blocks trimmed, Python's string methods, `raise_exception`,
    /// `strftime_now`, Python's JSON).
    pub fn new(source: &str, context: ChatContext) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| problem(&e))?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(limits::method);
        environment.add_filter(limits::INDENT, minijinja::filters::indent);
        environment.add_filter(limits::FORMAT, minijinja::filters::format);
        environment.add_filter("indent", limits::indent);
        environment.add_filter("format", limits::format);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: &str| strftime(format));
        environment.add_filter("tojson", tojson);
        environment.add_template_owned("chat", without_generation_marks(source)).map_err(|e| problem(&e))?;
        Ok(Self { source: source.to_owned(), context, environment })
    }

    /// The template's text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The same template with tool schemas.
    #[must_use]
    pub fn with_tools(mut self, tools: Option<serde_json::Value>) -> Self {
        self.context.tools = tools;
        self
    }

    /// The conversation as text; with `add_generation_prompt` it ends where the assistant begins to speak. Encode it
    /// without adding special tokens: the template writes them.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, ModelError> {
        let template = self.environment.get_template("chat").map_err(|e| problem(&e))?;
        let values = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => add_generation_prompt,
            bos_token => self.context.bos_token.clone().unwrap_or_default(),
            eos_token => self.context.eos_token.clone().unwrap_or_default(),
            tools => self.context.tools.as_ref().map(|tools| Value::from(Serde(tools))),
        };
        let mut text = Bounded::default();
        template.render_captured_to(values, &mut text).map_err(|e| problem(&e))?;
        text.into_text().map_err(|e| problem(&e))
    }

    /// The text between the assistant's last message and its next one.
    ///
    /// `messages` is the whole conversation, `assistant` the index of the assistant's message whose exact tokens are
    /// already in the context; what comes out is to be encoded and appended to those tokens, so that nothing that was
    /// sampled is ever tokenised again. `closed` is the text of the token that ended the message (`<|im_end|>`), where
    /// it was sampled and so is in the context: it is not written twice.
    pub fn continuation(&self, messages: &[ChatMessage], assistant: usize, closed: Option<&str>) -> Result<String, ModelError> {
        let fail = |problem: String| ModelError::Template { problem };
        let Some(message) = messages.get(assistant).filter(|m| m.role == "assistant") else {
            return Err(fail(format!("message {assistant} of {} is not the assistant's", messages.len())));
        };
        if messages.iter().any(|m| m.content.contains(SENTINEL)) {
            return Err(fail(format!("a message contains the reserved text {SENTINEL:?}")));
        }
        let mut marked = messages.to_vec();
        marked[assistant] = ChatMessage { content: SENTINEL.to_owned(), ..message.clone() };
        let whole = self.render(&marked, true)?;
        let mut parts = whole.split(SENTINEL);
        let (Some(_), Some(after), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(fail(
                "it does not show the assistant's message exactly once, so a conversation cannot be continued".into(),
            ));
        };
        let closed = closed.unwrap_or_default();
        Ok(after.strip_prefix(closed).unwrap_or(after).to_owned())
    }
}

fn problem(error: &Error) -> ModelError {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    ModelError::Template { problem: format!("{line}{detail}") }
}

/// transformers marks the assistant's spans with `{% generation %}` blocks, which print nothing: they become blocks that
/// every Jinja knows.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start + 2..].find("%}") else { break };
        let (tag, end) = (&rest[start + 2..start + 2 + len], start + 2 + len + 2);
        let name = tag.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        out.push_str(&rest[..start + 2]);
        match name {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = &rest[end..];
    }
    out + rest
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn tojson(value: Value, args: Kwargs) -> Result<Value, Error> {
    let indent = args.get::<Option<usize>>("indent")?.map(limits::width).transpose()?;
    limits::depth(&value)?;
    // Other arguments of json.dumps (separators, sort_keys, ensure_ascii) change nothing here.
    let json = serde_json::to_value(&value).map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))?;
    let mut out = String::new();
    python_json(&json, indent, 0, &mut out);
    Ok(Value::from_safe_string(out))
}

fn python_json(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let open_line = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value {
        serde_json::Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                open_line(out, depth + 1);
                python_json(item, indent, depth + 1, out);
            }
            open_line(out, depth);
            out.push(']');
        }
        serde_json::Value::Object(map) if !map.is_empty() => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                open_line(out, depth + 1);
                out.push_str(&serde_json::Value::from(key.as_str()).to_string());
                out.push_str(": ");
                python_json(item, indent, depth + 1, out);
            }
            open_line(out, depth);
            out.push('}');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

/// The date as Python's `strftime` writes it. It is always 26 July 2024, 12:00: see C1.
fn strftime(format: &str) -> Result<String, Error> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = chars.next();
        out.push_str(match directive {
            Some('d') => "26",
            Some('e') => "26",
            Some('b' | 'h') => "Jul",
            Some('B') => "July",
            Some('m') => "07",
            Some('Y') => "2024",
            Some('y') => "24",
            Some('A') => "Friday",
            Some('a') => "Fri",
            Some('j') => "208",
            Some('H' | 'I') => "12",
            Some('M' | 'S') => "00",
            Some('p') => "PM",
            Some('F') => "2024-07-26",
            Some('T') => "12:00:00",
            Some('%') => "%",
            other => {
                let shown = other.map(String::from).unwrap_or_default();
                return Err(Error::new(ErrorKind::InvalidOperation, format!("strftime_now: %{shown} is not known")));
            }
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn chat(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, ChatContext { bos_token: Some("<s>".into()), ..ChatContext::default() }).unwrap()
    }

    fn render(source: &str) -> Result<String, ModelError> {
        chat(source).render(&[ChatMessage::new("user", "  hi & <bye> ")], true)
    }

    #[test]
    fn chatml_renders() {
        let messages = [ChatMessage::new("system", "Be brief."), ChatMessage::new("user", "2+2?")];
        assert_eq!(
            chat(CHATML).render(&messages, true).unwrap(),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn python_is_understood() {
        assert_eq!(render("{{ bos_token }}{{ messages[0].content.strip() }}").unwrap(), "<s>hi & <bye>");
        assert_eq!(render("{{ messages[0]['content'].split('&')[0].upper() }}").unwrap(), "  HI ");
        assert_eq!(
            render("{%- for m in messages %}\n  {%- generation %}{{ m.role }}{% endgeneration -%}\n{% endfor %}").unwrap(),
            "user"
        );
        assert_eq!(render("{{ messages[0] | tojson }}").unwrap(), r#"{"role": "user", "content": "  hi & <bye> "}"#);
        assert_eq!(render("{{ [1, {'b': []}] | tojson(indent=2) }}").unwrap(), "[\n  1,\n  {\n    \"b\": []\n  }\n]");
        assert_eq!(render("{{ strftime_now('%d %b %Y') }}").unwrap(), "26 Jul 2024");
        assert_eq!(
            render("{% if tools is not none and tools %}x{% endif %}{% if messages[0].tool_calls is defined %}y{% endif %}")
                .unwrap(),
            ""
        );
        assert_eq!(
            render("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}")
                .unwrap(),
            "1"
        );
    }

    #[test]
    fn refusals_and_mistakes_are_errors_with_the_line() {
        let error = render("{% if true %}\n{{ raise_exception('roles must alternate') }}{% endif %}").unwrap_err();
        assert_eq!(error.to_string(), "chat template: line 2: roles must alternate");
        assert!(ChatTemplate::new("{{%}", ChatContext::default()).is_err());
        let error = ChatTemplate::new("{% for %}", ChatContext::default()).unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error}");
        let endless = "{% for i in range(90000) %}{% for j in range(90000) %}{{ i * j }}{% endfor %}{% endfor %}";
        assert!(render(endless).unwrap_err().to_string().contains("fuel"));
    }

    #[test]
    fn a_continuation_is_what_follows_the_assistants_message() {
        let template = chat(CHATML);
        let messages = [
            ChatMessage::new("user", "a"),
            ChatMessage::new("assistant", "b"),
            ChatMessage::new("tool", "c"),
            ChatMessage::new("user", "d"),
        ];
        let tail = "\n<|im_start|>tool\nc<|im_end|>\n<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(template.continuation(&messages, 1, Some("<|im_end|>")).unwrap(), tail);
        assert_eq!(template.continuation(&messages, 1, None).unwrap(), format!("<|im_end|>{tail}"));
        assert!(template.continuation(&messages, 0, None).is_err());
        let whole = template.render(&messages, true).unwrap();
        let first = template.render(&messages[..1], true).unwrap();
        assert_eq!(whole, format!("{first}b<|im_end|>{tail}"));
    }

    #[test]
    fn numbers_in_a_template_do_not_decide_how_much_memory_it_takes() {
        for hostile in [
            "{{ 'x'|indent(width=9223372036854775807, first=true) }}",
            "{{ 'x'|indent(9223372036854775807, true) }}",
            "{{ '%99999999999d'|format(1) }}",
            "{{ '%.99999999999f'|format(1.5) }}",
            "{{ '{:>99999999999}'.format('x') }}",
            "{{ messages|tojson(indent=9223372036854775807) }}",
            "{{ 'x' * 99999999999 }}",
            "{{ ('x' * 1000000)|center(99999999999) }}",
            "{% for i in range(90000) %}{{ 'x' * 50000 }}{% endfor %}",
            "{% set n = namespace(x=[]) %}{% for i in range(2000) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x|tojson }}",
            "{% set n = namespace(x={}) %}{% for i in range(2000) %}{% set n.x = {'a': n.x} %}{% endfor %}{{ n.x|tojson }}",
        ] {
            let template = ChatTemplate::new(hostile, ChatContext::default());
            let rendered = template.and_then(|template| template.render(&[ChatMessage::new("user", "x")], true));
            assert!(rendered.is_err(), "{hostile} gave {} bytes", rendered.map_or(0, |text| text.len()));
        }
        assert_eq!(render("{{ 'a\nb'|indent(2) }}").unwrap(), "a\n  b");
        assert_eq!(render("{{ 'a\nb'|indent(width=3, first=true) }}").unwrap(), "   a\n   b");
        assert_eq!(render("{{ '%05.1f %s'|format(2.25, 'x') }}").unwrap(), "002.2 x");
        assert_eq!(render("{{ '{:>4}|{a}'.format('x', a=1) }}").unwrap(), "   x|1");
        assert_eq!(render("{{ {'a': [[1], {'b': {}}]}|tojson }}").unwrap(), r#"{"a": [[1], {"b": {}}]}"#);
    }

    /// Templates to be damaged: what model files hold, and what they should not.
    const SEEDS: [&str; 4] = [
        CHATML,
        "{%- if tools %}{{ tools | tojson(indent=4) }}{% endif %}{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ loop.index0 }}{{ m.content | trim }}{% endfor %}",
        "{% macro say(m) %}{{ '%5d|%-8s'|format(m.content|length, m.role) }}{% endmacro %}{% for m in messages %}{{ say(m)|indent(4) }}{% endfor %}",
        "{{ '{:>8}'.format(messages[0]['role']) }}{% if messages[-1].role != 'user' %}{{ raise_exception('x') }}{% endif %}{{ strftime_now('%d %b') }}",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 600, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default() })]
        #[test]
        fn a_damaged_template_renders_or_is_refused(
            seed in 0..SEEDS.len(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), "[{}%'|()0-9~*+ a-z.]{0,3}", 0usize..4), 1..6),
        ) {
            let mut text: Vec<char> = SEEDS[seed].chars().collect();
            for (at, put, gone) in edits {
                let at = at.index(text.len());
                text.splice(at..(at + gone).min(text.len()), put.chars());
            }
            let text: String = text.into_iter().collect();
            if let Ok(template) = ChatTemplate::new(&text, ChatContext::default()) {
                let messages = [ChatMessage::new("system", "a"), ChatMessage::new("user", "b\nc")];
                if let Ok(rendered) = template.render(&messages, true) {
                    prop_assert!(rendered.len() <= limits::LONGEST_TEXT);
                }
                let _ = template.continuation(&messages, 1, None);
            }
        }

        #[test]
        fn no_template_makes_it_panic(source in "(\\{\\{|\\}\\}|\\{%|%\\}|[a-z ]|messages|for|in|if|\\[0\\]|'){0,40}") {
            if let Ok(template) = ChatTemplate::new(&source, ChatContext::default()) {
                let _ = template.render(&[ChatMessage::new("user", "x")], true);
            }
        }
    }
}
