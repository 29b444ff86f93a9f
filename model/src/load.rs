//! Opens a model by its path: everything but the values is read and checked at once, the values when asked for.
use crate::builtin::{EmbeddedModel, embedded};
use crate::chat::{ChatContext, ChatTemplate};
use crate::hf::{Object, Shards, canonical, parse_object, read_object, read_object_if_there, spec_from_config, weights_from};
use crate::init::random_weights;
use crate::lora::{Adapter, is_adapter};
use crate::safetensors_file::read_file;
use crate::spec::TensorSpec;
use crate::tokenizer::Tokenizer;
use crate::{DecoderSpec, Family, Lora, LoraConfig, ModelError, WeightSet, gguf, hub};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The chat format of random models.
const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A model that was found and whose every header holds: what it is, how it reads and writes text, where its values are.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// What was opened, for people.
    pub source: String,
    /// The architecture.
    pub spec: DecoderSpec,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// How a conversation becomes text, where the model says so.
    pub chat: Option<Arc<ChatTemplate>>,
    /// Tokens that end a completion, ascending.
    pub eos: Vec<u32>,
    /// Token that begins a text, where the model has one.
    pub bos: Option<u32>,
    /// Token that fills up a batch, where the model names one.
    pub pad: Option<u32>,
    pub(crate) settings: Settings,
    values: Values,
    pub(crate) adapters: Option<Adapters>,
}

/// What is trained beside a frozen model.
#[derive(Debug, Clone)]
pub(crate) struct Adapters {
    pub(crate) lora: Lora,
    /// The frozen model's own source.
    pub(crate) base: String,
    /// Where they begin; fresh ones where there is none.
    directory: Option<PathBuf>,
}

/// Settings that pass through to directories written from this model.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(crate) config: Object,
    pub(crate) tokenizer_config: Object,
    pub(crate) generation_config: Object,
}

/// Where the values are.
#[derive(Debug, Clone)]
enum Values {
    Directory(Shards),
    Gguf(PathBuf),
    Embedded(&'static [u8]),
    Random(u64),
}

impl ModelFiles {
    /// Opens `builtin://order-desk`, a Hugging Face directory, an adapter's in PEFT's layout, a `.gguf` file, `hf://org/name[@revision]`,
    /// `random://tiny?seed=N` (`tiny-qwen2` and so on for other families; or `stub://name`, whose weights nothing computes with: the same tiny model).
    pub fn open(path: &str) -> Result<Self, ModelError> {
        match path.split_once("://") {
            Some(("builtin", name)) => Self::open_builtin(name),
            Some(("hf", id)) => {
                let dir = hub::fetch(id)?;
                Ok(Self { source: format!("hf://{id}"), ..Self::open_directory(&dir)? })
            }
            Some(("random", spec)) => Self::open_random(spec),
            Some(("stub", _)) => Ok(Self { source: path.to_owned(), ..Self::open_random("tiny")? }),
            Some((scheme, _)) => Err(ModelError::Missing {
                place: path.to_owned(),
                what: format!("a source for {scheme}://"),
                remedy: "use builtin://order-desk, hf://org/name, a directory or a .gguf file".into(),
            }),
            None => Self::open_local(Path::new(path)),
        }
    }

    /// The same model, frozen, with adapters to train beside it.
    ///
    /// Errors: settings that do not fit this model, or not the adapter that they name; a model that has adapters already.
    pub fn adapted(self, config: &LoraConfig) -> Result<Self, ModelError> {
        let place = "model.lora";
        if self.adapters.is_some() {
            let remedy = "give its frozen model as model.path, and the adapter as model.lora.adapter".to_owned();
            return Err(ModelError::Missing { place: self.source, what: "a model without adapters".into(), remedy });
        }
        let lora = Lora::of(config, &self.spec, place)?;
        let directory = (!config.adapter.is_empty()).then(|| PathBuf::from(&config.adapter));
        if let Some(dir) = &directory {
            let there = Lora::of(&Adapter::open(dir)?.config, &self.spec, &config.adapter)?;
            if (there.rank, there.alpha, &there.targets) != (lora.rank, lora.alpha, &lora.targets) {
                let names = |lora: &Lora| lora.targets.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ");
                let problem = format!(
                    "it has rank {}, alpha {} and modules {}; the configuration says {}, {} and {}",
                    there.rank,
                    there.alpha,
                    names(&there),
                    lora.rank,
                    lora.alpha,
                    names(&lora)
                );
                let (key, value) = ("adapter".to_owned(), config.adapter.clone());
                return Err(ModelError::Value { place: place.into(), key, value, problem });
            }
        }
        let base = self.source.clone();
        Ok(Self { adapters: Some(Adapters { lora, base, directory }), ..self })
    }

    /// The adapters' settings, where there are adapters: then they are what is trained, travels and is saved.
    #[must_use]
    pub fn lora(&self) -> Option<&Lora> {
        self.adapters.as_ref().map(|adapters| &adapters.lora)
    }

    /// Every tensor that is trained.
    #[must_use]
    pub fn trained(&self) -> Vec<TensorSpec> {
        match self.lora() {
            Some(lora) => lora.tensors(&self.spec),
            None => self.spec.tensors(),
        }
    }

    /// What training starts from: the weights, or the adapters beside them (fresh ones keyed by `seed`).
    pub fn start(&self, seed: u64) -> Result<WeightSet, ModelError> {
        match &self.adapters {
            None => self.weights(),
            Some(Adapters { lora, directory: Some(dir), .. }) => Adapter::weights(dir, lora, &self.spec),
            Some(Adapters { lora, .. }) => Ok(lora.initial(&self.spec, seed)),
        }
    }

    /// Reads back what [`ModelFiles::save`] wrote into a directory.
    pub fn saved(&self, dir: &Path) -> Result<WeightSet, ModelError> {
        if let Some(lora) = self.lora() {
            return Adapter::weights(dir, lora, &self.spec);
        }
        let path = dir.join("model.safetensors");
        let shape = |source| ModelError::Shape { place: path.display().to_string(), source };
        canonical(&self.spec, read_file(&path)?).map_err(shape)
    }

    /// All values as f32 in the canonical layout; with adapters, those of the frozen model.
    pub fn weights(&self) -> Result<WeightSet, ModelError> {
        match &self.values {
            Values::Directory(shards) => shards.weights(&self.spec),
            Values::Gguf(path) => {
                let place = path.display().to_string();
                let mut file = File::open(path).map_err(ModelError::io("open", path))?;
                let header = gguf::read_header(&mut file, &place)?;
                gguf::weights(&mut file, &header, &self.spec, &place)
            }
            Values::Embedded(bytes) => weights_from(&mut Cursor::new(*bytes), &self.spec, &self.source),
            Values::Random(seed) => Ok(random_weights(&self.spec, *seed)),
        }
    }

    /// The end token that is written where there is room for one: the tokenizer's own, or the lowest.
    pub(crate) fn main_eos(&self) -> Option<u32> {
        let named = self.settings.tokenizer_config.get("eos_token").and_then(token_text);
        named.and_then(|token| self.tokenizer.token_id(token)).or_else(|| self.eos.first().copied())
    }

    fn open_local(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            return Self::open_directory(path);
        }
        if path.is_file() {
            return match path.extension().and_then(|e| e.to_str()) {
                Some("gguf") => Self::open_gguf(path),
                _ => Err(ModelError::Missing {
                    place: path.display().to_string(),
                    what: "a model".into(),
                    remedy: "a single file is read when it is a .gguf; for safetensors give the directory with its config.json"
                        .into(),
                }),
            };
        }
        Err(ModelError::Missing {
            place: path.display().to_string(),
            what: "the model".into(),
            remedy: "there is no such file or directory; check [model] path (scripts/fetch_model.sh fetches SmolLM2)".into(),
        })
    }

    fn open_directory(dir: &Path) -> Result<Self, ModelError> {
        if is_adapter(dir) {
            return Self::open_adapter(dir);
        }
        let config_path = dir.join("config.json");
        if !config_path.is_file() {
            let remedy = "give a directory written by save_pretrained, or a .gguf file".to_owned();
            return Err(ModelError::Missing { place: dir.display().to_string(), what: "config.json".into(), remedy });
        }
        let config = read_object(&config_path)?;
        let spec = spec_from_config(&config, &config_path.display().to_string())?;
        let shards = Shards::open(dir, &spec)?;
        let tokenizer_path = dir.join("tokenizer.json");
        if !tokenizer_path.is_file() {
            let remedy =
                "save the tokenizer in the fast format: AutoTokenizer.from_pretrained(..).save_pretrained(..)".to_owned();
            return Err(ModelError::Missing { place: dir.display().to_string(), what: "tokenizer.json".into(), remedy });
        }
        let json = std::fs::read(&tokenizer_path).map_err(ModelError::io("read", &tokenizer_path))?;
        let tokenizer = Tokenizer::from_json(json, &tokenizer_path.display().to_string())?;
        let settings = Settings {
            config,
            tokenizer_config: read_object_if_there(&dir.join("tokenizer_config.json"))?,
            generation_config: read_object_if_there(&dir.join("generation_config.json"))?,
        };
        let template_path = dir.join("chat_template.jinja");
        let template = match template_path.is_file() {
            true => Some(std::fs::read_to_string(&template_path).map_err(ModelError::io("read", &template_path))?),
            false => template_of(&settings.tokenizer_config),
        };
        Self::assemble(dir.display().to_string(), spec, tokenizer, settings, template, Values::Directory(shards))
    }

    /// A directory in PEFT's layout: the frozen model that it names, with its adapters.
    fn open_adapter(dir: &Path) -> Result<Self, ModelError> {
        let Adapter { base, config } = Adapter::open(dir)?;
        let known = base.contains("://") || Path::new(&base).exists();
        let path = if known { base } else { format!("hf://{base}") };
        let own = |there: &str| std::fs::canonicalize(there).ok() == std::fs::canonicalize(dir).ok();
        if own(&path) {
            return Err(ModelError::corrupt(dir.display().to_string(), "it names itself as its frozen model"));
        }
        Ok(Self { source: dir.display().to_string(), ..Self::open(&path)?.adapted(&config)? })
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let place = path.display().to_string();
        let mut file = File::open(path).map_err(ModelError::io("open", path))?;
        let header = gguf::read_header(&mut file, &place)?;
        let spec = gguf::spec(&header, &place)?;
        gguf::check(&header, &spec, &place)?;
        let tokenizer = Tokenizer::from_json(gguf::vocabulary(&header, &place)?, &place)?;
        let token = |key: &str| header.token(key).and_then(|id| tokenizer.token(id));
        let mut tokenizer_config = Object::new();
        for (name, key) in [("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"), ("unk_token", "unknown")] {
            if let Some(token) = token(&format!("tokenizer.ggml.{key}_token_id")) {
                tokenizer_config.insert(name.to_owned(), json!(token));
            }
        }
        let mut generation_config = Object::new();
        let ends: BTreeSet<u32> =
            ["eos", "eot", "eom"].iter().filter_map(|key| header.token(&format!("tokenizer.ggml.{key}_token_id"))).collect();
        generation_config.insert("eos_token_id".into(), json!(ends));
        let template = header.text("tokenizer.chat_template").map(str::to_owned);
        let settings = Settings { config: Object::new(), tokenizer_config, generation_config };
        Self::assemble(place, spec, tokenizer, settings, template, Values::Gguf(path.to_path_buf()))
    }

    fn open_builtin(name: &str) -> Result<Self, ModelError> {
        let place = format!("builtin://{name}");
        let Some(EmbeddedModel { config, weights, tokenizer, tokenizer_config }) = embedded(name) else {
            return Err(ModelError::Missing {
                place,
                what: "this embedded model".into(),
                remedy:
                    "builtin://order-desk is the only one, and this binary was built with its files in model/assets/order-desk \
                         or without any"
                        .into(),
            });
        };
        let config = parse_object(config, &format!("{place}/config.json"))?;
        let spec = spec_from_config(&config, &format!("{place}/config.json"))?;
        let tokenizer = Tokenizer::from_json(tokenizer.to_vec(), &format!("{place}/tokenizer.json"))?;
        let tokenizer_config = parse_object(tokenizer_config, &format!("{place}/tokenizer_config.json"))?;
        let settings = Settings { config, tokenizer_config, generation_config: Object::new() };
        let template = template_of(&settings.tokenizer_config);
        Self::assemble(place, spec, tokenizer, settings, template, Values::Embedded(weights))
    }

    fn open_random(spec: &str) -> Result<Self, ModelError> {
        let place = format!("random://{spec}");
        let (name, query) = spec.split_once('?').unwrap_or((spec, "seed=0"));
        let seed = query.strip_prefix("seed=").and_then(|seed| seed.parse().ok());
        let (Some(seed), Some(spec)) = (seed, tiny_spec(name)) else {
            let remedy =
                "random://tiny?seed=N is the form, with -mistral, -qwen2, -qwen3 or -gpt2 after tiny for those".to_owned();
            return Err(ModelError::Missing { place, what: "a random model of this name".into(), remedy });
        };
        let tokenizer_config: Object = [
            ("bos_token".to_owned(), json!("<|endoftext|>")),
            ("eos_token".to_owned(), json!("<|im_end|>")),
            ("pad_token".to_owned(), json!("<|endoftext|>")),
        ]
        .into_iter()
        .collect();
        let settings = Settings { tokenizer_config, ..Settings::default() };
        Self::assemble(place, spec, Tokenizer::bytes()?, settings, Some(CHATML.to_owned()), Values::Random(seed))
    }

    fn assemble(
        source: String,
        spec: DecoderSpec,
        tokenizer: Tokenizer,
        settings: Settings,
        template: Option<String>,
        values: Values,
    ) -> Result<Self, ModelError> {
        let text = |key: &str| settings.tokenizer_config.get(key).and_then(token_text);
        let id = |key: &str| text(key).and_then(|token| tokenizer.token_id(token));
        let in_config = |key: &str| settings.config.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let bos = id("bos_token").or_else(|| in_config("bos_token_id"));
        let pad = id("pad_token").or_else(|| in_config("pad_token_id"));
        let mut eos: BTreeSet<u32> = id("eos_token").into_iter().collect();
        for ids in [settings.generation_config.get("eos_token_id"), settings.config.get("eos_token_id")] {
            let one = ids.and_then(Value::as_u64);
            let many = ids.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_u64);
            eos.extend(one.into_iter().chain(many).filter_map(|n| u32::try_from(n).ok()));
        }
        eos.retain(|id| (*id as usize) < spec.vocab);
        if tokenizer.vocab_size() > spec.vocab {
            return Err(ModelError::Tokenizer {
                place: source,
                problem: format!(
                    "it has {} tokens and the model {}; they do not belong together",
                    tokenizer.vocab_size(),
                    spec.vocab
                ),
            });
        }
        let context = ChatContext {
            bos_token: text("bos_token").map(str::to_owned),
            eos_token: text("eos_token").map(str::to_owned),
            tools: None,
        };
        let chat = template.map(|source| ChatTemplate::new(&source, context)).transpose()?.map(Arc::new);
        let eos = eos.into_iter().collect();
        Ok(Self { source, spec, tokenizer: Arc::new(tokenizer), chat, eos, bos, pad, settings, values, adapters: None })
    }
}

/// The architecture of a random model: `tiny` or `tiny-` and another family's type.
fn tiny_spec(name: &str) -> Option<DecoderSpec> {
    let family = match name.strip_prefix("tiny")? {
        "" => Family::Llama,
        other => Family::ALL.into_iter().find(|family| other.strip_prefix('-') == Some(family.model_type()))?,
    };
    Some(DecoderSpec {
        family,
        hidden: 32,
        layers: 2,
        heads: 4,
        kv_heads: if family == Family::Gpt2 { 4 } else { 2 },
        head_dim: 8,
        intermediate: 64,
        vocab: 272,
        max_context: 1024,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tied_embeddings: true,
    })
}

/// A token in tokenizer_config.json: text, or an object with its text.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The chat template in tokenizer_config.json: text, or a list of named ones of which `default` is taken.
fn template_of(tokenizer_config: &Object) -> Option<String> {
    match tokenizer_config.get("chat_template")? {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => {
            let of = |entry: &Value| Some(entry.get("template")?.as_str()?.to_owned());
            let default = named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            default.or_else(|| named.first()).and_then(of)
        }
        _ => None,
    }
}
