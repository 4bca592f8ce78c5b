use super::*;

/// Resolves a file, variables and flags.
fn check(
    file: &str,
    variables: &[(&str, &str)],
    flags: &[(&str, &str, &str)],
) -> Result<Config, Vec<String>> {
    let mut layers = Layers::default();
    layers.file("quern.toml", file);
    layers.variables(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    for (flag, key, value) in flags {
        layers.flag(flag, key, *value);
    }
    layers.resolve().map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

#[test]
fn nothing_set_is_the_default() {
    let config = check("", &[("QUERN_CACHE_DIR", "/x"), ("PATH", "/bin")], &[]).expect("good");
    assert_eq!(config, Config::default());
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:8081");
}

#[test]
fn flags_beat_variables_beat_the_file() {
    let file = "[scheduler]\nmax_queued = 1\nmax_running = 1\ntoken_budget = 1\n";
    let variables = [("QUERN_SCHEDULER__MAX_RUNNING", "2"), ("QUERN_SCHEDULER__TOKEN_BUDGET", "2")];
    let flags = [("--token-budget", "scheduler.token_budget", "3")];
    let scheduler = check(file, &variables, &flags).expect("good").scheduler;
    assert_eq!((scheduler.max_queued, scheduler.max_running, scheduler.token_budget), (1, 2, 3));
}

#[test]
fn texts_become_what_their_key_takes() {
    let variables = [
        ("QUERN_MODEL__ID", "7"),
        ("QUERN_HTTP__SERVER_HEADER", ""),
        ("QUERN_HTTP__MAX_BODY_BYTES", "1MiB"),
        ("QUERN_LIMITS__MAX_STOP_BYTES", "64"),
        ("QUERN_ENGINE__LLAMA__TENSOR_SPLIT", "[3, 1.5]"),
        ("QUERN_ENGINE__LLAMA__KV_TYPE", "q8_0"),
        ("QUERN_SHUTDOWN__DRAIN_TIMEOUT", "5s"),
    ];
    let config = check("", &variables, &[]).expect("good");
    assert_eq!(config.model.id.as_deref(), Some("7"));
    assert_eq!(config.http.server_header, "");
    assert_eq!(config.http.max_body_bytes, Bytes(1 << 20));
    assert_eq!(config.limits.max_stop_bytes, Bytes(64));
    assert_eq!(config.engine.llama.tensor_split, [3.0, 1.5]);
    assert_eq!(config.engine.llama.kv_type, KvType::Q8);
    assert_eq!(config.shutdown.drain_timeout.to_string(), "5s");
}

#[test]
fn all_mistakes_are_told_at_once() {
    let file = "[http]\nlisten = \"here\"\nlisen = 1\n[scheduler]\nmax_queued = -1\n[modle]\nname = \"x\"\n";
    let variables = [("QUERN_LOGGING__FORMAT", "xml")];
    let flags = [("--drain-timeout", "shutdown.drain_timeout", "5")];
    let errors = check(file, &variables, &flags).expect_err("bad");
    let all = errors.join("\n");
    assert_eq!(errors.len(), 6, "{all}");
    for part in [
        "quern.toml: http.listen: ",
        "quern.toml: http.lisen: unknown field `lisen`",
        "quern.toml: scheduler.max_queued: ",
        "quern.toml: modle.name: unknown field `modle`",
        "the variable QUERN_LOGGING__FORMAT: logging.format: unknown variant `xml`",
        "--drain-timeout: shutdown.drain_timeout: \"5\" is not a duration",
    ] {
        assert!(all.contains(part), "{part} is not in\n{all}");
    }
}

#[test]
fn clashes_are_told_with_the_key_and_its_origin() {
    let flags = [("--admin-listen", "admin.listen", "127.0.0.1:8080"), ("--tls-cert", "tls.cert", "c.pem")];
    let file = "[engine.llama]\nmicro_batch_rows = 100000\n[logging]\nlevel = \"quern=loud\"\n";
    let errors = check(file, &[], &flags).expect_err("bad").join("\n");
    assert!(errors.contains("--admin-listen: admin.listen: it is the address of http.listen"), "{errors}");
    assert!(errors.contains("the default: tls.key: tls.cert is set, and this is not"), "{errors}");
    assert!(errors.contains("quern.toml: engine.llama.micro_batch_rows: "), "{errors}");
    assert!(errors.contains("quern.toml: logging.level: "), "{errors}");
}

#[test]
fn another_name_is_answered_with_ours() {
    let errors = check("[engine.llama]\ncontext = 4096\n", &[], &[]).expect_err("bad");
    assert_eq!(errors, ["quern.toml: engine.llama.context is called engine.llama.max_sequence_len"]);
}

#[test]
fn a_file_that_is_no_toml_says_where() {
    let errors = check("[http\nlisten = 1", &[], &[]).expect_err("bad").join("\n");
    assert!(errors.starts_with("quern.toml: ") && errors.contains("line 1"), "{errors}");
}

#[test]
fn a_section_given_a_plain_value_is_refused() {
    let errors =
        check("http = 1\n", &[("QUERN_HTTP__MAX_CONNECTIONS", "5")], &[]).expect_err("bad").join("\n");
    assert!(errors.contains("quern.toml: http: "), "{errors}");
}

#[test]
fn what_is_printed_reads_back_the_same() {
    let mut config = Config::default();
    config.generation.temperature = 0.7;
    config.engine.llama.gpu_layers = Some(12);
    config.tls.cert = Some("c.pem".into());
    config.tls.key = Some("k.pem".into());
    let text = config.to_toml();
    assert!(text.contains("temperature = 0.7"), "{text}");
    assert_eq!(check(&text, &[], &[]).expect("good"), config);
}

const EXAMPLE: &str = include_str!("../../../examples/quern.toml");

/// The example sets every key to its default; keys without one are commented out.
#[test]
fn the_example_is_the_default_and_leaves_no_key_out() {
    assert_eq!(check(EXAMPLE, &[], &[]).expect("good"), Config::default());
    let uncommented: String =
        EXAMPLE.lines().map(|line| format!("{}\n", line.strip_prefix("#= ").unwrap_or(line))).collect();
    let example: toml::Table = uncommented.parse().expect("with its optional keys it is TOML too");
    // A draft model is only accepted where it is used.
    let draft = [("--speculation", "scheduler.speculation", "draft")];
    check(&uncommented, &[], &draft).expect("and a configuration");

    let mut full = Config::default();
    full.model.id = Some(String::new());
    full.model.tokenizer = Some(PathBuf::new());
    full.engine.llama.gpu_layers = Some(0);
    full.engine.wgsl.sample_on_device = Some(false);
    full.scheduler.draft_model = Some(String::new());
    full.generation.max_tokens = Some(1);
    full.tls = Tls { cert: Some(PathBuf::new()), key: Some(PathBuf::new()) };
    full.auth.api_keys_file = Some(PathBuf::new());
    full.classifier = vec![Classifier::default()];
    full.recording.folder = Some(PathBuf::new());
    full.adapters.folder = Some(PathBuf::new());
    let full: toml::Table = full.to_toml().parse().expect("printed TOML");
    assert_eq!(keys("", &example), keys("", &full));
}

fn keys(prefix: &str, table: &toml::Table) -> std::collections::BTreeSet<String> {
    table.iter().fold(Default::default(), |mut all: std::collections::BTreeSet<String>, (name, value)| {
        match value {
            toml::Value::Table(inner) => all.extend(keys(&format!("{prefix}{name}."), inner)),
            _ => all.extend([format!("{prefix}{name}")]),
        }
        all
    })
}
