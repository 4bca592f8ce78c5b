//! How far to draft ahead, learned from what was accepted.

/// The first drafts are so long.
const START: u32 = 3;
/// A new result's share in the smoothed acceptance rate.
const SHARE: f32 = 0.125;
/// The rate that is assumed at the start, and at the start of a probe.
const START_RATE: f32 = 0.5;
const PROBE_RATE: f32 = 0.35;
/// Below this rate, drafting does not pay.
const MIN_RATE: f32 = 0.3;
/// Steps without drafts after drafting did not pay, at first and at most.
const FIRST_PAUSE: u32 = 16;
const LONGEST_PAUSE: u32 = 256;

/// The number of tokens to draft for one sequence.
///
/// A draft that was accepted whole makes the next one two tokens longer;
/// otherwise the next one is one token longer than what was accepted, so the
/// length follows what the text allows. When the smoothed share of accepted
/// tokens falls below 0.3 (four whole drafts rejected at the start), no drafts
/// are wanted for 16 steps; then a probe is made that two rejected drafts end,
/// and each failed probe doubles the pause, up to 256 steps. A rate back above
/// the starting one makes the pauses short again.
#[derive(Debug, Clone, PartialEq)]
pub struct DraftLength {
    max: u32,
    length: u32,
    /// Smoothed share of drafted tokens that were accepted.
    rate: f32,
    /// Steps until the next probe; 0 while drafting.
    paused: u32,
    next_pause: u32,
}

impl DraftLength {
    /// Never wants more than `max` tokens.
    #[must_use]
    pub fn new(max: u32) -> DraftLength {
        DraftLength { max, length: START.min(max), rate: START_RATE, paused: 0, next_pause: FIRST_PAUSE }
    }

    /// Tokens to draft now; 0 for none.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        if self.paused > 0 { 0 } else { self.length }
    }

    /// Tells how a step went: tokens that were drafted, and how many of these
    /// were accepted. To be called for each step that drew a token; a step
    /// without a draft counts towards the end of a pause.
    pub fn record(&mut self, drafted: u32, accepted: u32) {
        if drafted == 0 {
            if self.paused == 1 {
                self.length = START.min(self.max);
                self.rate = PROBE_RATE;
            }
            self.paused = self.paused.saturating_sub(1);
            return;
        }
        let accepted = accepted.min(drafted);
        self.rate += SHARE * (accepted as f32 / drafted as f32 - self.rate);
        // A drafter that gave less than was wanted says nothing against more.
        self.length = match accepted == drafted {
            true => self.length.max(drafted + 2).min(self.max),
            false => (accepted + 1).min(self.max),
        };
        if self.rate < MIN_RATE {
            self.paused = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(LONGEST_PAUSE);
        } else if self.rate > START_RATE {
            self.next_pause = FIRST_PAUSE;
        }
    }
}
