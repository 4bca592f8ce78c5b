//! Merging and pruning compute what they say, and files are whole or not there.
#![allow(clippy::unwrap_used, reason = "a test may panic, helpers included")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Folder, product};
use quern_adapters::{
    Adapter, FileType, Head, Merge, Part, PipelineError, Plain, Prune, Scope, Source, Summary, Types,
    Unchanged, open_source, rewrite,
};
use quern_gguf::tiny::{Arch, TinySpec};
use quern_gguf::{Gguf, TensorType};

/// A tensor's numbers in f32.
fn values(gguf: &Gguf, name: &str) -> Vec<f32> {
    let tensor = gguf.require_tensor(name).unwrap();
    let mut out = vec![0.0; tensor.num_elements() as usize];
    quern_adapters::Codec::decode(&Plain, tensor.kind, &gguf.read_tensor(tensor).unwrap(), &mut out).unwrap();
    out
}

fn part(folder: &Folder, path: &Path, weight: f32) -> Part {
    Part { adapter: Adapter::open(&folder.write(path)).unwrap(), weight }
}

fn merge(
    base: &dyn Source,
    parts: Vec<Part>,
    file_type: FileType,
    out: &Path,
) -> Result<Summary, PipelineError> {
    let mut change = Merge::new(base, parts, true)?;
    rewrite(base, &mut change, Types::Of(file_type, None), &Plain, out, &mut |_| {})
}

#[test]
fn merging_adds_the_product() {
    let dir = tempfile::tempdir().unwrap();
    let base = open_source(&common::base(dir.path())).unwrap();
    let before = Gguf::open(base.path()).unwrap();
    let out = dir.path().join("merged.gguf");
    let mut second = Folder::sound();
    second.config["lora_alpha"] = 20.into();
    second.tensors.values_mut().for_each(|(_, values)| values.reverse());
    let parts = vec![
        part(&Folder::classifier(), &dir.path().join("first"), 1.0),
        part(&second, &dir.path().join("second"), -0.25),
    ];
    let wanted: Vec<(String, Vec<f64>)> = parts[0]
        .adapter
        .modules
        .iter()
        .map(|module| {
            let mut sum: Vec<f64> = values(&before, &module.tensor).into_iter().map(f64::from).collect();
            for part in &parts {
                let own = part.adapter.module(&module.tensor).unwrap();
                let (a, b) = (part.adapter.a(own).unwrap(), part.adapter.b(own).unwrap());
                let scale = own.scale * f64::from(part.weight);
                sum.iter_mut().zip(product(&a, &b, own.rank as usize, scale)).for_each(|(s, p)| *s += p);
            }
            (module.tensor.clone(), sum)
        })
        .collect();
    let head = parts[0].adapter.head.clone();
    let mut last = (0, 0);
    let mut change = Merge::new(base.as_ref(), parts, true).unwrap();
    let types = Types::Of(FileType::F32, None);
    let summary = rewrite(base.as_ref(), &mut change, types, &Plain, &out, &mut |progress| {
        last = (progress.done, progress.total);
    });
    assert_eq!(summary.unwrap().num_encoded, 4);
    assert!(last.0 == last.1 && last.1 > 0);

    let after = quern_gguf::check(&out).unwrap();
    for (tensor, wanted) in &wanted {
        let found = values(&after, tensor);
        let worst = wanted.iter().zip(&found).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
        assert!(worst < 2e-6, "{tensor}: {worst}");
        assert_ne!(values(&before, tensor), found);
    }
    // All else is as it was, and the head came along.
    for tensor in before.tensors().iter().filter(|t| !wanted.iter().any(|(name, _)| *name == t.name)) {
        assert_eq!(
            before.read_tensor(tensor).unwrap(),
            after.read_tensor(after.tensor(&tensor.name).unwrap()).unwrap()
        );
    }
    assert_eq!(Head::from_metadata(after.metadata()).unwrap(), head);
    assert_eq!(after.strings("quern.merged").unwrap(), ["first=1", "second=-0.25"]);
    assert_eq!(
        after.strings("tokenizer.ggml.tokens").unwrap(),
        before.strings("tokenizer.ggml.tokens").unwrap()
    );
}

#[test]
fn merging_refuses_what_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let base = open_source(&common::base(dir.path())).unwrap();
    let out = dir.path().join("out.gguf");
    let told = |parts| merge(base.as_ref(), parts, FileType::F32, &out).unwrap_err().to_string();
    let two = ["a", "b"].map(|name| part(&Folder::classifier(), &dir.path().join(name), 1.0));
    assert!(told(two.into()).contains("both have a classification head"));
    let mut wide = Folder::sound();
    wide.pair("model.layers.0.self_attn.q_proj", 4, 128, 64);
    assert!(told(vec![part(&wide, &dir.path().join("c"), 1.0)]).contains("q_proj maps 128 numbers to 64"));
    assert!(told(vec![part(&Folder::sound(), &dir.path().join("d"), f32::NAN)]).contains("no number"));
    let large = vec![part(&Folder::sound(), &dir.path().join("e"), 1e30)];
    assert!(
        merge(base.as_ref(), large, FileType::F16, &out)
            .unwrap_err()
            .to_string()
            .contains("too large for F16")
    );
    let block = merge(base.as_ref(), vec![], FileType::Q4_K_M, &out).unwrap_err().to_string();
    assert!(block.contains("cannot be stored as"), "{block}");
    assert!(!out.exists());
    assert!(
        fs::read_dir(dir.path()).unwrap().all(|e| !e
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("partial"))
    );
}

#[test]
fn an_adapter_of_a_quantised_base_merges_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.gguf");
    let tiny = TinySpec { hidden: 64, ffn: 96, kind: TensorType::Q5_0, ..TinySpec::new(Arch::Qwen2, 3) };
    quern_gguf::tiny::write(&path, &tiny).unwrap();
    let base = open_source(&path).unwrap();
    let out = dir.path().join("out.gguf");
    let parts = vec![part(&Folder::sound(), &dir.path().join("a"), 1.0)];
    let summary = merge(base.as_ref(), parts, FileType::F32, &out).unwrap();
    assert!(summary.num_encoded > 4 && summary.num_requantised == 0);
    let (before, after) = (Gguf::open(&path).unwrap(), Gguf::open(&out).unwrap());
    let adapter = Adapter::open(&dir.path().join("a")).unwrap();
    let module = &adapter.modules[0];
    let added = product(&adapter.a(module).unwrap(), &adapter.b(module).unwrap(), 4, 2.0);
    let (old, new) = (values(&before, &module.tensor), values(&after, &module.tensor));
    assert!(
        old.iter().zip(&new).zip(&added).all(|((old, new), add)| (f64::from(new - old) - add).abs() < 2e-6)
    );
    assert_eq!(values(&before, "blk.1.ffn_up.weight"), values(&after, "blk.1.ffn_up.weight"));
}

/// The layers' matrices, whose weights may be pruned.
fn matrices(gguf: &Gguf) -> Vec<String> {
    let prunable = gguf.tensors().iter().filter(|t| t.name.starts_with("blk.") && t.shape.len() > 1);
    prunable.map(|tensor| tensor.name.clone()).collect()
}

fn prune(base: &Path, fraction: f64, scope: Scope, out: &Path) -> Gguf {
    let source = open_source(base).unwrap();
    let mut change = Prune::plan(source.as_ref(), fraction, scope, &Plain, &mut |_, _| {}).unwrap();
    rewrite(source.as_ref(), &mut change, Types::Kept, &Plain, out, &mut |_| {}).unwrap();
    Gguf::open(out).unwrap()
}

#[test]
fn pruning_zeroes_exactly_the_smallest() {
    let dir = tempfile::tempdir().unwrap();
    let base = common::base(dir.path());
    let before = Gguf::open(&base).unwrap();
    for scope in [Scope::Global, Scope::Layer, Scope::Tensor] {
        let after = prune(&base, 0.3, scope, &dir.path().join("out.gguf"));
        let group = |name: &str| match scope {
            Scope::Global => String::new(),
            Scope::Layer => name.split('.').nth(1).unwrap().to_owned(),
            Scope::Tensor => name.to_owned(),
        };
        let mut groups = std::collections::BTreeMap::<String, (Vec<f32>, Vec<f32>)>::new();
        for name in matrices(&before) {
            let (kept, cut) = groups.entry(group(&name)).or_default();
            for (old, new) in values(&before, &name).into_iter().zip(values(&after, &name)) {
                assert!(new == old || new == 0.0);
                if new == 0.0 { cut.push(old.abs()) } else { kept.push(old.abs()) }
            }
        }
        for (kept, cut) in groups.values() {
            assert_eq!(cut.len(), ((kept.len() + cut.len()) as f64 * 0.3).round() as usize);
            let largest = cut.iter().copied().fold(0.0, f32::max);
            assert!(kept.iter().all(|weight| *weight >= largest));
        }
        for name in ["token_embd.weight", "output.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.bias"] {
            assert_eq!(values(&before, name), values(&after, name));
        }
    }
}

#[test]
fn pruning_is_exact_where_magnitudes_are_equal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.gguf");
    let tiny = TinySpec { hidden: 64, ffn: 96, kind: TensorType::Q8_0, ..TinySpec::new(Arch::Qwen2, 3) };
    quern_gguf::tiny::write(&path, &tiny).unwrap();
    let after = prune(&path, 0.5, Scope::Tensor, &dir.path().join("out.gguf"));
    for name in matrices(&after) {
        let weights = values(&after, &name);
        let zeros = weights.iter().filter(|weight| **weight == 0.0).count();
        assert!(zeros >= weights.len() / 2, "{name}: {zeros}");
    }
    let source = open_source(&path).unwrap();
    for wrong in [-0.1, 1.0, f64::NAN] {
        let refused = Prune::plan(source.as_ref(), wrong, Scope::Global, &Plain, &mut |_, _| {});
        assert!(matches!(refused, Err(PipelineError::Wish(_))));
    }
}

#[test]
fn storing_anew_changes_only_types() {
    let dir = tempfile::tempdir().unwrap();
    let base = common::base(dir.path());
    let out = dir.path().join("out.gguf");
    let source = open_source(&base).unwrap();
    let types = Types::Of(FileType::Q8_0, None);
    let summary = rewrite(source.as_ref(), &mut Unchanged, types, &Plain, &out, &mut |_| {}).unwrap();
    let (before, after) = (Gguf::open(&base).unwrap(), quern_gguf::check(&out).unwrap());
    assert!(summary.bytes_after < summary.bytes_before / 3);
    assert_eq!(after.u32("general.file_type").unwrap(), 7);
    assert_eq!(after.metadata().len(), before.metadata().len());
    for tensor in before.tensors() {
        let (old, new) = (values(&before, &tensor.name), values(&after, &tensor.name));
        let is_vector = tensor.shape.len() == 1;
        assert_eq!(after.tensor(&tensor.name).unwrap().kind == TensorType::F32, is_vector, "{}", tensor.name);
        let largest = old.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let worst = old.iter().zip(&new).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(if is_vector { worst == 0.0 } else { worst < largest / 200.0 });
    }
    // Twice the same is the same.
    let again = dir.path().join("again.gguf");
    let once = open_source(&out).unwrap();
    let summary = rewrite(once.as_ref(), &mut Unchanged, types, &Plain, &again, &mut |_| {}).unwrap();
    assert_eq!(summary.num_encoded, 0);
    assert_eq!(fs::read(&out).unwrap(), fs::read(&again).unwrap());
}

#[test]
fn a_model_that_is_cut_while_it_is_read_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let base = common::base(dir.path());
    let out: PathBuf = dir.path().join("out.gguf");
    let source = open_source(&base).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&base).unwrap();
    let types = Types::Of(FileType::F16, None);
    let half = file.metadata().unwrap().len() / 2;
    let refused =
        rewrite(source.as_ref(), &mut Unchanged, types, &Plain, &out, &mut |_| file.set_len(half).unwrap());
    assert!(matches!(refused, Err(PipelineError::Gguf(_))));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
