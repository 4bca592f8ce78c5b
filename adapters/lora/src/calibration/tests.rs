use super::*;

/// Rows whose true labels are drawn from softmax(scores / temperature) as exactly as `copies` rows allow.
fn rows_at(temperature: f64, copies: usize) -> Vec<(Vec<f32>, usize)> {
    let patterns = [[2.0_f32, 0.0, -1.0], [0.5, 1.5, 0.0], [-1.0, 0.0, 3.0], [0.2, 0.1, 0.0]];
    let mut rows = Vec::new();
    for scores in patterns {
        let weights = scores.map(|score| (f64::from(score) / temperature).exp());
        let total: f64 = weights.iter().sum();
        for (label, weight) in weights.iter().enumerate() {
            let count = (weight / total * copies as f64).round() as usize;
            rows.extend(std::iter::repeat_n((scores.to_vec(), label), count));
        }
    }
    rows
}

#[test]
fn the_temperature_that_made_the_labels_is_found() {
    for temperature in [0.5, 1.0, 1.7, 4.0] {
        let fitted = fit_temperature(&rows_at(temperature, 10_000));
        assert!(
            (f64::from(fitted.temperature) / temperature - 1.0).abs() < 0.01,
            "{temperature}: {fitted:?}"
        );
        assert!(fitted.nll_after <= fitted.nll_before + 1e-12);
        assert!(fitted.ece_after < 0.002, "{fitted:?}");
        if temperature != 1.0 {
            assert!(fitted.ece_before > 0.03, "{fitted:?}");
        }
    }
}

#[test]
fn a_constant_on_top_of_a_row_changes_nothing() {
    let rows = rows_at(1.7, 500);
    let moved: Vec<_> = rows.iter().map(|(s, label)| (s.iter().map(|x| x - 7.0).collect(), *label)).collect();
    let (one, other) = (fit_temperature(&rows), fit_temperature(&moved));
    assert!((one.temperature - other.temperature).abs() < 1e-5);
    assert!((one.nll_before - other.nll_before).abs() < 1e-6);
}

#[test]
fn rows_that_are_all_right_or_all_wrong_meet_the_bounds() {
    let right = vec![(vec![1.0, 0.0], 0); 10];
    let wrong = vec![(vec![1.0, 0.0], 1); 10];
    assert!((f64::from(fit_temperature(&right).temperature) - 1.0 / MAX_TEMPERATURE).abs() < 1e-4);
    assert!((f64::from(fit_temperature(&wrong).temperature) - MAX_TEMPERATURE).abs() < 1e-3);
}

#[test]
fn odd_rows_are_borne() {
    let none = fit_temperature(&[]);
    assert_eq!((none.temperature, none.nll_before, none.ece_after), (1.0, 0.0, 0.0));
    assert_eq!(fit_temperature(&[(vec![2.0, 2.0], 1)]).temperature, 1.0);
    let odd = vec![
        (vec![f32::NAN, 1.0, f32::NEG_INFINITY], 0),
        (vec![f32::NEG_INFINITY; 2], 1),
        (vec![0.0, 1.0, 0.5], 1),
    ];
    let fitted = fit_temperature(&odd);
    assert!(fitted.temperature.is_finite() && fitted.nll_before.is_finite() && fitted.nll_after.is_finite());
}

#[test]
fn the_error_of_a_known_case() {
    // Confidence 0.8 in ten rows of which six are right; at ln 4 apart, softmax says 4 to 1.
    let scores = vec![4.0_f32.ln(), 0.0];
    let rows: Vec<_> = (0..10).map(|idx| (scores.clone(), usize::from(idx >= 6))).collect();
    let fitted = fit_temperature(&rows);
    assert!((fitted.ece_before - 0.2).abs() < 1e-6, "{fitted:?}");
    // At the optimum confidence is the share of right ones: 6 to 4.
    assert!((f64::from(fitted.temperature) - 4.0_f64.ln() / 1.5_f64.ln()).abs() < 1e-4, "{fitted:?}");
    assert!(fitted.ece_after < 1e-6);
}

#[test]
fn a_calibration_lies_beside_its_adapter() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Calibration::read(dir.path()).unwrap(), None);
    let written = Calibration { temperature: 1.25, rows: 7, ece_before: 0.5, ece_after: 0.25 };
    assert_eq!(written.write(dir.path()).unwrap(), dir.path().join("calibration.json"));
    assert_eq!(Calibration::read(dir.path()).unwrap(), Some(written));

    let file = dir.path().join("banking.gguf");
    fs::write(&file, "").unwrap();
    assert_eq!(written.write(&file).unwrap(), dir.path().join("banking.calibration.json"));
    assert_eq!(Calibration::read(&file).unwrap(), Some(written));

    for bad in ["{", "{}", r#"{"temperature": 0}"#, r#"{"temperature": -1}"#, r#"{"temperature": 1e99}"#] {
        fs::write(dir.path().join("calibration.json"), bad).unwrap();
        let error = Calibration::read(dir.path()).unwrap_err();
        assert!(error.to_string().contains("calibration.json"), "{error}");
    }
}
