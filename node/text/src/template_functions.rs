//! What the `transformers` library offers to chat templates beyond Jinja.

use minijinja::value::{Kwargs, Value as TemplateValue};
use minijinja::{Error, ErrorKind};
use serde_json::Value;
use std::time::{SystemTime, UNIX_EPOCH};

/// A template's own refusal, kept as the source of the error it is raised as.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(pub(crate) String);

/// Refuses the conversation.
pub(crate) fn raise_exception(message: String) -> Result<TemplateValue, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Refusal(message)))
}

/// A value as JSON, laid out as Python's `json.dumps` does it, without escapes
/// for HTML.
pub(crate) fn to_json(value: TemplateValue, args: Kwargs) -> Result<TemplateValue, Error> {
    let indent: Option<usize> = args.get("indent")?;
    let ensure_ascii: Option<bool> = args.get("ensure_ascii")?;
    let sort_keys: Option<bool> = args.get("sort_keys")?;
    args.assert_all_used()?;
    let value = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, "not a JSON value").with_source(error))?;
    let mut writer = JsonWriter {
        out: String::new(),
        indent: indent.map(|indent| indent.min(16)),
        ensure_ascii: ensure_ascii.unwrap_or(false),
        sort_keys: sort_keys.unwrap_or(false),
    };
    writer.value(&value, 0);
    Ok(TemplateValue::from_safe_string(writer.out))
}

struct JsonWriter {
    out: String,
    indent: Option<usize>,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl JsonWriter {
    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(value) => self.out.push_str(if *value { "true" } else { "false" }),
            Value::Number(number) => self.number(number),
            Value::String(text) => self.string(text),
            Value::Array(items) if items.is_empty() => self.out.push_str("[]"),
            Value::Array(items) => {
                self.out.push('[');
                for (idx, item) in items.iter().enumerate() {
                    self.separate(idx, depth + 1);
                    self.value(item, depth + 1);
                }
                self.close(']', depth);
            }
            Value::Object(map) if map.is_empty() => self.out.push_str("{}"),
            Value::Object(map) => {
                self.out.push('{');
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                for (idx, (key, item)) in entries.into_iter().enumerate() {
                    self.separate(idx, depth + 1);
                    self.string(key);
                    self.out.push_str(": ");
                    self.value(item, depth + 1);
                }
                self.close('}', depth);
            }
        }
    }

    /// What goes before an item.
    fn separate(&mut self, idx: usize, depth: usize) {
        if idx > 0 {
            self.out.push(',');
        }
        match self.indent {
            Some(_) => self.new_line(depth),
            None if idx > 0 => self.out.push(' '),
            None => {}
        }
    }

    fn close(&mut self, bracket: char, depth: usize) {
        if self.indent.is_some() {
            self.new_line(depth);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        self.out.push('\n');
        let width = self.indent.unwrap_or(0) * depth;
        self.out.extend(std::iter::repeat_n(' ', width));
    }

    /// Python writes an exponent with its sign and two digits, and switches to
    /// it at 1e16 and below 1e-4.
    fn number(&mut self, number: &serde_json::Number) {
        let Some(float) = number.as_f64().filter(|_| number.is_f64()) else {
            self.out.push_str(&number.to_string());
            return;
        };
        let magnitude = float.abs();
        if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
            let text = format!("{float:e}");
            let (digits, exponent) = text.split_once('e').expect("the format has an exponent");
            let exponent: i32 = exponent.parse().expect("the format has a whole exponent");
            let sign = if exponent < 0 { '-' } else { '+' };
            self.out.push_str(&format!("{digits}e{sign}{:02}", exponent.abs()));
        } else {
            self.out.push_str(&format!("{float:?}"));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' => self.escape(c),
                // Stand-ins for a client's characters must stay recognisable.
                c if self.ensure_ascii && !c.is_ascii() && !crate::guard::is_candidate(c) => {
                    self.escape(c);
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            self.out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

/// The present moment in UTC, in the words of C's `strftime`.
pub(crate) fn strftime_now(format: String) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = now.map_or(0, |since| since.as_secs());
    strftime(&format, seconds)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let days = seconds / 86_400;
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&format!("{year:04}")),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('I') => out.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('M') => out.push_str(&format!("{minute:02}")),
            Some('S') => out.push_str(&format!("{second:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('F') => out.push_str(&format!("{year:04}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('Z') => out.push_str("UTC"),
            Some('%') => out.push('%'),
            other => {
                let what = other.map_or_else(|| "%".to_owned(), |c| format!("%{c}"));
                let why = format!("strftime_now does not know {what}");
                return Err(Error::new(ErrorKind::InvalidOperation, why));
            }
        }
    }
    Ok(out)
}

/// Year, month and day of the `days`-th day after the first of January 1970.
fn date(days: u64) -> (u64, usize, u64) {
    let mut rest = days;
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while rest >= 365 + u64::from(is_leap(year)) {
        rest -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while rest >= lengths[month] {
        rest -= lengths[month];
        month += 1;
    }
    (year, month + 1, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dump(value: &Value, indent: Option<usize>, ensure_ascii: bool) -> String {
        let mut writer = JsonWriter { out: String::new(), indent, ensure_ascii, sort_keys: false };
        writer.value(value, 0);
        writer.out
    }

    #[test]
    fn json_looks_as_python_writes_it() {
        let value = json!({"b": [1, 2.0, 1e20, 1.5e-7], "a": "<é\"\n\u{1}😀>", "e": {}, "n": null});
        assert_eq!(
            dump(&value, None, false),
            r#"{"b": [1, 2.0, 1e+20, 1.5e-07], "a": "<é\"\n\u0001😀>", "e": {}, "n": null}"#
        );
        assert!(dump(&value, None, true).contains(r#""<\u00e9\"\n\u0001\ud83d\ude00>""#));
        assert_eq!(
            dump(&json!({"a": [1, {"b": []}]}), Some(2), false),
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": []\n    }\n  ]\n}"
        );
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let format = "%A %d %B %Y %H:%M:%S %j";
        assert!(strftime(format, 0).is_err());
        let at = |seconds| strftime("%a %d %b %Y %T", seconds).expect("known letters");
        assert_eq!(at(0), "Thu 01 Jan 1970 00:00:00");
        assert_eq!(at(951_782_400), "Tue 29 Feb 2000 00:00:00");
        assert_eq!(at(1_735_689_599), "Tue 31 Dec 2024 23:59:59");
        assert_eq!(strftime("100%% %I%p", 0).expect("known letters"), "100% 12AM");
    }
}
