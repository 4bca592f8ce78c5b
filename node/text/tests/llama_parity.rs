//! Our tokens against llama.cpp's own, for the default model and for a tiny
//! random one: a corpus of hard texts, and some thousands of random ones.

mod common;

use llama_cpp_2::llama_backend::{LlamaBackend, load_backends};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use quern_gguf::Gguf;
use quern_gguf::tiny::{Arch, TinySpec, write};
use quern_text::{Special, TokenId, Tokenizer};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::path::Path;
use std::sync::LazyLock;

static BACKEND: LazyLock<LlamaBackend> = LazyLock::new(|| {
    load_backends();
    LlamaBackend::init().expect("llama.cpp starts once a process")
});

struct Pair {
    reference: LlamaModel,
    tokenizer: Tokenizer,
}

impl Pair {
    fn open(path: &Path) -> Self {
        let params = LlamaModelParams::default().with_vocab_only(true);
        let gguf = Gguf::open(path).expect("the model is a GGUF");
        Self {
            reference: LlamaModel::load_from_file(&BACKEND, path, &params).expect("it loads"),
            tokenizer: Tokenizer::from_gguf(&gguf).expect("the model has a tokenizer"),
        }
    }

    fn check(&self, text: &str) {
        for (special, parse) in [(Special::Parse, true), (Special::AsText, false)] {
            let reference = self.reference.vocab().tokenize(text.as_bytes(), false, parse);
            let wanted: Vec<TokenId> = reference.iter().map(|token| token.0 as TokenId).collect();
            let got = self.tokenizer.encode(text, special).expect("any text has tokens");
            assert_eq!(got, wanted, "{special:?} of {text:?}");
            assert_eq!(self.tokenizer.decode(&got, false), text);
        }
    }

    /// The same tokens end an answer, are special, and stand for the same bytes.
    fn check_vocabulary(&self) {
        let vocab = self.reference.vocab();
        let num_tokens = vocab.n_tokens() as usize;
        assert_eq!(self.tokenizer.vocab_size(), num_tokens);
        let tokens = 0..num_tokens as TokenId;
        let ends = tokens.clone().filter(|token| vocab.is_eog(LlamaToken(*token as i32)));
        assert_eq!(self.tokenizer.eos_tokens(), ends.collect::<Vec<_>>());
        for (token, bytes) in self.reference.tokens(true) {
            let id = token.0 as TokenId;
            assert_eq!(self.tokenizer.token_bytes(id), bytes, "token {id}");
            assert_eq!(self.tokenizer.is_special(id), vocab.is_control(token), "token {id}");
        }
        assert_eq!(self.tokenizer.adds_bos(), vocab.should_add_bos());
    }

    fn check_all(&self, num_random: u64) {
        self.check_vocabulary();
        for text in CORPUS {
            self.check(text);
        }
        for run in [" ", "\t", "\n", "\r\n", "a", "é", "0", "'", "  \n", "字", "<|im_end|>", "<"] {
            for times in [2, 3, 17, 1_000] {
                self.check(&run.repeat(times));
                self.check(&format!("x{}y", run.repeat(times)));
            }
        }
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for _ in 0..num_random {
            self.check(&random_text(&mut rng));
        }
    }

    /// Every assigned plane's characters, each between letters, between blanks and
    /// after a digit, which shows its class to either side.
    fn check_all_characters(&self) {
        let assigned = (1..=0x3_3FFF).chain(0xE_0000..=0xE_0FFF);
        let characters: Vec<char> = assigned.filter_map(char::from_u32).collect();
        for characters in characters.chunks(500) {
            let text: String = characters.iter().map(|c| format!("a{c}b {c}1{c}!\n")).collect();
            self.check(&text);
        }
    }
}

const CORPUS: &[&str] = &[
    "",
    " ",
    "Hello, world! It's 12:30; we'LL see, don'T we?",
    "fn main() {\n    let x = vec![1, 2, 3];\n\tprintln!(\"{x:?}\");\n}\n",
    "def f(a, *, b=None):\r\n    \"\"\"Doc.\"\"\"\r\n    return a @ b if b else {k: v for k, v in a}\r\n",
    "#include <stdio.h>\nint main(void) { return 0x1F << 2; }  // ¯\\_(ツ)_/¯\n",
    "SELECT * FROM \"t\" WHERE a >= 1e-9 AND b IN ('x','y');--",
    "ÀÉÎõü ß ſ ǆ Ǆ ﬁ Ω Å Å e\u{301} \u{301}\u{302}",
    "Привет, мир! Ελληνικά κείμενο. שלום עולם ‏مرحبا بالعالم١٢٣",
    "你好，世界。東京都は日本の首都です。안녕하세요 세계 ㄱㄴㄷ",
    "नमस्ते दुनिया १२३ বাংলা தமிழ் ไทยภาษา ລາວ မြန်မာ ខ្មែរ ქართული Հայերեն አማርኛ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ❤️ 1️⃣ 😀😃😄",
    "<|im_start|>system\nYou are<|im_end|>\n<|im_start|>user\n<tool_call></tool_call><|endoftext|>",
    "<|im_start|<|im_start|>|> <|im_end <|fim_prefix|>a<|fim_suffix|>b<|fim_middle|><|fim_pad|>",
    "<|repo_name|>x<|file_sep|>y<|vision_start|><|image_pad|><|vision_end|>",
    "a\u{0}b\u{1}\u{7f}\u{80}\u{9f}\u{a0}\u{85}c\u{2028}d\u{2029}\u{3000}e\u{200b}f\u{feff}g",
    "\u{fffd}\u{fffe}\u{10ffff}\u{e000}\u{100000}",
    "½ ¼ Ⅷ ① ² ٣ 𝟘 𝐀𝐁 ᚠᛇ 𓀀 🜁",
    "   leading, trailing   \n\n\n   \n\t\t\nx  \r\r\n\n ",
    "'s 'S 't 'RE 've 'm 'LL 'd 'x ''s '\u{17f} 'ſ I'm",
    "ĠĊ Ġhello ĉ",
];

/// Pieces that meet each other in ways that matter to a tokenizer.
const PIECES: &[&str] = &[
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "a",
    "The",
    "ing",
    "é",
    "e\u{301}",
    "字",
    "ひ",
    "ß",
    "7",
    "42",
    "٣",
    "'",
    "'s",
    "'LL",
    "!",
    "...",
    "_",
    "{",
    "\"",
    "\u{a0}",
    "\u{3000}",
    "\u{200d}",
    "😀",
    "👍🏽",
    "<|im_start|>",
    "<|im_end|>",
    "<|",
    "|>",
    "<tool_call>",
    "</tool_call>",
    "<|endoftext|>",
    "\u{0}",
    "Ⅷ",
    "Ⓐ",
    "\u{345}",
];

fn random_text(rng: &mut ChaCha8Rng) -> String {
    let len = rng.next_u32() as usize % 40;
    match rng.next_u32() % 3 {
        0 => (0..len).map(|_| PIECES[rng.next_u32() as usize % PIECES.len()]).collect(),
        1 => {
            let bytes: Vec<u8> = (0..len).map(|_| rng.next_u32() as u8).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => (0..len).filter_map(|_| char::from_u32(1 + rng.next_u32() % 0x3_3000)).collect(),
    }
}

#[test]
fn the_default_model_has_the_same_tokens() {
    if let Some(path) = common::real_model() {
        let pair = Pair::open(&path);
        pair.check_all(4_000);
        pair.check_all_characters();
    }
}

#[test]
fn a_tiny_model_has_the_same_tokens() {
    let folder = tempfile::tempdir().expect("a folder for the model");
    let path = folder.path().join("tiny.gguf");
    write(&path, &TinySpec::new(Arch::Qwen2, 1)).expect("the model is written");
    Pair::open(&path).check_all(1_000);
}
