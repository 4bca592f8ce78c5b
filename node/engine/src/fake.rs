//! The engine for tests: deterministic, exact about its state, and able to fail on demand.
