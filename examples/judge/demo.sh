#!/bin/sh
# A real model of 135M parameters judges real answers through llama.cpp's server, and the audit says how well.
# sh examples/judge/demo.sh FILE.gguf MODEL OUT
set -eu
gguf=$1 model=$2 out=$3 port=${PORT:-8793}
mkdir -p "$out"
xwin sample --model "$model" --data examples/demo/eval.jsonl --limit 12 --n 2 --temperature 0.8 --max-tokens 48 \
  --out "$out/answers.jsonl"
python examples/judge/serve.py "$gguf" "$port" > "$out/server.log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
until grep -q "serving at" "$out/server.log"; do
  kill -0 "$server" 2>/dev/null || { tail -3 "$out/server.log"; exit 1; }
  sleep 0.2
done
for judge in pairwise alpaca-eval-2; do
  xwin judge --data "$out/answers.jsonl" --judge "$judge" --judge-base-url "http://127.0.0.1:$port/v1" \
    --judge-model SmolLM2-135M-Instruct --judge-cache "$out/replies.sqlite" --judge-tokens 128 --allow-failed 1 --out "$out/$judge.jsonl"
  xwin audit judge --data "$out/$judge.jsonl" --out "$out/audit-$judge"
done
