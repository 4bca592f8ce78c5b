#!/usr/bin/env bash
# From a CSV file of texts and labels to an adapter that is calibrated, judged and served.
#
#   examples/intents/run.sh BASE [ROWS.csv [EVAL.csv]]
#
# BASE is a GGUF file, or a folder of Hugging Face's. Without rows, the small sample beside
# this script is taken; without rows to judge by, those that training held back. What is
# made lies in the folder that OUT names (./intents-adapter); QUERN and PYTHON name the
# programs, and TRAIN holds more arguments for the training.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

base=${1:?which base? a GGUF file, or a folder of Hugging Face\'s}
rows=${2:-$here/sample.csv}
out=${OUT:-intents-adapter}
quern=${QUERN:-quern}
python=${PYTHON:-python3}
judged=${3:-$out/held-back.csv}

# llama.cpp reads GGUF alone.
model=$base
if [ -d "$base" ]; then
    model=${out%/}-base.gguf
    [ -f "$model" ] || "$quern" quantize "$base" "$model" Q8_0
fi

echo "== train"
# shellcheck disable=SC2086 # several words on purpose
"$python" "$here/../../adapters/train/train.py" "$rows" --base "$base" --out "$out" --overwrite ${TRAIN:-}

echo "== calibrate on the rows that were held back"
"$quern" eval "$model" --adapter "$out" --calibrate "$out/held-back.csv"

echo "== judge"
"$quern" eval "$model" --adapter "$out" --csv "$judged" --confusion "${out%/}-confusion.svg"
echo "the confusion matrix is in ${out%/}-confusion.svg"

echo "== serve and ask"
"$quern" serve --model "$model" --adapter "intents=$out" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 \
    --log-format json 2>"${out%/}-serve.log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
# The log says which port it is, and when a request can be answered.
until grep -q '"message":"ready"' "${out%/}-serve.log"; do
    kill -0 "$server" 2>/dev/null || { cat "${out%/}-serve.log" >&2; exit 1; }
    sleep 0.2
done
address=$(sed -n 's/.*"message":"listening".*"public":"\([^"]*\)".*/\1/p' "${out%/}-serve.log" | head -1)
curl --fail-with-body -sS "http://$address/v1/classify" -H 'Content-Type: application/json' \
    -d '{"model": "intents", "input": ["has my order been sent yet", "are you open on sunday"]}'
echo
