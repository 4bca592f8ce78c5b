//! Chooses a grammar's lexemes so that reading the longest one first is never
//! wrong.
//!
//! It begins with the largest regular parts. A lexeme is broken up into its
//! parts when a text that it matches could go on to a longer match, of itself or
//! of another lexeme that may stand in its place, with a character that may also
//! follow it. All that is asked of sets of characters, which errs towards
//! breaking up; single characters are never wrong, so the end is always reached.

use super::charset::CharSet;
use super::{Node, Rules};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Lexemes in all rounds together: bounds the work.
const MAX_WORK: usize = 20_000;

/// How deep rules without recursion may refer to each other.
const MAX_DEPTH: usize = 100;

/// Length of a text that is compared character by character.
const MAX_LITERAL: usize = 256;

/// Lexemes in a grammar: the tables are quadratic in it.
const MAX_LEXEMES: usize = 1_000;

/// A grammar over lexemes.
#[derive(Debug)]
pub(super) struct Grammar {
    pub(super) lexemes: Vec<Node>,
    pub(super) rules: BTreeMap<usize, Part>,
    pub(super) start: Part,
}

/// A part of a right-hand side over lexemes.
#[derive(Debug)]
pub(super) enum Part {
    /// A lexeme; never the empty text.
    Lexeme(usize),
    Seq(Vec<Part>),
    Alt(Vec<Part>),
    Repeat(Box<Part>, u32, Option<u32>),
    Rule(usize),
}

/// What is known of a regular part's language.
#[derive(Debug, Clone, Default)]
struct Shape {
    matches_empty: bool,
    /// Characters that a match may begin with.
    first: CharSet,
    /// Characters that may follow a match, other than the empty one, within a
    /// longer match.
    beyond: CharSet,
    /// Characters of all matches.
    chars: CharSet,
    /// Whether the next character always tells how to go on; without it
    /// `beyond` is only known to be among `chars`.
    is_clear: bool,
    /// The only match, if it is a single one.
    literal: Option<Vec<CharSet>>,
}

/// # Errors
/// Says why the grammar is beyond the limits.
pub(super) fn choose(rules: &Rules) -> Result<Grammar, String> {
    let mut chooser = Chooser {
        rules,
        regular: vec![false; rules.bodies.len()],
        shapes: HashMap::new(),
        broken: HashSet::new(),
    };
    chooser.find_regular()?;
    let mut work = 0;
    loop {
        let grammar = chooser.build();
        work += grammar.lexemes.len() + 1;
        if grammar.lexemes.len() > MAX_LEXEMES || work > MAX_WORK {
            return Err("the grammar is too large or too ambiguous".to_owned());
        }
        let conflicts = chooser.conflicts(&grammar);
        if conflicts.is_empty() {
            return Ok(grammar);
        }
        let conflicts = conflicts.into_iter().map(|idx| grammar.lexemes[idx].clone());
        chooser.broken.extend(conflicts);
    }
}

fn is_regular(node: &Node, regular: &[bool]) -> bool {
    match node {
        Node::Chars(_) => true,
        Node::Seq(items) | Node::Alt(items) => items.iter().all(|item| is_regular(item, regular)),
        Node::Repeat(inner, ..) => is_regular(inner, regular),
        Node::Rule(number) => regular[*number],
    }
}

struct Chooser<'a> {
    rules: &'a Rules,
    regular: Vec<bool>,
    /// Of regular rules; never missing where one refers to another.
    shapes: HashMap<usize, Shape>,
    /// Parts that must not be lexemes.
    broken: HashSet<Node>,
}

#[derive(Default)]
struct Building {
    lexemes: Vec<Node>,
    numbers: HashMap<Node, usize>,
    rules: BTreeMap<usize, Part>,
    waiting: Vec<usize>,
}

impl Chooser<'_> {
    /// Finds the rules that neither are recursive nor refer to one that is.
    /// Those that a rule refers to are found before it.
    fn find_regular(&mut self) -> Result<(), String> {
        for _ in 0..MAX_DEPTH {
            let known = self.regular.clone();
            for (number, body) in self.rules.bodies.iter().enumerate() {
                if !known[number] && is_regular(body, &known) {
                    self.regular[number] = true;
                    self.shape(&Node::Rule(number));
                }
            }
            if self.regular == known {
                return Ok(());
            }
        }
        Err(format!("rules refer to rules more than {MAX_DEPTH} deep"))
    }

    fn build(&mut self) -> Grammar {
        let mut building = Building::default();
        let start = self.part(&Node::Rule(self.rules.root), &mut building);
        while let Some(number) = building.waiting.pop() {
            if !building.rules.contains_key(&number) {
                let body = self.part(&self.rules.bodies[number], &mut building);
                building.rules.insert(number, body);
            }
        }
        Grammar { lexemes: building.lexemes, rules: building.rules, start }
    }

    fn part(&mut self, node: &Node, building: &mut Building) -> Part {
        let is_char = matches!(node, Node::Chars(_));
        if is_char || (is_regular(node, &self.regular) && !self.broken.contains(node)) {
            return self.lexeme(node, building);
        }
        match node {
            Node::Chars(_) => unreachable!("a character is always a lexeme"),
            Node::Seq(items) => Part::Seq(items.iter().map(|item| self.part(item, building)).collect()),
            Node::Alt(items) => Part::Alt(items.iter().map(|item| self.part(item, building)).collect()),
            Node::Repeat(inner, min, max) => Part::Repeat(Box::new(self.part(inner, building)), *min, *max),
            Node::Rule(number) => {
                building.waiting.push(*number);
                Part::Rule(*number)
            }
        }
    }

    fn lexeme(&mut self, node: &Node, building: &mut Building) -> Part {
        let shape = self.shape(node);
        if shape.first.is_empty() {
            return Part::Seq(Vec::new());
        }
        let next = building.lexemes.len();
        let number = *building.numbers.entry(node.clone()).or_insert(next);
        if number == next {
            building.lexemes.push(node.clone());
        }
        let lexeme = Part::Lexeme(number);
        if shape.matches_empty { Part::Repeat(Box::new(lexeme), 0, Some(1)) } else { lexeme }
    }

    fn shape(&mut self, node: &Node) -> Shape {
        match node {
            Node::Chars(set) => Shape {
                first: set.clone(),
                chars: set.clone(),
                is_clear: true,
                literal: Some(vec![set.clone()]),
                ..Shape::default()
            },
            Node::Seq(items) => {
                let empty = Shape {
                    matches_empty: true,
                    is_clear: true,
                    literal: Some(Vec::new()),
                    ..Shape::default()
                };
                items.iter().fold(empty, |before, item| before.then(self.shape(item)))
            }
            Node::Alt(items) => {
                let mut shapes = items.iter().map(|item| self.shape(item)).collect::<Vec<_>>();
                let first = shapes.remove(0);
                shapes.into_iter().fold(first, Shape::or)
            }
            Node::Repeat(inner, min, max) => self.shape(inner).repeated(*min, *max),
            Node::Rule(number) => {
                if let Some(shape) = self.shapes.get(number) {
                    return shape.clone();
                }
                let rules = self.rules;
                let shape = self.shape(&rules.bodies[*number]);
                self.shapes.insert(*number, shape.clone());
                shape
            }
        }
    }

    /// The lexemes for which the longest match may be wrong.
    fn conflicts(&mut self, grammar: &Grammar) -> HashSet<usize> {
        let lexemes = grammar.lexemes.iter();
        let shapes: Vec<Shape> = lexemes.map(|node| self.shape(node)).collect();
        let follow = super::follow::compute(grammar);
        let follow_chars: Vec<CharSet> = follow
            .after
            .iter()
            .map(|after| {
                let firsts = after.iter().map(|idx| shapes[idx].first.ranges());
                CharSet::new(firsts.flatten().copied().collect())
            })
            .collect();
        let is_char = |idx: usize| matches!(grammar.lexemes[idx], Node::Chars(_));
        let mut found = HashSet::new();
        for (idx, shape) in shapes.iter().enumerate() {
            if !is_char(idx) && shape.beyond().intersects(&follow_chars[idx]) {
                found.insert(idx);
            }
            for other in follow.beside[idx].iter().filter(|other| *other > idx) {
                let both_chars = is_char(idx) && is_char(other);
                let may_differ = shape.may_begin(&shapes[other])
                    && (shapes[other].chars.intersects(&follow_chars[idx])
                        || shape.chars.intersects(&follow_chars[other]));
                if !both_chars && may_differ {
                    found.extend([idx, other].into_iter().filter(|idx| !is_char(*idx)));
                }
            }
        }
        found
    }
}

impl Shape {
    fn beyond(&self) -> &CharSet {
        if self.is_clear { &self.beyond } else { &self.chars }
    }

    /// Whether a match of one could be the beginning of a match of the other.
    fn may_begin(&self, other: &Shape) -> bool {
        match (&self.literal, &other.literal) {
            (Some(a), Some(b)) => a.iter().zip(b).all(|(a, b)| a.intersects(b)),
            _ => self.first.intersects(&other.first),
        }
    }

    fn then(self, next: Shape) -> Shape {
        let is_clear = self.is_clear
            && next.is_clear
            && !self.beyond.intersects(&next.first)
            && !(self.matches_empty && self.first.intersects(&next.first));
        let mut beyond = next.beyond.clone();
        let mut first = self.first.clone();
        if next.matches_empty {
            beyond = beyond.union(&self.beyond).union(&next.first);
        }
        if self.matches_empty {
            first = first.union(&next.first);
        }
        let literal = self.literal.zip(next.literal);
        Shape {
            matches_empty: self.matches_empty && next.matches_empty,
            first,
            beyond,
            chars: self.chars.union(&next.chars),
            is_clear,
            // Rules that double each other would make it as long as their text.
            literal: literal.filter(|(head, tail)| head.len() + tail.len() <= MAX_LITERAL).map(
                |(mut head, tail)| {
                    head.extend(tail);
                    head
                },
            ),
        }
    }

    fn or(self, other: Shape) -> Shape {
        Shape {
            is_clear: self.is_clear
                && other.is_clear
                && !self.first.intersects(&other.first)
                && !(self.matches_empty && other.matches_empty),
            matches_empty: self.matches_empty || other.matches_empty,
            first: self.first.union(&other.first),
            beyond: self.beyond.union(&other.beyond),
            chars: self.chars.union(&other.chars),
            literal: None,
        }
    }

    fn repeated(self, min: u32, max: Option<u32>) -> Shape {
        if max == Some(0) {
            return Shape {
                matches_empty: true,
                is_clear: true,
                literal: Some(Vec::new()),
                ..Shape::default()
            };
        }
        if (min, max) == (1, Some(1)) {
            return self;
        }
        let again = max != Some(1);
        let is_clear =
            self.is_clear && !self.matches_empty && !(again && self.beyond.intersects(&self.first));
        let beyond = if again && max != Some(min) { self.beyond.union(&self.first) } else { self.beyond };
        Shape {
            matches_empty: min == 0 || self.matches_empty,
            first: self.first,
            beyond,
            chars: self.chars,
            is_clear,
            literal: None,
        }
    }
}
