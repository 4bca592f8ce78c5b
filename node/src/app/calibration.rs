//! The calibration of a model's own head, read beside the model's file and read anew
//! while the node serves. Adapters' is read with their other files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use quern_adapters::{AdapterError, Calibration};

use crate::serving::Temperature;

/// What a head's scores are divided by, as it was calibrated: 1 where it was not.
/// Blocks on the disk.
///
/// # Errors
/// What lies there is no calibration.
pub(super) fn temperature_of(model: &Path) -> Result<f32, AdapterError> {
    Ok(Calibration::read(model)?.map_or(1.0, |calibration| calibration.temperature))
}

/// The looks, without the clock.
struct Looks {
    model: PathBuf,
    temperature: Temperature,
    /// What was wrong at the last look, so that it is told once.
    fault: Option<String>,
}

/// Reads a model's calibration every `period` until it is dropped; never without one.
pub(super) async fn keep_calibrated(model: PathBuf, temperature: Temperature, period: Option<Duration>) {
    let Some(period) = period else { return };
    let mut looks = Looks { model, temperature, fault: None };
    loop {
        tokio::time::sleep(period).await;
        let looked = tokio::task::spawn_blocking(move || {
            looks.look();
            looks
        });
        // It fails only when the node is ending.
        let Ok(back) = looked.await else { return };
        looks = back;
    }
}

impl Looks {
    /// The file is small and written whole, so that it is read each time; what is no
    /// calibration leaves the temperature as it is.
    fn look(&mut self) {
        let found = temperature_of(&self.model).map_err(|error| error.to_string());
        match &found {
            Ok(found) => {
                if self.temperature.set(*found) != *found {
                    tracing::info!(model = %self.model.display(), temperature = found, "calibration changed");
                }
            }
            Err(error) if self.fault.as_ref() != Some(error) => {
                tracing::warn!(model = %self.model.display(), error, "calibration not read");
            }
            Err(_) => {}
        }
        self.fault = found.err();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_calibration_is_followed_while_it_is_one() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let model = dir.path().join("model.gguf");
        let temperature = Temperature::new(1.0);
        let mut looks = Looks { model: model.clone(), temperature: temperature.clone(), fault: None };
        let beside = Calibration::path_of(&model);
        let mut look_at = |content: Option<&str>| {
            match content {
                Some(content) => fs::write(&beside, content).expect("it can be written"),
                None => fs::remove_file(&beside).expect("it was there"),
            }
            looks.look();
            (temperature.get(), looks.fault.is_some())
        };
        assert_eq!(look_at(Some(r#"{"temperature": 2.5}"#)), (2.5, false));
        assert_eq!(look_at(Some(r#"{"temperature": 0.5}"#)), (0.5, false));
        assert_eq!(look_at(Some(r#"{"temperature": -1}"#)), (0.5, true));
        assert_eq!(look_at(Some(r#"{"temperature": 3}"#)), (3.0, false));
        assert_eq!(look_at(None), (1.0, false));
    }
}
