//! Makes one WGSL text of a kernel's file, the shared files that it includes and a variant's values.
//!
//! The build script compiles this file too, so that what is validated there is what runs. Directives
//! stand on lines of their own:
//!
//! ```text
//! #include "shared/NAME.wgsl"     the file's lines; `$QUANT` in the path is the value's text
//! #if NAME / #if !NAME            kept when the value is there and not 0; may nest
//! #if NAME=VALUE                  kept when it is this value
//! #else / #endif
//! #for i in NAME / #for i in 8    the lines so many times, with `$i` replaced by 0, 1, ...
//! #endfor
//! #set NAME VALUE                 gives a value from here on; inside of a loop, until its end
//! ```
//!
//! Elsewhere `$NAME` stands for the value itself. A name that has no value is an error, so that a
//! misspelt directive cannot go unnoticed.

use std::collections::BTreeMap;

/// What a variant's names stand for.
pub(crate) type Values = BTreeMap<&'static str, String>;

/// Finds a file's text by its path below `shaders/wgsl`.
pub(crate) type Sources<'a> = &'a dyn Fn(&str) -> Option<&'a str>;

/// The whole text of `file` with `values`.
pub(crate) fn expand(file: &str, values: &Values, sources: Sources) -> Result<String, String> {
    let text = sources(file).ok_or_else(|| format!("there is no file {file}"))?;
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    let mut bound = values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    Expansion { sources, out: &mut out }.lines(file, &lines, &mut bound)?;
    Ok(out)
}

type Bound = BTreeMap<String, String>;

struct Expansion<'a, 'b> {
    sources: Sources<'a>,
    out: &'b mut String,
}

impl Expansion<'_, '_> {
    fn lines(&mut self, file: &str, lines: &[&str], bound: &mut Bound) -> Result<(), String> {
        let mut idx = 0;
        while idx < lines.len() {
            let line = lines[idx].trim();
            let at = |why: String| format!("{file}: `{line}`: {why}");
            if let Some(path) = line.strip_prefix("#include ") {
                let path = substitute(path.trim_matches('"'), bound).map_err(at)?;
                let text = (self.sources)(&path).ok_or_else(|| at("there is no such file".to_owned()))?;
                self.lines(&path, &text.lines().collect::<Vec<_>>(), bound)?;
            } else if let Some(name) = line.strip_prefix("#if ") {
                let (end, alternative) = block(&lines[idx..], "#if ", "#endif").map_err(at)?;
                let first_end = alternative.unwrap_or(end);
                let kept = match name.strip_prefix('!') {
                    Some(name) => !is_set(name, bound),
                    None => is_set(name, bound),
                };
                if kept {
                    self.lines(file, &lines[idx + 1..idx + first_end], bound)?;
                } else if let Some(alternative) = alternative {
                    self.lines(file, &lines[idx + alternative + 1..idx + end], bound)?;
                }
                idx += end;
            } else if let Some(head) = line.strip_prefix("#for ") {
                let (end, _) = block(&lines[idx..], "#for ", "#endfor").map_err(at)?;
                let (name, count) = head.split_once(" in ").ok_or_else(|| at("no ` in `".to_owned()))?;
                let count = bound.get(count).map_or(count, String::as_str);
                let count: u32 = count.parse().map_err(|_| at(format!("{count} is no number")))?;
                let mut inner = bound.clone();
                for turn in 0..count {
                    inner.insert(name.to_owned(), turn.to_string());
                    self.lines(file, &lines[idx + 1..idx + end], &mut inner)?;
                }
                idx += end;
            } else if let Some(pair) = line.strip_prefix("#set ") {
                let (name, value) = pair.split_once(' ').ok_or_else(|| at("no value".to_owned()))?;
                bound.insert(name.to_owned(), value.to_owned());
            } else if line.starts_with('#') {
                return Err(at("no such directive, or one without its beginning".to_owned()));
            } else {
                self.out.push_str(&substitute(lines[idx], bound).map_err(at)?);
                self.out.push('\n');
            }
            idx += 1;
        }
        Ok(())
    }
}

fn is_set(name: &str, bound: &Bound) -> bool {
    match name.split_once('=') {
        Some((name, wanted)) => bound.get(name).is_some_and(|value| value == wanted),
        None => bound.get(name).is_some_and(|value| value != "0"),
    }
}

/// Where the block that begins with the first line ends, and where its `#else` stands.
fn block(lines: &[&str], opening: &str, closing: &str) -> Result<(usize, Option<usize>), String> {
    let (mut depth, mut alternative) = (0, None);
    for (idx, line) in lines.iter().enumerate() {
        let line = line.trim();
        if line.starts_with(opening) {
            depth += 1;
        } else if line == closing {
            depth -= 1;
            if depth == 0 {
                return Ok((idx, alternative));
            }
        } else if line == "#else" && depth == 1 && opening == "#if " {
            alternative = Some(idx);
        }
    }
    Err(format!("no {closing}"))
}

/// Replaces each `$NAME`. A name is one small letter, as loops have them, or a run of capitals, digits and
/// underscores; so `$iu` is the loop's number and a `u`.
fn substitute(line: &str, bound: &Bound) -> Result<String, String> {
    let mut parts = line.split('$');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let in_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let is_loop = part.starts_with(|c: char| c.is_ascii_lowercase());
        let end = if is_loop { 1 } else { part.find(|c| !in_name(c)).unwrap_or(part.len()) };
        let (name, rest) = part.split_at(end);
        out.push_str(bound.get(name).ok_or_else(|| format!("${name} has no value"))?);
        out.push_str(rest);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, values: &[(&'static str, &str)], expected: Result<&str, &str>) {
        let sources = |path: &str| match path {
            "main" => Some(text),
            "shared/b.wgsl" => Some("shared $A"),
            _ => None,
        };
        let values = values.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let got = expand("main", &values, &sources);
        assert_eq!(got.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn values_includes_and_conditions() {
        check("x $A;\n", &[("A", "7")], Ok("x 7;\n"));
        check("#include \"shared/$F.wgsl\"", &[("A", "1"), ("F", "b")], Ok("shared 1\n"));
        check("$Au$A.x", &[("A", "7")], Ok("7u7.x\n"));
        check("#if A\nyes\n#else\nno\n#endif\nend", &[("A", "0")], Ok("no\nend\n"));
        check("#if A=x\nx\n#else\nother\n#endif", &[("A", "x")], Ok("x\n"));
        check("#if A=x\nx\n#endif\n#if !A=x\nother\n#endif", &[("A", "y")], Ok("other\n"));
        check("#if !B\n#if A\nboth\n#endif\n#endif", &[("A", "2")], Ok("both\n"));
    }

    #[test]
    fn loops_nest_and_count_from_zero() {
        let text = "#for i in N\n#for j in 2\n$i$j\n#endfor\n#endfor";
        check(text, &[("N", "2")], Ok("00\n01\n10\n11\n"));
    }

    #[test]
    fn mistakes_are_named() {
        check("$B", &[], Err("main: `$B`: $B has no value"));
        check("#include \"no\"", &[], Err("main: `#include \"no\"`: there is no such file"));
        check("#if A\n", &[], Err("main: `#if A`: no #endif"));
        check("#endfor", &[], Err("main: `#endfor`: no such directive, or one without its beginning"));
        check("#set N 2\n#for i in N\n#set M $i\n#endfor\n$N", &[], Ok("2\n"));
        check("#for i in N\n#endfor", &[], Err("main: `#for i in N`: N is no number"));
    }
}
