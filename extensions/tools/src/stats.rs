//! Quantiles and fairness.

/// The value that a share of the values does not exceed; 0 without values.
/// Sorts what it is given.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Jain's index (R. Jain, D. Chiu and W. Hawe, 1984): 1 where all have the
/// same, one over their number where one has everything.
pub(crate) fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    if squares == 0.0 { 1.0 } else { sum * sum / (values.len() as f64 * squares) }
}

/// What everybody would have of `total` if nobody got more while somebody with
/// less still wanted more: the max-min fair shares of `demands`.
pub(crate) fn fair_shares(demands: &[f64], total: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..demands.len()).collect();
    order.sort_unstable_by(|&one, &other| demands[one].total_cmp(&demands[other]));
    let mut shares = vec![0.0; demands.len()];
    let mut left = total;
    for (place, &idx) in order.iter().enumerate() {
        let equal = left / (demands.len() - place) as f64;
        shares[idx] = demands[idx].min(equal);
        left -= shares[idx];
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&mut values, 0.5), 50.0);
        assert_eq!(quantile(&mut values, 0.95), 95.0);
        assert_eq!(quantile(&mut values, 1.0), 100.0);
        assert_eq!(quantile(&mut [7.0], 0.01), 7.0);
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }

    #[test]
    fn fairness_is_one_for_equals_and_least_for_one_who_has_all() {
        assert_eq!(jain(&[3.0, 3.0, 3.0]), 1.0);
        assert_eq!(jain(&[0.0, 5.0, 0.0, 0.0]), 0.25);
    }

    #[test]
    fn who_wants_little_gets_it_and_the_rest_is_shared() {
        assert_eq!(fair_shares(&[100.0, 1.0, 9.0], 30.0), [20.0, 1.0, 9.0]);
        assert_eq!(fair_shares(&[100.0, 50.0, 1.0], 31.0), [15.0, 15.0, 1.0]);
        assert_eq!(fair_shares(&[1.0, 2.0], 30.0), [1.0, 2.0]);
    }
}
