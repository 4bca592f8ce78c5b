//! Server-sent events, as far as a completion stream needs them: bytes in, `data` fields out.
//!
//! It knows nothing of HTTP, JSON or completions. Bytes may be cut anywhere, also inside a character or
//! between the two bytes of a line end. It is stricter than a browser: a line that is neither a known field
//! nor a comment is an error, because a server that sends one is broken and a measurement must say so.

use thiserror::Error;

/// Bytes one line may have before the stream counts as broken.
const MAX_LINE_BYTES: usize = 4 << 20;

/// Why a stream is no event stream.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SseError {
    /// A line names no field that the format knows.
    #[error("a line that is no event-stream field: {line:?}")]
    UnknownField {
        /// The beginning of the line.
        line: String,
    },
    /// A line's bytes are not text.
    #[error("a line is not UTF-8")]
    NotUtf8,
    /// A line never ends.
    #[error("a line longer than {MAX_LINE_BYTES} bytes")]
    LineTooLong,
}

/// The state between two chunks of bytes.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The bytes of a line that has not ended yet.
    line: Vec<u8>,
    /// The `data` lines of an event that has not ended yet.
    data: Option<String>,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_cr: bool,
    /// The first line was seen, so that a byte order mark is no longer skipped.
    started: bool,
}

impl SseParser {
    /// A parser at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a chunk and appends the data of each event that it completes to `events`.
    ///
    /// # Errors
    /// When the bytes are no event stream. The parser must not be used any more then.
    pub fn feed(&mut self, chunk: &[u8], events: &mut Vec<String>) -> Result<(), SseError> {
        let mut rest = chunk;
        while let Some(first) = rest.first() {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.line.extend_from_slice(rest);
                break;
            };
            self.line.extend_from_slice(&rest[..end]);
            self.after_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            self.end_line(events)?;
        }
        if self.line.len() > MAX_LINE_BYTES { Err(SseError::LineTooLong) } else { Ok(()) }
    }

    fn end_line(&mut self, events: &mut Vec<String>) -> Result<(), SseError> {
        let bytes = std::mem::take(&mut self.line);
        let mut line = std::str::from_utf8(&bytes).map_err(|_| SseError::NotUtf8)?;
        if !std::mem::replace(&mut self.started, true) {
            line = line.strip_prefix('\u{feff}').unwrap_or(line);
        }
        if line.is_empty() {
            events.extend(self.data.take());
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            // An empty field name is a comment: servers send them to keep a connection open.
            "" | "event" | "id" | "retry" => {}
            _ => return Err(SseError::UnknownField { line: line.chars().take(80).collect() }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(chunks: &[&[u8]]) -> Result<Vec<String>, SseError> {
        let mut parser = SseParser::new();
        let mut events = Vec::new();
        for chunk in chunks {
            parser.feed(chunk, &mut events)?;
        }
        Ok(events)
    }

    #[test]
    fn every_cut_gives_the_same_events() {
        let stream =
            "\u{feff}: hello\r\ndata: {\"a\":\"Grüße 🚢\"}\r\n\r\nevent: x\ndata: one\ndata:two\n\nid: 7\rdata: [DONE]\r\r"
                .as_bytes();
        let whole = parse(&[stream]).unwrap();
        assert_eq!(whole, ["{\"a\":\"Grüße 🚢\"}", "one\ntwo", "[DONE]"]);
        for cut in 0..=stream.len() {
            assert_eq!(parse(&[&stream[..cut], &stream[cut..]]).unwrap(), whole, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(parse(&bytes).unwrap(), whole);
    }

    #[test]
    fn an_unfinished_event_is_not_given_out() {
        assert_eq!(parse(&[b"data: a\n\ndata: b\n"]).unwrap(), ["a"]);
    }

    #[test]
    fn blank_lines_and_comments_are_no_events() {
        assert_eq!(parse(&[b"\n\n: ping\n\n\n"]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn garbage_is_an_error() {
        let html = parse(&[b"<html>oops</html>\n"]);
        assert_eq!(html, Err(SseError::UnknownField { line: "<html>oops</html>".to_owned() }));
        assert_eq!(parse(&[b"data: \xff\xfe\n\n"]), Err(SseError::NotUtf8));
        let endless = vec![b'x'; MAX_LINE_BYTES + 1];
        assert_eq!(parse(&[&endless]), Err(SseError::LineTooLong));
    }
}
