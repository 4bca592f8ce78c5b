//! How fast a model's tokenizer is on a text file:
//! `cargo run --release -p quern-text --example encode_speed -- MODEL TEXT`.

use quern_engine::draw::mask_words;
use quern_gguf::Gguf;
use quern_text::{ConstraintFactory, Grammar, Special, Tokenizer};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(text)) = (arguments.next(), arguments.next()) else {
        return Err("usage: encode_speed MODEL TEXT".into());
    };
    let text = std::fs::read_to_string(text)?;
    let gguf = Gguf::open(Path::new(&model))?;
    let start = Instant::now();
    let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf)?);
    println!("built in {:.0?}", start.elapsed());
    for _ in 0..3 {
        let start = Instant::now();
        let tokens = tokenizer.encode(&text, Special::Parse)?;
        let seconds = start.elapsed().as_secs_f64();
        let megabytes = text.len() as f64 / 1e6;
        println!("{megabytes:.2} MB, {} tokens: {:.1} MB/s", tokens.len(), megabytes / seconds);
    }
    let start = Instant::now();
    let factory = ConstraintFactory::new(Arc::clone(&tokenizer))?;
    println!("constraints ready in {:.0?}", start.elapsed());
    let mut constraint = factory.compile(&Grammar::JsonObject)?;
    let answer =
        tokenizer.encode("{\"name\": \"some longer text to read\", \"x\": [1, 2]}", Special::AsText)?;
    let mut mask = vec![0; mask_words(tokenizer.vocab_size())];
    let start = Instant::now();
    for token in &answer {
        constraint.mask(&mut mask)?;
        constraint.accept(*token)?;
    }
    println!("mask and accept: {:.0?} a token", start.elapsed() / answer.len() as u32);
    Ok(())
}
