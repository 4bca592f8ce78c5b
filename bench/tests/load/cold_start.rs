//! Cold starts that cannot succeed end with the reason, and leave no process behind.

use std::time::Duration;

use quern_bench::cold_start::ColdStart;

use crate::server::nobody;

/// Longer than any process takes to end.
const PATIENCE: Duration = Duration::from_secs(60);

fn error_of(command: &[&str], timeout: Duration) -> String {
    let nobody = nobody();
    let cold_start = ColdStart {
        name: "probe".to_owned(),
        ready_url: format!("{nobody}/ready"),
        url: nobody,
        model: None,
        api_key: None,
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        rounds: 1,
        timeout,
    };
    format!("{:#}", cold_start.measure().unwrap_err())
}

#[test]
fn a_command_that_does_not_exist_is_named() {
    let error = error_of(&["/no/such/server"], PATIENCE);
    assert!(error.contains("/no/such/server"), "{error}");
}

#[test]
fn a_command_that_ends_early_is_told_from_one_that_is_slow() {
    let ended = error_of(&["false"], PATIENCE);
    assert!(ended.contains("ended with exit status: 1 before it was ready"), "{ended}");
    // The process would stay for a minute; the test ends at once because it is ended with its measurement.
    let slow = error_of(&["sleep", "60"], Duration::from_millis(300));
    assert!(slow.contains("not ready after 300ms"), "{slow}");
}
