//! A small format for what a policy saves: numbers and names, one after the other.
//!
//! What comes back from a node may be of another version or garbage, so reading
//! never fails loudly: it gives `None`, and the policy starts anew.

/// Writes numbers and names.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Starts with a number that names the format and its version.
    pub fn new(format: u32) -> Writer {
        Writer { bytes: format.to_le_bytes().to_vec() }
    }

    /// Appends a number.
    pub fn number(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends a name.
    pub fn name(&mut self, value: &str) {
        self.number(value.len() as u64);
        self.bytes.extend_from_slice(value.as_bytes());
    }

    /// All that was written.
    pub fn done(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads what [`Writer`] wrote.
#[derive(Debug)]
pub struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts reading, if the bytes begin with this format's number.
    pub fn new(bytes: &'a [u8], format: u32) -> Option<Reader<'a>> {
        let left = bytes.strip_prefix(&format.to_le_bytes()[..])?;
        Some(Reader { left })
    }

    /// The next number.
    pub fn number(&mut self) -> Option<u64> {
        let (number, left) = self.left.split_first_chunk::<8>()?;
        self.left = left;
        Some(u64::from_le_bytes(*number))
    }

    /// The next name.
    pub fn name(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.number()?).ok()?;
        let (name, left) = self.left.split_at_checked(len)?;
        self.left = left;
        std::str::from_utf8(name).ok()
    }

    /// Whether everything was read.
    pub fn is_done(&self) -> bool {
        self.left.is_empty()
    }
}
