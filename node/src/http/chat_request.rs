//! Checks a chat request: everything that can be known without the model's work.

use quern_scheduler::request::SamplingParams;
use quern_text::{ChatInput, Grammar, StopStrings};

use super::RequestLimits;
use super::chat_tools::{self, ToolUse};
use super::openai_chat::ChatRequest;
use super::params::{self, GrammarFields, SamplingFields};
use super::reply::Problem;
use crate::serving::Model;

/// Alternatives a token, as OpenAI has it.
const MAX_TOP_LOGPROBS: u8 = 20;

/// A chat request that can be served.
pub(super) struct CheckedChat {
    pub(super) input: ChatInput,
    pub(super) n: u32,
    pub(super) sampling: SamplingParams,
    pub(super) max_new: Option<u32>,
    pub(super) stop: StopStrings,
    pub(super) logprobs: Option<u8>,
    /// With the field that asked for it.
    pub(super) grammar: Option<(&'static str, Grammar)>,
    /// Whether tool calls are looked for in the answer.
    pub(super) finds_calls: bool,
    /// Whether calls after the first are left out.
    pub(super) single_call: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

pub(super) fn check(
    request: ChatRequest,
    model: &Model,
    limits: &RequestLimits,
    fresh_seed: u64,
) -> Result<CheckedChat, Problem> {
    refuse_unserved(&request)?;
    let tools = request.tools.as_deref().unwrap_or_default();
    let parallel = request.parallel_tool_calls != Some(false);
    let tool_use = chat_tools::tool_use(tools, request.tool_choice.as_ref(), parallel)?;
    let tool_values = chat_tools::tools(tools)?;
    let grammar = grammar(&request, &tool_use)?;
    params::refuse_endless(request.ignore_eos, grammar.as_ref())?;
    let sampling = params::sampling(&sampling_fields(&request), model, limits, fresh_seed)?;
    let max_new = params::positive("max_completion_tokens", request.max_completion_tokens)?
        .or(params::positive("max_tokens", request.max_tokens)?);
    let stream = request.stream == Some(true);
    if request.stream_options.is_some() && !stream {
        return Err(Problem::field("stream_options", "stream_options needs stream to be true"));
    }
    Ok(CheckedChat {
        n: params::choices(request.n, limits)?,
        sampling,
        max_new,
        logprobs: logprobs(&request)?,
        finds_calls: tool_use != ToolUse::None,
        grammar,
        single_call: !parallel,
        stream,
        include_usage: request.stream_options.is_some_and(|options| options.include_usage == Some(true)),
        input: ChatInput {
            messages: chat_tools::messages(&request.messages)?,
            tools: (tool_use != ToolUse::None).then_some(tool_values),
            add_generation_prompt: true,
            extra: request.chat_template_kwargs.unwrap_or_default(),
        },
        stop: params::stop(request.stop, limits)?,
    })
}

fn refuse_unserved(request: &ChatRequest) -> Result<(), Problem> {
    let modalities = request.modalities.as_deref().unwrap_or_default();
    params::refuse_unserved(&[
        ("audio", request.audio.is_some()),
        ("modalities", modalities.iter().any(|modality| modality != "text")),
        ("prediction", request.prediction.is_some()),
        ("functions", request.functions.is_some()),
        ("function_call", request.function_call.is_some()),
        ("web_search_options", request.web_search_options.is_some()),
        ("best_of", request.best_of.is_some()),
        ("use_beam_search", request.use_beam_search == Some(true)),
        ("prompt_logprobs", request.prompt_logprobs.is_some()),
        ("chat_template", request.chat_template.is_some()),
        ("suffix", request.suffix.is_some()),
        ("echo", request.echo == Some(true)),
    ])
}

fn sampling_fields(request: &ChatRequest) -> SamplingFields<'_> {
    SamplingFields {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        min_p: request.min_p,
        repetition_penalty: request.repetition_penalty,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        logit_bias: request.logit_bias.as_ref(),
        seed: request.seed,
        ignore_eos: request.ignore_eos,
    }
}

fn logprobs(request: &ChatRequest) -> Result<Option<u8>, Problem> {
    match (request.logprobs, request.top_logprobs) {
        (Some(true), top) => {
            params::alternatives("top_logprobs", top.unwrap_or(0), MAX_TOP_LOGPROBS).map(Some)
        }
        (_, Some(top)) if top != 0 => {
            Err(Problem::field("top_logprobs", "top_logprobs needs logprobs to be true"))
        }
        _ => Ok(None),
    }
}

fn grammar(request: &ChatRequest, tool_use: &ToolUse) -> Result<Option<(&'static str, Grammar)>, Problem> {
    let asked = params::grammar(&GrammarFields {
        response_format: request.response_format.as_ref(),
        guided_json: request.guided_json.as_ref(),
        guided_regex: request.guided_regex.as_deref(),
        guided_grammar: request.guided_grammar.as_deref(),
        guided_choice: request.guided_choice.as_deref(),
        structured_outputs: request.structured_outputs.as_ref(),
    })?;
    match (asked, tool_use) {
        (Some((field, _)), ToolUse::Auto | ToolUse::Forced(_)) => Err(Problem::field(
            field,
            format!("`{field}` cannot be combined with tools that may be called; set tool_choice to none"),
        )),
        (asked, ToolUse::None) => Ok(asked),
        (None, ToolUse::Auto) => Ok(None),
        (None, ToolUse::Forced(grammar)) => Ok(Some(("tools", grammar.clone()))),
    }
}
