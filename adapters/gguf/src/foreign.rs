//! A guess at what a file is that is not GGUF, so that the error can say what went wrong.

/// Says what the first bytes of a foreign file look like, as the end of a sentence.
pub(crate) fn looks_like(head: &[u8]) -> &'static str {
    const PREFIXES: &[(&[u8], &str)] = &[
        (b"PK\x03\x04", "it looks like a zip archive (a PyTorch checkpoint or a Python wheel)"),
        (b"version https://git-lfs", "it is a Git LFS pointer; the real file was never fetched"),
        (b"ggml", "it is a GGML file from before GGUF; convert the model anew"),
        (b"lmgg", "it is a GGML file from before GGUF; convert the model anew"),
        (b"fmgg", "it is a GGMF file from before GGUF; convert the model anew"),
        (b"tjgg", "it is a GGJT file from before GGUF; convert the model anew"),
        (b"\x1f\x8b", "it looks like a gzip archive"),
        (b"\x28\xb5\x2f\xfd", "it looks like a zstd archive"),
        (b"7z\xbc\xaf\x27\x1c", "it looks like a 7z archive"),
        (b"\x7fELF", "it looks like a program"),
        (b"\x80\x02", "it looks like a Python pickle"),
        (b"\x89HDF", "it looks like an HDF5 file"),
        (b"{", "it looks like JSON"),
    ];
    if head.is_empty() {
        return "it is empty";
    }
    if let Some((_, guess)) = PREFIXES.iter().find(|(prefix, _)| head.starts_with(prefix)) {
        return guess;
    }
    // A safetensors file begins with the length of its JSON header and then that header.
    if head.len() > 8 && head[8] == b'{' && head[4..8] == [0; 4] {
        return "it looks like a safetensors file";
    }
    let text = head.trim_ascii_start().to_ascii_lowercase();
    if text.starts_with(b"<!doctype") || text.starts_with(b"<html") || text.starts_with(b"<?xml") {
        return "it looks like a web page (an error page saved in place of the model?)";
    }
    if head.iter().all(|&byte| byte == 0) {
        return "it begins with zero bytes (a download that never got its data?)";
    }
    "its first bytes are unknown"
}
