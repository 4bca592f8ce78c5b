#!/usr/bin/env node
// Chat with a running Quern and print the answer while it is written; Node 18 or later.
//   node client.mjs "Write a haiku about millstones."
// QUERN_URL is the node's address (default http://127.0.0.1:8080), QUERN_KEY an API key.

const url = process.env.QUERN_URL ?? "http://127.0.0.1:8080";
const question = process.argv.slice(2).join(" ") || "Write a haiku about millstones.";

const headers = { "Content-Type": "application/json" };
if (process.env.QUERN_KEY) headers.Authorization = `Bearer ${process.env.QUERN_KEY}`;

// Leaving early (Ctrl-C, or a caller that lost interest) closes the connection,
// and the node stops computing the answer before its next step.
const abort = new AbortController();
process.once("SIGINT", () => abort.abort());

/** The JSON objects of a stream of server-sent events. */
async function* events(body) {
  let rest = "";
  for await (const text of body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data: ") ? line.slice(6).trim() : "";
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

/** Sends a request; a refusal ends the program with its own message. */
async function ask(path, body) {
  const method = body ? "POST" : "GET";
  const answer = await fetch(url + path, { method, headers, signal: abort.signal, body: body && JSON.stringify(body) });
  if (answer.ok) return answer;
  const { error } = await answer.json();
  console.error(`${answer.status}: ${error.message}`);
  process.exit(1);
}

const { data: models } = await (await ask("/v1/models")).json();
const answer = await ask("/v1/chat/completions", {
  model: models[0].id,
  messages: [{ role: "user", content: question }],
  max_tokens: 200,
  stream: true,
});
for await (const event of events(answer.body)) {
  process.stdout.write(event.choices[0]?.delta.content ?? "");
}
process.stdout.write("\n");
