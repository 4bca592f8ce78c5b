//! `/v1/embeddings` and `/v1/models`.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::golden;
use crate::support::{MODEL, server};

const PATH: &str = "/v1/embeddings";

fn vector(body: &Value, index: usize) -> Vec<f32> {
    let numbers = body["data"][index]["embedding"].as_array().unwrap();
    numbers.iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

#[tokio::test]
async fn vectors_have_length_one_and_come_in_order() {
    let server = server().await;
    let body = server.post(PATH, &json!({"model": MODEL, "input": ["one", "two", "one"]})).await.ok();
    let vectors: Vec<Vec<f32>> = (0..3).map(|index| vector(&body, index)).collect();
    assert_eq!(vectors[0], vectors[2]);
    assert_ne!(vectors[0], vectors[1]);
    for vector in &vectors {
        assert_eq!(vector.len(), server.engine.capabilities.hidden_size);
        let square: f32 = vector.iter().map(|x| x * x).sum();
        assert!((square - 1.0).abs() < 1e-5, "{square}");
    }
    golden::check("embeddings", &body);
}

#[tokio::test]
async fn pooling_can_be_chosen() {
    let server = server().await;
    let ask = |pooling: &str| json!({"model": MODEL, "input": "one two three", "pooling": pooling});
    let last = server.post(PATH, &ask("last")).await.ok();
    let mean = server.post(PATH, &ask("mean")).await.ok();
    assert_ne!(vector(&last, 0), vector(&mean, 0));
    let default = server.post(PATH, &json!({"model": MODEL, "input": "one two three"})).await.ok();
    assert_eq!(vector(&default, 0), vector(&last, 0));
    server.post(PATH, &ask("max")).await.error(400, Some("pooling"), None);
}

#[tokio::test]
async fn base64_holds_the_same_numbers() {
    let server = server().await;
    let floats = server.post(PATH, &json!({"model": MODEL, "input": "one"})).await.ok();
    let ask = json!({"model": MODEL, "input": "one", "encoding_format": "base64", "dimensions": 16});
    let packed = server.post(PATH, &ask).await.ok();
    let text = packed["data"][0]["embedding"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let unpacked: Vec<f32> =
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(unpacked, vector(&floats, 0));
}

#[tokio::test]
async fn what_cannot_be_embedded_is_named() {
    let server = server().await;
    let ask = |more: Value| {
        let mut body = json!({"model": MODEL, "input": "one"});
        more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        body
    };
    server.post(PATH, &ask(json!({"dimensions": 8}))).await.error(400, Some("dimensions"), None);
    server.post(PATH, &ask(json!({"encoding_format": "hex"}))).await.error(
        400,
        Some("encoding_format"),
        None,
    );
    server.post(PATH, &ask(json!({"input": []}))).await.error(400, Some("input"), None);
    server.post(PATH, &ask(json!({"input": ["one", ""]}))).await.error(400, Some("input"), None);
    server.post(PATH, &ask(json!({"input": [999_999]}))).await.error(400, Some("input"), None);
    server.post(PATH, &ask(json!({"model": "other"}))).await.error(
        404,
        Some("model"),
        Some("model_not_found"),
    );
}

#[tokio::test]
async fn models_are_listed() {
    let server = server().await;
    let list = server.get(server.url("/v1/models")).await.ok();
    golden::check("models", &list);
    let one = server.get(server.url("/v1/models/tiny")).await.ok();
    assert_eq!(one, list["data"][0]);
    server.get(server.url("/v1/models/other")).await.error(404, Some("model"), Some("model_not_found"));
}
