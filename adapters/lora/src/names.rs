//! The names of modules: Hugging Face's, PEFT's around them, and GGUF's.

/// A module of the base that an adapter may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    /// The layer; none for the LM head.
    pub layer_idx: Option<u32>,
    /// The position in [`TARGETS`]; its length for the LM head.
    target_idx: usize,
}

/// Hugging Face's name within a layer, GGUF's name within a layer.
const TARGETS: &[(&str, &str)] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// More layers than any model has.
const MAX_LAYERS: u32 = 4096;

impl Place {
    /// Finds the place of a module that is named as in `model.layers.0.self_attn.q_proj`.
    pub fn of_module(module: &str) -> Option<Place> {
        if module == "lm_head" {
            return Some(Place { layer_idx: None, target_idx: TARGETS.len() });
        }
        let rest = module.strip_prefix("model.").unwrap_or(module).strip_prefix("layers.")?;
        let (layer, name) = rest.split_once('.')?;
        let target_idx = TARGETS.iter().position(|(theirs, _)| *theirs == name)?;
        Some(Place { layer_idx: Some(layer_number(layer)?), target_idx })
    }

    /// Finds the place of a tensor of a GGUF model, as in `blk.0.attn_q.weight`.
    pub fn of_gguf(tensor: &str) -> Option<Place> {
        if tensor == "output.weight" {
            return Some(Place { layer_idx: None, target_idx: TARGETS.len() });
        }
        let (layer, name) = tensor.strip_prefix("blk.")?.strip_suffix(".weight")?.split_once('.')?;
        let target_idx = TARGETS.iter().position(|(_, ours)| *ours == name)?;
        Some(Place { layer_idx: Some(layer_number(layer)?), target_idx })
    }

    /// The name of the base's tensor in a GGUF file.
    pub fn gguf(self) -> String {
        match (self.layer_idx, TARGETS.get(self.target_idx)) {
            (Some(layer_idx), Some((_, ours))) => format!("blk.{layer_idx}.{ours}.weight"),
            _ => "output.weight".into(),
        }
    }

    /// What PEFT calls the target: `q_proj`.
    pub fn target(self) -> &'static str {
        let theirs = TARGETS.get(self.target_idx).map_or("lm_head", |(theirs, _)| theirs);
        theirs.rsplit_once('.').map_or(theirs, |(_, last)| last)
    }
}

/// A layer's number without signs or leading zeros, so that every place has one name.
fn layer_number(text: &str) -> Option<u32> {
    let plain = text == "0" || !text.starts_with('0');
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| plain && digits && *number < MAX_LAYERS)
}

/// The layer in the name of a GGUF tensor.
pub(crate) fn layer_of(tensor: &str) -> Option<u32> {
    layer_number(tensor.strip_prefix("blk.")?.split_once('.')?.0)
}

/// What a tensor of a PEFT file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeftName {
    /// The A matrix of a module.
    A(String),
    /// The B matrix of a module.
    B(String),
    /// The head's matrix.
    Head,
    /// The head's bias.
    HeadBias,
    /// A part of DoRA.
    Magnitude,
    /// A bias of a B matrix or of a module.
    Bias,
    /// A and B of an embedding.
    Embedding,
    /// A module that is stored whole.
    Whole(String),
    /// None of these.
    Unknown,
}

/// Says what a tensor of a PEFT file is.
pub(crate) fn peft_name(tensor: &str) -> PeftName {
    let Some(name) = tensor.strip_prefix("base_model.model.") else { return PeftName::Unknown };
    // The adapter's own name stands in the middle where a state dict was saved by hand.
    for (a, b) in [(".lora_A.weight", ".lora_B.weight"), (".lora_A.default.weight", ".lora_B.default.weight")]
    {
        if let Some(module) = name.strip_suffix(a) {
            return PeftName::A(module.into());
        }
        if let Some(module) = name.strip_suffix(b) {
            return PeftName::B(module.into());
        }
    }
    if name.contains(".lora_magnitude_vector") {
        return PeftName::Magnitude;
    }
    if name.contains(".lora_embedding_") {
        return PeftName::Embedding;
    }
    let plain = name.replace(".modules_to_save.default", "").replace(".modules_to_save", "");
    match plain.as_str() {
        "score.weight" | "classifier.weight" => PeftName::Head,
        "score.bias" | "classifier.bias" => PeftName::HeadBias,
        _ if name.ends_with(".bias") => PeftName::Bias,
        _ => match plain.strip_suffix(".weight") {
            Some(module) if !name.contains(".lora_") => PeftName::Whole(module.into()),
            _ => PeftName::Unknown,
        },
    }
}

/// The name that a model's tensor has in a GGUF file, for Qwen2, 2.5 and 3.
pub(crate) fn gguf_of_hf(tensor: &str) -> Option<String> {
    let top = match tensor {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(name) = top {
        return Some(name.into());
    }
    let (layer, name) = tensor.strip_prefix("model.layers.")?.split_once('.')?;
    let layer_idx = layer_number(layer)?;
    let (module, part) = name.rsplit_once('.')?;
    let ours = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        _ => TARGETS.iter().find(|(theirs, _)| *theirs == module)?.1,
    };
    matches!(part, "weight" | "bias").then(|| format!("blk.{layer_idx}.{ours}.{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_one_name_each() {
        let place = Place::of_module("model.layers.12.mlp.down_proj").unwrap();
        assert_eq!((place.gguf().as_str(), place.target()), ("blk.12.ffn_down.weight", "down_proj"));
        assert_eq!(Place::of_gguf("blk.12.ffn_down.weight"), Some(place));
        assert_eq!(Place::of_module("lm_head").unwrap().gguf(), "output.weight");
        for bad in
            ["model.layers.012.mlp.down_proj", "model.layers.+1.mlp.up_proj", "layers.9999999.mlp.up_proj"]
        {
            assert_eq!(Place::of_module(bad), None, "{bad}");
        }
        assert_eq!(Place::of_module("model.embed_tokens"), None);
        assert_eq!(Place::of_gguf("blk.1.attn_norm.weight"), None);
    }

    #[test]
    fn every_part_of_peft_is_told_apart() {
        let name = |tail: &str| peft_name(&format!("base_model.model.{tail}"));
        assert_eq!(
            name("model.layers.0.mlp.up_proj.lora_A.weight"),
            PeftName::A("model.layers.0.mlp.up_proj".into())
        );
        assert_eq!(name("x.lora_B.default.weight"), PeftName::B("x".into()));
        assert_eq!(name("score.weight"), PeftName::Head);
        assert_eq!(name("score.modules_to_save.default.weight"), PeftName::Head);
        assert_eq!(name("x.lora_magnitude_vector"), PeftName::Magnitude);
        assert_eq!(name("x.lora_B.bias"), PeftName::Bias);
        assert_eq!(name("model.embed_tokens.lora_embedding_A"), PeftName::Embedding);
        assert_eq!(name("model.embed_tokens.weight"), PeftName::Whole("model.embed_tokens".into()));
        assert_eq!(peft_name("model.x.lora_A.weight"), PeftName::Unknown);
    }

    #[test]
    fn a_model_s_tensors_get_gguf_s_names() {
        let cases = [
            ("model.layers.3.self_attn.q_proj.bias", "blk.3.attn_q.bias"),
            ("model.layers.3.self_attn.k_norm.weight", "blk.3.attn_k_norm.weight"),
            ("model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight"),
            ("model.norm.weight", "output_norm.weight"),
        ];
        for (theirs, ours) in cases {
            assert_eq!(gguf_of_hf(theirs).as_deref(), Some(ours));
        }
        assert_eq!(gguf_of_hf("model.layers.3.mlp.experts.0.up_proj.weight"), None);
    }
}
