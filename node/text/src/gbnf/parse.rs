//! Reads GBNF text.

use super::charset::{CharSet, LAST};
use super::{GbnfError, Node, Rules};
use std::collections::HashMap;

/// Depth of nested parentheses.
const MAX_DEPTH: usize = 64;

/// The largest number of repetitions that can be asked for.
const MAX_REPEAT: u32 = 2_000;

pub(super) fn parse(text: &str) -> Result<Rules, GbnfError> {
    let mut parser = Parser { text, at: 0, names: HashMap::new(), bodies: Vec::new() };
    parser.skip_space(true);
    while parser.peek().is_some() {
        parser.rule()?;
        parser.skip_space(true);
    }
    parser.finish()
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// Every name that was met, its number and where it was met first.
    names: HashMap<&'a str, (usize, usize)>,
    bodies: Vec<Option<Node>>,
}

impl<'a> Parser<'a> {
    /// `name ::= alternatives`, up to the end of the line.
    fn rule(&mut self) -> Result<(), GbnfError> {
        let start = self.at;
        let number = self.name()?;
        self.skip_space(false);
        if !self.text[self.at..].starts_with("::=") {
            return Err(self.error(self.at, "expected ::="));
        }
        self.at += 3;
        self.skip_space(true);
        let body = self.alternatives(0)?;
        if self.bodies[number].is_some() {
            return Err(self.error(start, "the rule is defined twice"));
        }
        self.bodies[number] = Some(body);
        match self.peek() {
            None | Some('\n' | '\r') => Ok(()),
            Some(')') => Err(self.error(self.at, "no parenthesis is open")),
            Some(_) => Err(self.error(self.at, "expected the end of the line")),
        }
    }

    fn alternatives(&mut self, depth: usize) -> Result<Node, GbnfError> {
        let mut branches = vec![self.sequence(depth)?];
        while self.peek() == Some('|') {
            self.at += 1;
            self.skip_space(true);
            branches.push(self.sequence(depth)?);
        }
        Ok(if branches.len() == 1 { branches.remove(0) } else { Node::Alt(branches) })
    }

    fn sequence(&mut self, depth: usize) -> Result<Node, GbnfError> {
        let mut items = Vec::new();
        while let Some(c) = self.peek() {
            let item = match c {
                '"' => self.literal()?,
                '[' => self.class()?,
                '.' => {
                    self.at += 1;
                    Node::Chars(CharSet::all())
                }
                '(' => self.group(depth)?,
                c if is_name_char(c) => Node::Rule(self.name()?),
                '<' | '!' => {
                    return Err(self.error(self.at, "tokens in a grammar are not supported"));
                }
                '*' | '+' | '?' | '{' => {
                    return Err(self.error(self.at, "there is nothing to repeat"));
                }
                _ => break,
            };
            self.skip_space(depth > 0);
            let item = self.repetitions(item, depth)?;
            items.push(item);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { Node::Seq(items) })
    }

    fn group(&mut self, depth: usize) -> Result<Node, GbnfError> {
        let start = self.at;
        if depth >= MAX_DEPTH {
            return Err(self.error(start, "parentheses are nested too deep"));
        }
        self.at += 1;
        self.skip_space(true);
        let inner = self.alternatives(depth + 1)?;
        if self.peek() != Some(')') {
            return Err(self.error(start, "the parenthesis is not closed"));
        }
        self.at += 1;
        Ok(inner)
    }

    /// Any number of `*`, `+`, `?` and `{m,n}` after an item.
    fn repetitions(&mut self, mut item: Node, depth: usize) -> Result<Node, GbnfError> {
        // Each is one more level of nesting in the result.
        for _ in 0..MAX_DEPTH {
            let (min, max) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    let bounds = self.bounds()?;
                    item = Node::Repeat(Box::new(item), bounds.0, bounds.1);
                    self.skip_space(depth > 0);
                    continue;
                }
                _ => return Ok(item),
            };
            self.at += 1;
            item = Node::Repeat(Box::new(item), min, max);
            self.skip_space(depth > 0);
        }
        Err(self.error(self.at, "there are too many repetitions of repetitions"))
    }

    /// `{m}`, `{m,}`, `{,n}` or `{m,n}`.
    fn bounds(&mut self) -> Result<(u32, Option<u32>), GbnfError> {
        let start = self.at;
        self.at += 1;
        self.skip_space(false);
        let min = self.number()?;
        self.skip_space(false);
        let max = if self.peek() == Some(',') {
            self.at += 1;
            self.skip_space(false);
            self.number()?
        } else {
            min
        };
        self.skip_space(false);
        let has_comma = self.text[start..self.at].contains(',');
        if self.peek() != Some('}') || (min.is_none() && max.is_none()) {
            return Err(self.error(start, "expected {m}, {m,}, {,n} or {m,n}"));
        }
        self.at += 1;
        let min = min.unwrap_or(0);
        let max = if has_comma { max } else { Some(min) };
        if max.is_some_and(|max| max < min) {
            return Err(self.error(start, "the bounds are the wrong way round"));
        }
        Ok((min, max))
    }

    fn number(&mut self) -> Result<Option<u32>, GbnfError> {
        let start = self.at;
        let digits = self.text[start..].bytes().take_while(u8::is_ascii_digit).count();
        self.at += digits;
        if digits == 0 {
            return Ok(None);
        }
        let number = self.text[start..self.at].parse().ok();
        match number.filter(|number| *number <= MAX_REPEAT) {
            Some(number) => Ok(Some(number)),
            None => Err(self.error(start, &format!("at most {MAX_REPEAT} repetitions"))),
        }
    }

    fn literal(&mut self) -> Result<Node, GbnfError> {
        let start = self.at;
        self.at += 1;
        let mut chars = Vec::new();
        loop {
            match self.peek() {
                None => return Err(self.error(start, "the quotation mark is not closed")),
                Some('"') => break,
                Some(_) => chars.push(Node::Chars(CharSet::single(self.char()?))),
            }
        }
        self.at += 1;
        Ok(if chars.len() == 1 { chars.remove(0) } else { Node::Seq(chars) })
    }

    fn class(&mut self) -> Result<Node, GbnfError> {
        let start = self.at;
        self.at += 1;
        let negated = self.peek() == Some('^');
        self.at += usize::from(negated);
        let mut ranges = Vec::new();
        loop {
            match self.peek() {
                None => return Err(self.error(start, "the bracket is not closed")),
                Some(']') => break,
                Some(_) => {}
            }
            let at = self.at;
            let first = self.char()?;
            let rest = &self.text[self.at..];
            let last = if rest.starts_with('-') && !rest.starts_with("-]") {
                self.at += 1;
                if self.peek().is_none() {
                    return Err(self.error(start, "the bracket is not closed"));
                }
                self.char()?
            } else {
                first
            };
            if last < first {
                return Err(self.error(at, "the range is the wrong way round"));
            }
            ranges.push((first.into(), last.into()));
        }
        self.at += 1;
        let set = CharSet::new(ranges);
        let set = if negated { set.complement() } else { set };
        if set.is_empty() {
            return Err(self.error(start, "no character can match"));
        }
        Ok(Node::Chars(set))
    }

    /// One character, perhaps escaped. There is one.
    fn char(&mut self) -> Result<char, GbnfError> {
        let start = self.at;
        let c = self.next().expect("the caller has looked");
        if c != '\\' {
            return Ok(c);
        }
        let num_digits = match self.next() {
            Some('t') => return Ok('\t'),
            Some('r') => return Ok('\r'),
            Some('n') => return Ok('\n'),
            Some(c @ ('\\' | '"' | '[' | ']' | '-' | '^')) => return Ok(c),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => return Err(self.error(start, "the escape is not known")),
        };
        let digits = self.text.get(self.at..self.at + num_digits);
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let c = code.filter(|code| *code <= LAST).and_then(char::from_u32);
        self.at += if c.is_some() { num_digits } else { 0 };
        c.ok_or_else(|| self.error(start, "the escape names no character"))
    }

    fn name(&mut self) -> Result<usize, GbnfError> {
        let start = self.at;
        let rest = &self.text[start..];
        let len = rest.find(|c| !is_name_char(c)).unwrap_or(rest.len());
        if len == 0 {
            return Err(self.error(start, "expected a rule's name"));
        }
        self.at += len;
        let next = self.bodies.len();
        let (number, _) = *self.names.entry(&rest[..len]).or_insert((next, start));
        if number == next {
            self.bodies.push(None);
        }
        Ok(number)
    }

    /// Skips blanks and comments, and line ends where they mean nothing.
    fn skip_space(&mut self, newlines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\r' | '\n' if newlines => self.at += 1,
                '#' => {
                    let rest = &self.text[self.at..];
                    self.at += rest.find(['\r', '\n']).unwrap_or(rest.len());
                }
                _ => return,
            }
        }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn finish(self) -> Result<Rules, GbnfError> {
        let mut missing = self.names.iter();
        if let Some((name, (_, at))) = missing
            .by_ref()
            .filter(|(_, (number, _))| self.bodies[*number].is_none())
            .min_by_key(|(_, (_, at))| *at)
        {
            return Err(self.error(*at, &format!("no rule is called {name}")));
        }
        let Some((root, _)) = self.names.get("root") else {
            return Err(self.error(0, "no rule is called root"));
        };
        let bodies = self.bodies.into_iter();
        Ok(Rules { bodies: bodies.map(|body| body.expect("just checked")).collect(), root: *root })
    }

    fn error(&self, at: usize, why: &str) -> GbnfError {
        let before = &self.text[..at];
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        GbnfError {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            why: why.to_owned(),
        }
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}
