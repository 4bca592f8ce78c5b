//! The book against a model in which each sequence owns its tokens.

use proptest::prelude::*;

use super::*;

const NUM_PAGES: u32 = 12;
const MAX_SEQUENCES: u32 = 5;
const P: u32 = PAGE_TOKENS;

/// What a caller may ask for. Numbers run one past the valid ones.
#[derive(Debug, Clone)]
enum Op {
    Reserve(Vec<(u32, u32)>),
    Fork { from: u32, to: u32, len: u32 },
    Truncate { seq_id: u32, len: u32 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let seq = || 0..=MAX_SEQUENCES;
    let len = || prop_oneof![0..3 * P, (0_u32..4).prop_map(|pages| pages * P)];
    let append = (0..MAX_SEQUENCES, prop_oneof![0_u32..3, 0..3 * P]);
    let op = prop_oneof![
        4 => prop::collection::vec(append, 1..4).prop_map(Op::Reserve),
        3 => (seq(), seq(), len()).prop_map(|(from, to, len)| Op::Fork { from, to, len }),
        3 => (seq(), len()).prop_map(|(seq_id, len)| Op::Truncate { seq_id, len }),
    ];
    prop::collection::vec(op, 1..60)
}

/// The book, a memory that does as it says, and each sequence's own tokens.
struct World {
    book: PageBook,
    memory: Vec<[u32; P as usize]>,
    owned: Vec<Vec<u32>>,
    next_token: u32,
}

impl World {
    fn new() -> World {
        World {
            book: PageBook::new(NUM_PAGES, MAX_SEQUENCES as usize),
            memory: vec![[u32::MAX; P as usize]; NUM_PAGES as usize],
            owned: vec![Vec::new(); MAX_SEQUENCES as usize],
            next_token: 0,
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Reserve(appends) => self.reserve(appends),
            &Op::Fork { from, to, len } => {
                let expected = self.may_fork(from, to, len);
                let forked = self.book.fork(from, to, len);
                assert_eq!(forked.is_ok(), expected, "{forked:?}");
                if forked.is_ok() {
                    self.owned[to as usize] = self.owned[from as usize][..len as usize].to_vec();
                }
            }
            &Op::Truncate { seq_id, len } => match self.book.truncate(seq_id, len) {
                Ok(()) => self.owned[seq_id as usize].truncate(len as usize),
                Err(error) => assert_eq!(
                    (error, seq_id),
                    (PageError::NoSuchSequence { seq_id, max_sequences: 5 }, MAX_SEQUENCES)
                ),
            },
        }
        self.check();
    }

    fn may_fork(&self, from: u32, to: u32, len: u32) -> bool {
        let (Some(from), Some(to)) = (self.owned.get(from as usize), self.owned.get(to as usize)) else {
            return false;
        };
        to.is_empty() && from.len() >= len as usize
    }

    fn reserve(&mut self, appends: &[(u32, u32)]) {
        let before = self.book.clone();
        let list: Vec<Append> =
            appends.iter().map(|&(seq_id, num_tokens)| Append { seq_id, num_tokens }).collect();
        let copies = match self.book.reserve(&list) {
            Ok(copies) => copies,
            Err(error) => return self.check_refusal(&before, &list, error),
        };
        for (idx, copy) in copies.iter().enumerate() {
            assert!(copies[..idx].iter().all(|other| other.to != copy.to));
            assert!(copies.iter().all(|other| other.to != copy.from), "order of copies would count");
            let source = self.memory[copy.from as usize];
            let num_tokens = copy.num_tokens as usize;
            assert!((1..P as usize).contains(&num_tokens));
            self.memory[copy.to as usize] = [u32::MAX; P as usize];
            self.memory[copy.to as usize][..num_tokens].copy_from_slice(&source[..num_tokens]);
        }
        for &Append { seq_id, num_tokens } in &list {
            for _ in 0..num_tokens {
                self.write(seq_id);
            }
        }
        let num_taken = before.num_free_pages() - self.book.num_free_pages();
        assert_eq!(num_taken, before.pages_needed(&list), "needs are foretold exactly");
    }

    /// Writes the next token where the book says, and nowhere that another reads.
    fn write(&mut self, seq_id: u32) {
        let pos = self.owned[seq_id as usize].len() as u32;
        let page = self.book.pages(seq_id)[(pos / P) as usize];
        assert_eq!(self.book.counts[page as usize], 1, "a page is written by its only holder");
        self.memory[page as usize][(pos % P) as usize] = self.next_token;
        self.owned[seq_id as usize].push(self.next_token);
        self.next_token += 1;
    }

    fn check_refusal(&self, before: &PageBook, list: &[Append], error: PageError) {
        let lens = |book: &PageBook| (0..MAX_SEQUENCES).map(|id| book.pages(id).to_vec()).collect::<Vec<_>>();
        assert_eq!(lens(before), lens(&self.book));
        assert_eq!(before.num_free_pages(), self.book.num_free_pages());
        match error {
            PageError::OutOfPages { needed, free, total } => {
                assert!(needed > free);
                assert_eq!((free, total), (before.num_free_pages(), NUM_PAGES as usize));
            }
            PageError::AppendedTwice { seq_id } => {
                assert!(list.iter().filter(|append| append.seq_id == seq_id).count() > 1);
            }
            other => panic!("not a reason to refuse {list:?}: {other}"),
        }
    }

    /// Contents are equal and nothing leaks.
    fn check(&self) {
        self.book.check_integrity();
        for (seq_id, owned) in self.owned.iter().enumerate() {
            let seq_id = seq_id as u32;
            assert_eq!(self.book.len(seq_id) as usize, owned.len());
            let pages = self.book.pages(seq_id);
            let at = |pos: u32| self.memory[pages[(pos / P) as usize] as usize][(pos % P) as usize];
            assert!((0..owned.len() as u32).map(at).eq(owned.iter().copied()), "sequence {seq_id}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_book_is_as_good_as_owning_all_tokens(ops in ops()) {
        let mut world = World::new();
        ops.iter().for_each(|op| world.apply(op));
        for seq_id in 0..MAX_SEQUENCES {
            world.apply(&Op::Truncate { seq_id, len: 0 });
        }
        prop_assert_eq!(world.book.num_free_pages(), NUM_PAGES as usize);
    }
}

fn append(seq_id: u32, num_tokens: u32) -> Append {
    Append { seq_id, num_tokens }
}

#[test]
fn a_fork_takes_no_page_until_somebody_writes() {
    let mut book = PageBook::new(8, 3);
    assert_eq!(book.capacity_tokens(), 256);
    assert_eq!(book.reserve(&[append(0, 2 * P + 5)]), Ok(vec![]));
    book.fork(0, 1, 2 * P + 3).unwrap();
    assert_eq!((book.num_free_pages(), book.pages(1)), (5, &[0, 1, 2][..]));
    // The fork gets a copy of what it shares of the page; the first holder is then alone with its own.
    let copies = book.reserve(&[append(1, 1), append(0, 1)]);
    assert_eq!(copies, Ok(vec![PageCopy { from: 2, to: 3, num_tokens: 3 }]));
    assert_eq!((book.pages(0), book.pages(1)), (&[0, 1, 2][..], &[0, 1, 3][..]));
    book.check_integrity();
}

#[test]
fn whole_pages_stay_shared() {
    let mut book = PageBook::new(4, 3);
    book.reserve(&[append(0, P)]).unwrap();
    book.fork(0, 1, P).unwrap();
    book.fork(0, 2, P).unwrap();
    assert_eq!(book.reserve(&[append(0, 1), append(1, 1), append(2, 1)]), Ok(vec![]));
    assert_eq!(book.num_free_pages(), 0);
    assert_eq!((book.pages(0), book.pages(1), book.pages(2)), (&[0, 1][..], &[0, 2][..], &[0, 3][..]));
}

#[test]
fn a_refused_step_says_what_it_would_have_needed() {
    let mut book = PageBook::new(4, 3);
    book.reserve(&[append(0, P + 1)]).unwrap();
    book.fork(0, 1, P + 1).unwrap();
    book.fork(0, 2, P + 1).unwrap();
    // Two of three holders need copies, one of them also a page more.
    let refused = book.reserve(&[append(0, 1), append(1, P), append(2, 1)]);
    assert_eq!(refused, Err(PageError::OutOfPages { needed: 3, free: 2, total: 4 }));
    assert_eq!([0, 1, 2].map(|seq_id| book.len(seq_id)), [P + 1; 3]);
    assert_eq!(book.reserve(&[append(0, 1), append(1, 1), append(2, 1)]).map(|copies| copies.len()), Ok(2));
    assert_eq!(book.num_free_pages(), 0);
}

#[test]
fn freed_pages_come_back_lowest_first() {
    let mut book = PageBook::new(6, 4);
    for seq_id in 0..3 {
        book.reserve(&[append(seq_id, 2 * P)]).unwrap();
    }
    for seq_id in [2, 0] {
        book.truncate(seq_id, 0).unwrap();
    }
    book.reserve(&[append(3, 3 * P)]).unwrap();
    assert_eq!(book.pages(3), &[0, 1, 4]);
}

#[test]
fn a_length_that_has_no_number_is_refused() {
    let mut book = PageBook::new(2, 1);
    book.reserve(&[append(0, 1)]).unwrap();
    let refused = book.reserve(&[append(0, u32::MAX)]);
    assert_eq!(refused, Err(PageError::TooLong { seq_id: 0, len: 1, num_tokens: u32::MAX }));
    // The largest length that has one needs more pages than there are.
    let refused = book.reserve(&[append(0, u32::MAX - 1)]);
    assert_eq!(refused, Err(PageError::OutOfPages { needed: (1 << 27) - 1, free: 1, total: 2 }));
}
