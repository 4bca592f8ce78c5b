use super::*;

fn head(labels: &[&str]) -> Arc<Head> {
    Arc::new(Head {
        weight: vec![1.0; labels.len() * 2],
        bias: None,
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        hidden: 2,
    })
}

fn classifier(temperature: f32, abstain_below: f32) -> Classifier {
    let means = Means::Head(head(&["one", "two", "three"]));
    Classifier { name: "a".to_owned(), means, temperature, abstain_below }
}

#[test]
fn probabilities_are_a_softmax_at_the_temperature() {
    let scores = [1.0, 3.0, 2.0];
    let found = classifier(1.0, 0.0).judge(&scores);
    assert_eq!(found.label, Some(1));
    for (found, wanted) in found.probs.iter().zip([0.090_03, 0.665_24, 0.244_73]) {
        assert!((found - wanted).abs() < 1e-4, "{found} {wanted}");
    }
    let milder = classifier(2.0, 0.0).judge(&scores);
    assert!(milder.probs[1] < found.probs[1] && milder.label == found.label);
    // A constant on top changes nothing.
    assert_eq!(classifier(1.0, 0.0).judge(&[-99.0, -97.0, -98.0]), found);
}

#[test]
fn too_little_confidence_is_no_label() {
    let unsure = classifier(1.0, 0.7).judge(&[1.0, 3.0, 2.0]);
    assert_eq!(unsure.label, None);
    assert!(unsure.probs[1] > 0.66);
    assert_eq!(classifier(1.0, 0.7).judge(&[1.0, 9.0, 2.0]).label, Some(1));
}

#[test]
fn what_is_no_number_is_impossible() {
    let found = classifier(1.0, 0.0).judge(&[f32::NAN, 0.0, f32::NEG_INFINITY]);
    assert_eq!((found.probs, found.label), (vec![0.0, 1.0, 0.0], Some(1)));
    let none = classifier(1.0, 0.0).judge(&[f32::NEG_INFINITY, f32::NAN, f32::NEG_INFINITY]);
    assert!(none.probs.iter().all(|&prob| (prob - 1.0 / 3.0).abs() < 1e-6));
}

#[test]
fn a_head_is_a_linear_layer() {
    let mut head = Head::clone(&head(&["one", "two", "three"]));
    (head.weight, head.bias) = (vec![1.0, 0.0, 0.0, 2.0, -1.0, 1.0], Some(vec![0.0, 0.5, 0.0]));
    let means = Means::Head(Arc::new(head));
    let by_head = Classifier { means, ..classifier(1.0, 0.0) };
    assert_eq!(by_head.numbers(vec![3.0, 4.0]), Ok(vec![3.0, 8.5, 1.0]));
    assert_eq!(check_hidden(&self::head(&["one"]), 3), Err(Unfit::Hidden { head: 2, model: 3 }));
}

#[test]
fn labels_that_are_not_the_heads_are_told_apart() {
    let head = head(&["one", "two"]);
    let named = |labels: &[&str]| labels.iter().map(|&label| label.to_owned()).collect::<Vec<_>>();
    assert_eq!(check_labels(&head, &named(&["one", "two"])), Ok(()));
    let fewer = check_labels(&head, &named(&["one"])).unwrap_err();
    assert_eq!(fewer.to_string(), "there are 1 labels, and the head has 2");
    let other = check_labels(&head, &named(&["one", "three"])).unwrap_err();
    assert_eq!(other.to_string(), "label 1 is `three`, and `two` in the head");
}
