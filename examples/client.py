#!/usr/bin/env python3
"""Chat, streaming and a tool call with a running Quern, by the standard library alone.

    python3 client.py "Write a haiku about millstones."
    python3 client.py --openai "..."     # the same through the `openai` package

QUERN_URL is the node's address (default http://127.0.0.1:8080), QUERN_KEY an API key.
"""

import json
import os
import sys
import urllib.error
import urllib.request

URL = os.environ.get("QUERN_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("QUERN_KEY", "")


def ask(path, body=None):
    """Sends a request and gives the open answer; a refusal becomes its own message."""
    headers = {"Content-Type": "application/json"}
    if KEY:
        headers["Authorization"] = f"Bearer {KEY}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, headers)
    try:
        return urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        message = json.load(error).get("error", {}).get("message", error.reason)
        sys.exit(f"{error.code}: {message}")


def first_model():
    """The id of the model that is served."""
    return json.load(ask("/v1/models"))["data"][0]["id"]


def events(answer):
    """The JSON objects of a stream of server-sent events."""
    for line in answer:
        data = line.decode().removeprefix("data: ").strip()
        if data and data != "[DONE]" and line.startswith(b"data: "):
            yield json.loads(data)


def stream(model, question):
    """Prints an answer while it is written."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 200,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for event in events(ask("/v1/chat/completions", body)):
        for choice in event["choices"]:
            print(choice["delta"].get("content") or "", end="", flush=True)
        if event.get("usage"):
            print(f"\n({event['usage']['completion_tokens']} tokens)")


def call_a_tool(model):
    """Has the model call a function, and prints the call."""
    weather = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city now.",
            "parameters": {
                "type": "object",
                "required": ["city"],
                "properties": {"city": {"type": "string"}},
            },
        },
    }
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the weather in Lyon?"}],
        "tools": [weather],
        "tool_choice": "required",
        "max_tokens": 100,
        "temperature": 0,
    }
    answer = json.load(ask("/v1/chat/completions", body))
    for call in answer["choices"][0]["message"]["tool_calls"]:
        print(call["function"]["name"], json.loads(call["function"]["arguments"]))


def stream_with_openai(question):
    """The same by the `openai` package."""
    import openai

    client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY or "none")
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": question}]
    for event in client.chat.completions.create(model=model, messages=messages, max_tokens=200, stream=True):
        print(event.choices[0].delta.content or "", end="", flush=True)
    print()


def main():
    words = [word for word in sys.argv[1:] if word != "--openai"]
    question = " ".join(words) or "Write a haiku about millstones."
    if "--openai" in sys.argv:
        stream_with_openai(question)
    else:
        model = first_model()
        stream(model, question)
        call_a_tool(model)


if __name__ == "__main__":
    main()
