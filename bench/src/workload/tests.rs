use super::*;

const GOOD: &str = r#"name = "probe"
max_tokens = 8

[prompts]
inline = ["one", "two"]

[load]
mode = "closed"
clients = [1, 8]
requests_per_client = 4

[check]
non_empty = true
"#;

fn error_of(text: &str) -> String {
    Workload::parse("probe.toml", text, None).unwrap_err().to_string()
}

#[test]
fn a_good_workload_is_read() {
    let workload = Workload::parse("probe.toml", GOOD, None).unwrap();
    assert_eq!(workload.load, Load::Closed { clients: vec![1, 8], amount: Amount::RequestsPerClient(4) });
    assert!(workload.check.non_empty);
    let prompts = workload.read_prompts(&workload.prompts).unwrap();
    assert_eq!(prompts.get(0, 3).user, "two");
}

#[test]
fn only_a_classification_has_several_texts() {
    let workload = |more: &str| format!("{more}{GOOD}");
    let many = Workload::parse("probe.toml", &workload("api = \"classify\"\ntexts = 32\n"), None).unwrap();
    assert_eq!((many.api, many.texts), (Api::Classify, 32));
    assert_eq!(Workload::parse("probe.toml", GOOD, None).unwrap().texts, 1);
    let error = error_of(&workload("texts = 2\n"));
    assert!(error.contains("line 1, key \"texts\""), "{error}");
    assert!(error_of(&workload("api = \"classify\"\ntexts = 0\n")).contains("line 2, key \"texts\""));
}

#[test]
fn syntax_errors_name_line_and_key() {
    let unknown = error_of(&GOOD.replace("non_empty = true", "non_emtpy = true"));
    assert!(unknown.contains("line 13") && unknown.contains("non_emtpy"), "{unknown}");
    let wrong_type = error_of(&GOOD.replace("max_tokens = 8", "max_tokens = \"8\""));
    assert!(wrong_type.contains("line 2") && wrong_type.contains("max_tokens"), "{wrong_type}");
    let wrong_mode = error_of(&GOOD.replace("\"closed\"", "\"shut\""));
    assert!(wrong_mode.contains("line 8") && wrong_mode.contains("mode"), "{wrong_mode}");
    let no_length = error_of(&GOOD.replace("max_tokens = 8", "max_tokens = 0"));
    assert!(no_length.contains("line 2") && no_length.contains("max_tokens"), "{no_length}");
    let no_key = error_of(&GOOD.replace("name = \"probe\"", ""));
    assert!(no_key.contains("missing field `name`"), "{no_key}");
}

#[test]
fn value_errors_name_line_and_key() {
    let cases = [
        ("clients = [1, 8]", "clients = []", "line 9, key \"load.clients\""),
        ("clients = [1, 8]", "clients = [0]", "line 9, key \"load.clients\""),
        ("clients = [1, 8]", "", "line 7, key \"load.clients\": is missing"),
        ("requests_per_client = 4", "requests_per_client = 0", "line 10, key \"load.requests_per_client\""),
        ("requests_per_client = 4", "duration_s = -1.0", "line 10, key \"load.duration_s\""),
        ("requests_per_client = 4", "requests = 4\nduration_s = 1.0", "line 10, key \"load.requests\""),
        ("name = \"probe\"", "name = \"a/b\"", "line 1, key \"name\""),
        ("inline = [\"one\", \"two\"]", "inline = []", "line 5, key \"prompts.inline\""),
        ("inline = [\"one\", \"two\"]", "", "line 4, key \"prompts.inline\""),
        (
            "requests_per_client = 4",
            "requests = 4\nrates = [1.0]",
            "line 11, key \"load.rates\": means nothing",
        ),
        ("[check]", "[body]\nstream = false\n[check]", "line 13, key \"body.stream\""),
        ("[check]", "[objective]\nshare = 0.5\n[check]", "line 12, key \"objective.ttft_ms\""),
        ("[check]", "[objective]\nttft_ms = -1\n[check]", "line 13, key \"objective.ttft_ms\""),
        ("[check]", "[[tenants]]\nname = \"\"\n[check]", "line 12, key \"tenants.name\""),
        ("non_empty = true", "max_error_share = 2.0", "line 13, key \"check.max_error_share\""),
    ];
    for (from, to, expected) in cases {
        let error = error_of(&GOOD.replace(from, to));
        assert!(error.contains(expected), "{to:?} gave {error}");
    }
}

#[test]
fn a_ramp_needs_an_objective_and_rates_that_rise() {
    let of = |load: &str, more: &str| {
        let closed = "mode = \"closed\"\nclients = [1, 8]\nrequests_per_client = 4";
        Workload::parse("probe.toml", &(GOOD.replace(closed, load) + more), None)
            .map_err(|error| error.to_string())
    };
    let ramp = "mode = \"ramp\"\narrivals = \"poisson\"\nstart_rate = 1.0\nmax_rate = 4\nduration_s = 10";
    let objective = "\n[objective]\nttft_ms = 500\n";
    assert!(matches!(of(ramp, objective).unwrap().load, Load::Ramp { .. }));
    assert!(of(ramp, "").unwrap_err().contains("line 8, key \"load.mode\": a ramp rises until"));
    let falling = of(&ramp.replace("max_rate = 4", "max_rate = 0.5"), objective).unwrap_err();
    assert!(falling.contains("line 11, key \"load.max_rate\""), "{falling}");
    let still = of(&format!("{ramp}\nfactor = 1.0"), objective).unwrap_err();
    assert!(still.contains("line 13, key \"load.factor\""), "{still}");
}

#[test]
fn requests_are_spread_over_models_and_mistakes_name_their_line() {
    let text = format!("{GOOD}\n[models]\nnames = [\"a-{{n}}\"]\ncount = 8\nzipf = 1.0\n");
    let models = Workload::parse("probe.toml", &text, None).unwrap().models.unwrap();
    assert_eq!(models.all().len(), 8);
    let text = text.replace("zipf = 1.0", "zipf = -1.0");
    let error = Workload::parse("probe.toml", &text, None).unwrap_err().to_string();
    assert!(error.contains("models.zipf") && error.contains("line"), "{error}");
}

#[test]
fn deadlines_scatter_and_are_the_same_for_a_seed() {
    let text = format!("{GOOD}\n[deadline]\nheader = \"X-Deadline\"\nms = [1000, 3000]\n");
    let deadline = Workload::parse("probe.toml", &text, None).unwrap().deadline.unwrap();
    let all: Vec<u32> = (0..1000).map(|idx| deadline.ms_of(7, idx)).collect();
    assert_eq!(all, (0..1000).map(|idx| deadline.ms_of(7, idx)).collect::<Vec<_>>());
    assert!(all.iter().all(|ms| (1000..=3000).contains(ms)));
    let mean = all.iter().sum::<u32>() / 1000;
    assert!((1900..2100).contains(&mean), "{mean}");
    assert!(error_of(&text.replace("[1000, 3000]", "[0, 3]")).contains("line 17, key \"deadline.ms\""));
}

#[test]
fn every_built_in_workload_can_be_used() {
    for name in builtin_names() {
        let workload = Workload::find(name).unwrap();
        assert_eq!(workload.name, name);
        for part in ["What it asks:", "What a good answer looks like:"] {
            assert!(workload.about.contains(part), "{name} does not say {part}");
        }
        let prompts = workload.read_prompts(&workload.prompts).unwrap();
        assert!(!prompts.get(1, 0).user.trim().is_empty());
        let trace = workload.read_trace().unwrap();
        assert_eq!(trace.is_some(), matches!(workload.load, Load::Trace { .. }));
        if let Load::LongPrompt { prompts, .. } = &workload.load {
            let long = workload.read_prompts(prompts).unwrap();
            assert_ne!(long.get(1, 0).user[..12], long.get(1, 1).user[..12], "caches would help");
        }
    }
}

#[test]
fn an_unknown_name_lists_the_known_ones() {
    let error = Workload::find("chta").unwrap_err().to_string();
    assert!(error.contains("chta") && error.contains("intents"), "{error}");
}
