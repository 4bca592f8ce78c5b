//! Ways to classify that are configured, read and checked.

use std::path::Path;
use std::sync::Arc;

use quern_adapters::{AdapterError, Fault, Head, labels_of};

use super::calibration::temperature_of;
use super::load::Text;
use crate::config;
use crate::serving::{self, Configured, LabelTask, Unfit, check_hidden, check_labels};

/// Why a classifier cannot serve.
#[derive(Debug, thiserror::Error)]
#[error("classifier `{name}`: {fault}")]
pub struct ClassifierError {
    /// As clients would call it.
    pub name: String,
    /// What is wrong.
    pub fault: ClassifierFault,
}

/// What is wrong with a classifier.
#[derive(Debug, thiserror::Error)]
pub enum ClassifierFault {
    /// A file of labels cannot be used.
    #[error("labels_file: {0}")]
    LabelsFile(Fault),
    /// It does not belong to the model.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Template or labels cannot be turned into tokens.
    #[error(transparent)]
    Wording(#[from] serving::Error),
}

/// The model that classifiers are made for.
pub(super) struct Base<'a> {
    pub(super) path: &'a Path,
    /// In the model's own file.
    pub(super) head: Option<&'a Arc<Head>>,
    pub(super) text: &'a Text,
    pub(super) hidden_size: usize,
}

/// All configured classifiers. Those that compute with an adapter are checked against it
/// when they are asked, since adapters come and go.
pub(super) fn classifiers(
    configured: &[config::Classifier],
    base: &Base<'_>,
) -> Result<Vec<Arc<Configured>>, ClassifierError> {
    let read = |one: &config::Classifier| match base.classifier(one) {
        Ok(classifier) => Ok(Arc::new(classifier)),
        Err(fault) => Err(ClassifierError { name: one.name.clone(), fault }),
    };
    configured.iter().map(read).collect()
}

impl Base<'_> {
    /// What the scores of the model's own head are divided by.
    pub(super) fn temperature(&self) -> Result<f32, AdapterError> {
        Ok(self.head.map(|_| temperature_of(self.path)).transpose()?.unwrap_or(1.0))
    }

    fn classifier(&self, one: &config::Classifier) -> Result<Configured, ClassifierFault> {
        let labels = match &one.labels_file {
            Some(path) => labels_of(path).map_err(ClassifierFault::LabelsFile)?,
            None => one.labels.clone(),
        };
        let task = match one.wording() {
            Some(wording) => {
                let Text { tokenizer, template, .. } = self.text;
                let (end_token, skip_below) = (one.end_token, one.skip_below);
                let labels = labels.clone();
                let task =
                    LabelTask::new(tokenizer, template.as_ref(), wording, labels, end_token, skip_below)?;
                Some(Arc::new(task))
            }
            None if one.adapter.is_some() => None,
            None => {
                let head = self.head.ok_or(Unfit::NoHead)?;
                check_hidden(head, self.hidden_size)?;
                if !labels.is_empty() {
                    check_labels(head, &labels)?;
                }
                None
            }
        };
        Ok(Configured {
            name: one.name.clone(),
            adapter: one.adapter.clone(),
            task,
            labels,
            temperature: one.temperature,
            abstain_below: one.abstain_below,
        })
    }
}
