//! What lies in `deploy/` is held against the program: its commands, flags, ports, paths and exit codes cannot go stale.
use super::{Cli, Exit};
use crate::agent::GRACE_COORDINATOR;
use crate::config::{Config, Inputs, Resolved};
use clap::CommandFactory;
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(deploy().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every manifest of a file.
fn documents(file: &str) -> Vec<Value> {
    let text = read(&format!("kubernetes/{file}"));
    let parsed = serde_norway::Deserializer::from_str(&text).map(Value::deserialize);
    parsed.collect::<Result<_, _>>().unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Everything that `kubectl apply -k` would send.
fn manifests() -> Vec<Value> {
    let [kustomization] = &documents("kustomization.yaml")[..] else { panic!("one kustomization") };
    let mut listed = texts(&kustomization["resources"]);
    listed.sort_unstable();
    let entries = std::fs::read_dir(deploy().join("kubernetes")).unwrap().flatten();
    let mut there: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    there.retain(|name| name.ends_with(".yaml") && name != "kustomization.yaml");
    there.sort_unstable();
    assert_eq!(listed, there, "kustomization.yaml lists every manifest");
    listed.into_iter().flat_map(documents).collect()
}

/// The pod templates, by the name of what has them.
fn pods(manifests: &[Value]) -> Vec<(String, &Value)> {
    let pod = |m: &'_ Value| m.pointer("/spec/template/spec").is_some();
    let named = |m| name(m).to_owned();
    manifests.iter().filter(|m| pod(m)).map(|m| (named(m), &m["spec"]["template"]["spec"])).collect()
}

fn name(manifest: &Value) -> &str {
    manifest["metadata"]["name"].as_str().unwrap_or_default()
}

fn config() -> Config {
    let files = vec![deploy().join("kubernetes/run.toml")];
    let resolved = Resolved::load(&Inputs { files, ..Inputs::default() }).unwrap_or_else(|e| panic!("{e}"));
    resolved.check_training().unwrap_or_else(|e| panic!("{e}"));
    resolved.config
}

/// A command line as clap reads it.
fn parse(words: &[&str]) {
    assert_eq!(words.first(), Some(&"cluster"), "{words:?}");
    if let Err(error) = Cli::command().try_get_matches_from(words) {
        panic!("{words:?}: {error}");
    }
}

/// The lines of a shell script that run the program, with what they would be called with.
fn commands(script: &str) -> Vec<Vec<&str>> {
    let calls = script.lines().filter(|line| !line.trim_start().starts_with('#'));
    let call = |line: &'_ str| line.find("cluster ").map(|at| line.len() - line[at..].len());
    let words = calls.filter_map(|line| Some(line[call(line)?..].split_whitespace().take_while(|w| *w != "|").collect()));
    let bare = |word: &'_ str| word.trim_matches('"').len();
    words
        .map(|words: Vec<&str>| {
            words.into_iter().filter(|w| *w != "\"$@\"").map(|w| if bare(w) < w.len() { "1" } else { w }).collect()
        })
        .collect()
}

/// Every way in which a container runs the program.
fn runs(container: &Value) -> Vec<Vec<&str>> {
    let mut words = texts(&container["command"]);
    words.extend(texts(&container["args"]));
    let mut all = match words[..] {
        ["/bin/sh", "-c", script] => commands(script),
        _ => vec![words],
    };
    all.extend(container.pointer("/lifecycle/preStop/exec/command").map(texts));
    all
}

fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().position(|w| *w == name).and_then(|at| words.get(at + 1).copied())
}

#[test]
fn every_command_and_path_of_the_pods_exists() {
    let (manifests, config) = (manifests(), config());
    let pods = pods(&manifests);
    assert_eq!(pods.len(), 3);
    for (pod, spec) in pods {
        let [container] = items(spec, "/containers") else { panic!("{pod}: one container") };
        let mounts: Vec<&str> = items(container, "/volumeMounts").iter().filter_map(|m| m["mountPath"].as_str()).collect();
        let mounted = |path: &str| mounts.iter().any(|mount| path == *mount || path.starts_with(&format!("{mount}/")));
        for words in runs(container) {
            parse(&words);
            for flag in ["--run-dir", "--resume", "--dir", "--token-file", "--http-token-file"] {
                assert!(option(&words, flag).is_none_or(mounted), "{pod}: {words:?} and {mounts:?}");
            }
            let config_file = words.iter().find(|w| w.ends_with(".toml"));
            assert!(config_file.is_none_or(|file| *file == "/config/run.toml" && mounted(file)), "{pod}: {words:?}");
            if let Some(http) = option(&words, "--http") {
                assert_eq!(http.parse().ok(), config.cluster.http, "{pod}: one port for the probes of all");
            }
            if words.get(1) == Some(&"join") {
                let (advertise, listen) = (config.cluster.advertise.as_deref().unwrap(), config.cluster.listen.unwrap());
                assert_eq!(words[2], format!("{advertise}:{}", listen.port()), "{pod}");
            }
        }
        let volumes: Vec<&str> = items(spec, "/volumes").iter().filter_map(|v| v["name"].as_str()).collect();
        let claims = manifests.iter().filter(|m| name(m) == pod).flat_map(|m| items(m, "/spec/volumeClaimTemplates"));
        let claims: Vec<&str> = claims.map(name).collect();
        for mount in items(container, "/volumeMounts").iter().filter_map(|m| m["name"].as_str()) {
            assert!(volumes.contains(&mount) || claims.contains(&mount), "{pod}: no volume {mount}");
        }
    }
    let token_file = config.cluster.http_token_file.unwrap();
    assert_eq!(token_file, Path::new("/metrics/token"), "where head.yaml mounts it");
}

#[test]
fn ports_and_probes_are_those_of_the_configuration() {
    let (manifests, config) = (manifests(), config());
    let listen = config.cluster.listen.unwrap().port();
    let http = u64::from(config.cluster.http.unwrap().port());
    let doors = ["UDP", "TCP"].into_iter().flat_map(|protocol| (0..4).map(move |n| (u64::from(listen + n), protocol)));
    let own: Vec<(u64, &str)> = doors.chain([(http, "TCP")]).collect();
    let ports = |list: &'_ [Value], key: &str| -> Vec<(u64, String)> {
        let port = |p: &Value| (p[key].as_u64().unwrap(), p["protocol"].as_str().unwrap().to_owned());
        list.iter().map(port).collect()
    };
    let own: Vec<(u64, String)> = own.into_iter().map(|(port, protocol)| (port, protocol.to_owned())).collect();
    let find = |kind: &str, named: &str| manifests.iter().find(|m| m["kind"] == kind && name(m) == named).unwrap();
    let service = find("Service", config.cluster.advertise.as_deref().unwrap());
    assert_eq!(ports(items(service, "/spec/ports"), "port"), own);
    let head = find("Job", "cohort-head");
    assert_eq!(ports(items(head, "/spec/template/spec/containers/0/ports"), "containerPort"), own);
    let doors = items(find("NetworkPolicy", "cohort-head"), "/spec/ingress/0/ports");
    assert_eq!(doors.iter().map(|door| door["protocol"].as_str()).collect::<Vec<_>>(), [Some("UDP"), Some("TCP")]);
    for door in doors {
        assert_eq!((door["port"].as_u64(), door["endPort"].as_u64()), (Some(listen.into()), Some((listen + 3).into())));
    }
    for (pod, spec) in pods(&manifests) {
        let container = &spec["containers"][0];
        let served = ports(items(container, "/ports"), "containerPort");
        assert!(served.contains(&(http, "TCP".to_owned())), "{pod}");
        for (probe, path) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            let get = &container[probe]["httpGet"];
            assert!(get["path"] == path && get["port"] == "http" && crate::http::PROBES.contains(&path), "{pod}: {get}");
        }
    }
}

#[test]
fn pods_may_do_what_they_must_and_have_the_time_to_leave() {
    let manifests = manifests();
    for (pod, spec) in pods(&manifests) {
        let (security, container) = (&spec["securityContext"], &spec["containers"][0]);
        assert!(security["runAsNonRoot"] == true && security["seccompProfile"]["type"] == "RuntimeDefault", "{pod}");
        let inner = &container["securityContext"];
        assert!(inner["readOnlyRootFilesystem"] == true && inner["allowPrivilegeEscalation"] == false, "{pod}");
        assert_eq!(texts(&inner["capabilities"]["drop"]), ["ALL"], "{pod}");
        for limit in ["cpu", "memory"] {
            assert!(container["resources"]["limits"][limit].is_string(), "{pod}: {limit}");
        }
        let image = container["image"].as_str().unwrap();
        assert!(!image.contains(['/', '.']), "{pod}: {image} names a registry");
        let user = security["runAsUser"].as_u64().unwrap();
        assert!(read("kubernetes/Dockerfile").contains(&format!("USER {user}:{user}")), "the image's user");
    }
    let head = manifests.iter().find(|m| m["kind"] == "Job").unwrap();
    let grace = head.pointer("/spec/template/spec/terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap();
    assert!(grace > GRACE_COORDINATOR.as_secs() + 5, "{grace} s: a drain takes up to {GRACE_COORDINATOR:?}");
    let rules = items(head, "/spec/podFailurePolicy/rules");
    let codes = |action: &str| -> Vec<Option<Exit>> {
        let of = rules.iter().filter(|rule| rule["action"] == action).flat_map(|rule| items(rule, "/onExitCodes/values"));
        of.map(|code| code.as_u64().and_then(|code| Exit::from_code(code as u8))).collect()
    };
    assert_eq!(codes("Ignore"), [Some(Exit::Drained)]);
    let lasting = [Exit::Usage, Exit::Model, Exit::Data, Exit::RunDirectory, Exit::Numerics].map(Some);
    assert_eq!(codes("FailJob"), lasting);
}

#[test]
fn scripts_and_the_image_call_what_exists() {
    for (script, least) in [("slurm/run.sbatch", 2), ("kubernetes/token.sh", 1)] {
        let text = read(script);
        let calls: Vec<Vec<&str>> = commands(&text).into_iter().filter(|words| words.len() > 2).collect();
        assert!(calls.len() >= least, "{script}: {calls:?}");
        calls.iter().for_each(|words| parse(words));
    }
    let toolchain = std::fs::read_to_string(deploy().join("../rust-toolchain.toml")).unwrap();
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    let image = read("kubernetes/Dockerfile");
    assert!(image.contains(&format!("FROM rust:{channel}-slim")), "the toolchain of the repository, {channel}");
    assert!(image.contains("-p cohort-cluster --bin cluster") && image.contains("ENTRYPOINT [\"cluster\"]"));
}
