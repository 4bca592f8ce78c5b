#!/usr/bin/env bash
# Asks each endpoint of a running node once.
#   QUERN_URL   the public address      (default: http://127.0.0.1:8080)
#   QUERN_ADMIN the operators' address  (default: http://127.0.0.1:8081)
#   QUERN_KEY   an API key, where the node wants one
set -euo pipefail

url=${QUERN_URL:-http://127.0.0.1:8080}
admin=${QUERN_ADMIN:-http://127.0.0.1:8081}
key=()
[ -z "${QUERN_KEY:-}" ] || key=(-H "Authorization: Bearer $QUERN_KEY")

post() { # path, body without its model
    echo "--- POST $1"
    curl --silent --show-error --fail-with-body --no-buffer "$url$1" "${key[@]}" \
        -H 'Content-Type: application/json' -d "{\"model\": \"$model\", ${2#\{}"
    echo
}

echo "--- GET /v1/models"
models=$(curl --silent --show-error --fail-with-body "$url/v1/models" "${key[@]}")
echo "$models"
# The first one; a real client has a parser for JSON.
model=$(sed 's/^[^[]*\[{"id":"\([^"]*\)".*/\1/' <<<"$models")

post /v1/chat/completions '{"max_tokens": 40,
  "messages": [{"role": "user", "content": "Name three rivers."}]}'

post /v1/chat/completions '{"max_tokens": 20, "stream": true, "stream_options": {"include_usage": true},
  "messages": [{"role": "user", "content": "Count to five."}]}'

post /v1/chat/completions '{"max_tokens": 60, "temperature": 0,
  "messages": [{"role": "user", "content": "A city with its population, as JSON."}],
  "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": {
    "type": "object", "required": ["name", "population"], "additionalProperties": false,
    "properties": {"name": {"type": "string"}, "population": {"type": "integer"}}}}}}'

post /v1/chat/completions '{"max_tokens": 60, "temperature": 0, "tool_choice": "required",
  "messages": [{"role": "user", "content": "What is the weather in Lyon?"}],
  "tools": [{"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}}}]}'

post /v1/completions '{"prompt": "def fibonacci(n):", "max_tokens": 40, "temperature": 0}'
post /v1/embeddings '{"input": ["a mill", "a river"]}' | cut -c1-300
post /tokenize '{"prompt": "a mill by a river"}'

for path in /health /ready; do
    echo "--- GET $path (operators)"
    curl --silent --show-error "$admin$path"
    echo
done
echo "--- GET /metrics (operators), a few lines"
curl --silent --show-error "$admin/metrics" | grep -E '^(quern_generated|vllm:num_requests)' || true
