//! Prompts become vectors.

use quern_scheduler::Permit;
use quern_scheduler::request::{Event, Pooling, Request, Work};

use super::{Error, Prompt, Served, Terms, observe, sink};

/// The vectors of a request's prompts, in their order, each of length one.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// `[num_prompts][hidden]`.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all prompts together.
    pub prompt_tokens: usize,
}

/// Computes one vector of length one for each prompt. `places` has one for each.
///
/// Dropping the future hangs up on all of them.
///
/// # Errors
/// The first failure; the other prompts are given up.
pub async fn embed(
    served: &Served,
    places: Vec<Permit>,
    terms: Terms,
    prompts: Vec<Prompt>,
    pooling: Pooling,
) -> Result<Embedded, Error> {
    let prompt_tokens = prompts.iter().map(|prompt| prompt.len()).sum();
    let vectors = pooled(served, places, terms, prompts, pooling).await?;
    Ok(Embedded { vectors: vectors.into_iter().map(normalised).collect(), prompt_tokens })
}

/// The last token's hidden state of each prompt, as the model gives it: what a
/// classification head reads. `[num_prompts][hidden]`, in the order of the prompts;
/// `places` has one for each.
///
/// Dropping the future hangs up on all of them.
///
/// # Errors
/// As for [`embed`].
pub async fn hidden_states(
    served: &Served,
    places: Vec<Permit>,
    terms: Terms,
    prompts: Vec<Prompt>,
) -> Result<Vec<Vec<f32>>, Error> {
    pooled(served, places, terms, prompts, Pooling::Last).await
}

async fn pooled(
    served: &Served,
    places: Vec<Permit>,
    terms: Terms,
    prompts: Vec<Prompt>,
    pooling: Pooling,
) -> Result<Vec<Vec<f32>>, Error> {
    let prompt_tokens = prompts.iter().map(|prompt| prompt.len()).sum();
    let mut vectors = vec![Vec::new(); prompts.len()];
    let (sinks, mut events) = sink::channel(prompts.iter().map(|_| 1));
    let mut flags = Vec::with_capacity(sinks.len());
    for (idx, ((prompt, place), (sink, enough))) in prompts.into_iter().zip(places).zip(sinks).enumerate() {
        flags.push(enough);
        let request = Request {
            id: terms.first_id + idx as u64,
            prompt,
            adapter: served.adapter_id(),
            tenant: terms.tenant,
            priority: terms.priority,
            deadline: terms.deadline,
            arrived: terms.arrived,
            work: Work::Embed { pooling, sink },
        };
        served.workers.submit(place, request)?;
    }
    let mut missing = vectors.len();
    while missing > 0 {
        match events.recv().await.ok_or(Error::Lost)? {
            (idx, Event::Embedding(vector)) => {
                vectors[idx as usize] = vector;
                missing -= 1;
            }
            (_, Event::Failed(failure)) => {
                observe::failed();
                return Err(failure.into());
            }
            (_, Event::Started { .. } | Event::Token { .. } | Event::Finished(_) | Event::Scores(_)) => {}
        }
    }
    observe::read(prompt_tokens);
    Ok(vectors)
}

/// The same direction at length one; a vector of zeros stays.
fn normalised(mut vector: Vec<f32>) -> Vec<f32> {
    let square: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    if square > 0.0 {
        let scale = 1.0 / square.sqrt();
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::normalised;

    #[test]
    fn vectors_have_length_one() {
        assert_eq!(normalised(vec![3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(normalised(vec![0.0, 0.0]), [0.0, 0.0]);
    }
}
