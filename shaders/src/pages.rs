//! Which pages of the KV cache hold which sequence.
//!
//! A page has room for [`PAGE_TOKENS`] tokens of every layer. A sequence is a
//! list of pages and a length; a page may stand in many lists, and its count says
//! in how many. A fork copies nothing: it shares all pages, and whoever first
//! appends to a shared last page gets a copy of it. So a page is written only
//! while its count is 1.
//!
//! This is the book alone. It knows no buffers and no device: it says which pages
//! the device has to copy, and the caller sees to it before the step that writes.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Tokens in a page. Attention reads pages in tiles that divide it, so that no
/// tile lies on two pages.
pub const PAGE_TOKENS: u32 = 32;

/// Tokens that a step adds to one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Append {
    /// The sequence.
    pub seq_id: u32,
    /// How many tokens; 0 is allowed and does nothing.
    pub num_tokens: u32,
}

/// A copy that the device must make of the first tokens of a page, in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCopy {
    /// The page that stays as it is.
    pub from: u32,
    /// A fresh page.
    pub to: u32,
    /// Tokens that count, `1..PAGE_TOKENS`; the others may be copied or not.
    pub num_tokens: u32,
}

/// Why the book stayed as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The appends need more pages than are free. Drop or truncate sequences.
    #[error("the step needs {needed} more KV pages and {free} of {total} are free")]
    OutOfPages {
        /// Pages that all appends together need, copies among them.
        needed: usize,
        /// Pages that nobody holds.
        free: usize,
        /// Pages that there are.
        total: usize,
    },
    /// A sequence's number is past the limit that the book was made with.
    #[error("there is no sequence {seq_id}: the KV cache keeps {max_sequences}")]
    NoSuchSequence {
        /// The number.
        seq_id: u32,
        /// The limit.
        max_sequences: usize,
    },
    /// One list of appends names a sequence twice; give the sum of its tokens.
    #[error("sequence {seq_id} is appended to twice in one step")]
    AppendedTwice {
        /// The sequence.
        seq_id: u32,
    },
    /// A sequence would outgrow the numbers of positions.
    #[error("sequence {seq_id} holds {len} tokens and cannot take {num_tokens} more")]
    TooLong {
        /// The sequence.
        seq_id: u32,
        /// Its present length in tokens.
        len: u32,
        /// Tokens that it was to take.
        num_tokens: u32,
    },
    /// A fork's target holds tokens. Truncate it to 0 first.
    #[error("sequence {seq_id} is not empty, so nothing can be forked into it")]
    NotEmpty {
        /// The target.
        seq_id: u32,
    },
    /// A fork asks for more tokens than there are.
    #[error("sequence {seq_id} holds {len} tokens, {wanted} were to be shared")]
    TooShort {
        /// The sequence to fork from.
        seq_id: u32,
        /// Its length in tokens.
        len: u32,
        /// Tokens that were asked for.
        wanted: u32,
    },
}

#[derive(Debug, Clone, Default)]
struct Sequence {
    /// `len / PAGE_TOKENS` pages, rounded up.
    pages: Vec<u32>,
    /// In tokens.
    len: u32,
}

/// The pages of a KV cache and who holds them.
#[derive(Debug, Clone)]
pub struct PageBook {
    sequences: Vec<Sequence>,
    /// By page: in how many sequences it stands.
    counts: Vec<u32>,
    /// Pages with a count of 0, the lowest first: what is handed out depends on
    /// which pages are free and not on the order in which they became so.
    free: BinaryHeap<Reverse<u32>>,
}

/// Pages that hold `len` tokens.
fn pages_for(len: u32) -> usize {
    len.div_ceil(PAGE_TOKENS) as usize
}

impl PageBook {
    /// A book of empty sequences, `0..max_sequences`, over free pages, `0..num_pages`.
    #[must_use]
    pub fn new(num_pages: u32, max_sequences: usize) -> PageBook {
        PageBook {
            sequences: vec![Sequence::default(); max_sequences],
            counts: vec![0; num_pages as usize],
            free: (0..num_pages).map(Reverse).collect(),
        }
    }

    /// Room in all pages together, in tokens. Each sequence may leave up to
    /// `PAGE_TOKENS - 1` of its last page unused.
    #[must_use]
    pub fn capacity_tokens(&self) -> usize {
        self.counts.len() * PAGE_TOKENS as usize
    }

    /// Pages that no sequence holds.
    #[must_use]
    pub fn num_free_pages(&self) -> usize {
        self.free.len()
    }

    /// The length of a sequence, in tokens.
    ///
    /// # Panics
    /// When there is no such sequence.
    #[must_use]
    pub fn len(&self, seq_id: u32) -> u32 {
        self.sequences[seq_id as usize].len
    }

    /// Whether a sequence holds no tokens.
    ///
    /// # Panics
    /// When there is no such sequence.
    #[must_use]
    pub fn is_empty(&self, seq_id: u32) -> bool {
        self.len(seq_id) == 0
    }

    /// A sequence's pages in order: the token at position `pos` lies on page
    /// `pages[pos / PAGE_TOKENS]` in slot `pos % PAGE_TOKENS`.
    ///
    /// # Panics
    /// When there is no such sequence.
    #[must_use]
    pub fn pages(&self, seq_id: u32) -> &[u32] {
        &self.sequences[seq_id as usize].pages
    }

    /// Makes room for a step's tokens and counts them into their sequences, for
    /// all of `appends` or for none. Gives the copies that the device must make
    /// before it writes. No copy's target is another's source, so they may be made
    /// in any order or at once.
    ///
    /// # Errors
    /// [`PageError::OutOfPages`], [`PageError::NoSuchSequence`],
    /// [`PageError::AppendedTwice`] or [`PageError::TooLong`]; the book is then
    /// unchanged.
    pub fn reserve(&mut self, appends: &[Append]) -> Result<Vec<PageCopy>, PageError> {
        self.check_appends(appends)?;
        let (needed, free) = (self.pages_needed(appends), self.free.len());
        if needed > free {
            return Err(PageError::OutOfPages { needed, free, total: self.counts.len() });
        }
        Ok(appends.iter().filter_map(|&append| self.append(append)).collect())
    }

    /// Makes the empty sequence `to` share the first `len` tokens of `from`.
    /// Takes no page and asks for no copy.
    ///
    /// # Errors
    /// [`PageError::NoSuchSequence`], [`PageError::NotEmpty`] or
    /// [`PageError::TooShort`]; the book is then unchanged.
    pub fn fork(&mut self, from: u32, to: u32, len: u32) -> Result<(), PageError> {
        let source = self.sequence(from)?;
        if source.len < len {
            return Err(PageError::TooShort { seq_id: from, len: source.len, wanted: len });
        }
        if self.sequence(to)?.len > 0 {
            return Err(PageError::NotEmpty { seq_id: to });
        }
        let pages = source.pages[..pages_for(len)].to_vec();
        for &page in &pages {
            self.counts[page as usize] += 1;
        }
        self.sequences[to as usize] = Sequence { pages, len };
        Ok(())
    }

    /// Forgets a sequence's tokens past the first `len` and frees the pages that
    /// nobody else holds; 0 drops the sequence. A sequence that is no longer than
    /// `len` stays as it is.
    ///
    /// # Errors
    /// [`PageError::NoSuchSequence`].
    pub fn truncate(&mut self, seq_id: u32, len: u32) -> Result<(), PageError> {
        self.sequence(seq_id)?;
        let sequence = &mut self.sequences[seq_id as usize];
        if len >= sequence.len {
            return Ok(());
        }
        sequence.len = len;
        for page in sequence.pages.split_off(pages_for(len)) {
            self.counts[page as usize] -= 1;
            if self.counts[page as usize] == 0 {
                self.free.push(Reverse(page));
            }
        }
        Ok(())
    }

    /// Checks that every page is either free or counted as often as it is held,
    /// and that lists are as long as lengths say. Takes time in proportion to the
    /// book; for tests and for idle moments.
    ///
    /// # Panics
    /// When the book is wrong, which is an error in this file.
    pub fn check_integrity(&self) {
        let mut held = vec![0; self.counts.len()];
        for sequence in &self.sequences {
            assert_eq!(sequence.pages.len(), pages_for(sequence.len), "pages for the length");
            sequence.pages.iter().for_each(|&page| held[page as usize] += 1);
        }
        assert_eq!(held, self.counts, "counts are the holders");
        let mut free: Vec<u32> = self.free.iter().map(|&Reverse(page)| page).collect();
        free.sort_unstable();
        let unheld = (0..held.len() as u32).filter(|&page| held[page as usize] == 0);
        assert!(unheld.eq(free), "a page is free, once, when nobody holds it");
    }

    fn sequence(&self, seq_id: u32) -> Result<&Sequence, PageError> {
        let max_sequences = self.sequences.len();
        self.sequences.get(seq_id as usize).ok_or(PageError::NoSuchSequence { seq_id, max_sequences })
    }

    fn check_appends(&self, appends: &[Append]) -> Result<(), PageError> {
        let mut seen = Vec::with_capacity(appends.len());
        for &Append { seq_id, num_tokens } in appends {
            let len = self.sequence(seq_id)?.len;
            if len.checked_add(num_tokens).is_none() {
                return Err(PageError::TooLong { seq_id, len, num_tokens });
            }
            seen.push(seq_id);
        }
        seen.sort_unstable();
        match seen.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(PageError::AppendedTwice { seq_id: pair[0] }),
            None => Ok(()),
        }
    }

    /// Exactly the pages that [`PageBook::append`] will take for all of `appends`.
    fn pages_needed(&self, appends: &[Append]) -> usize {
        let mut num_fresh = 0;
        let mut shared = Vec::new();
        for &Append { seq_id, num_tokens } in appends {
            let sequence = &self.sequences[seq_id as usize];
            num_fresh += pages_for(sequence.len + num_tokens) - sequence.pages.len();
            shared.extend(self.shared_tail(sequence).filter(|_| num_tokens > 0));
        }
        // Of the holders of a page, the last one needs no copy: by then it is alone.
        shared.sort_unstable();
        let groups = shared.chunk_by(|a, b| a == b);
        let num_copies = |group: &[u32]| group.len().min(self.counts[group[0] as usize] as usize - 1);
        num_fresh + groups.map(num_copies).sum::<usize>()
    }

    /// The page that the next token would be written to, where others hold it too.
    fn shared_tail(&self, sequence: &Sequence) -> Option<u32> {
        let &tail = sequence.pages.last()?;
        let has_room = !sequence.len.is_multiple_of(PAGE_TOKENS);
        (has_room && self.counts[tail as usize] > 1).then_some(tail)
    }

    fn append(&mut self, Append { seq_id, num_tokens }: Append) -> Option<PageCopy> {
        let sequence = &self.sequences[seq_id as usize];
        let (old_len, num_old) = (sequence.len, sequence.pages.len());
        let tail = self.shared_tail(sequence).filter(|_| num_tokens > 0);
        let copy = tail.map(|from| {
            self.counts[from as usize] -= 1;
            PageCopy { from, to: self.take_page(), num_tokens: old_len % PAGE_TOKENS }
        });
        let fresh: Vec<u32> = (num_old..pages_for(old_len + num_tokens)).map(|_| self.take_page()).collect();

        let sequence = &mut self.sequences[seq_id as usize];
        if let Some(copy) = copy {
            sequence.pages[num_old - 1] = copy.to;
        }
        sequence.pages.extend(fresh);
        sequence.len = old_len + num_tokens;
        copy
    }

    fn take_page(&mut self) -> u32 {
        let Reverse(page) = self.free.pop().expect("pages were counted before the first was taken");
        self.counts[page as usize] = 1;
        page
    }
}
