#!/usr/bin/env bash
# Fails when the program answers worse than its baseline: the same check on your machine and in the pipeline.
#
#   bash examples/regression_ci/gate.sh
#
# The baseline is the version that is deployed, where DSPY_OBSERVE_REGISTRY names a registry that holds the program;
# else the number in baseline.txt. Exit code: 0 passed, 1 worse or no answer, 2 wrong usage.
set -euo pipefail
cd "$(dirname "$0")"
baseline=$(cat baseline.txt)
if [ -n "${DSPY_OBSERVE_REGISTRY:-}" ]; then baseline=deployed; fi
exec dspy-observe gate \
  --program app:Router --metric app:right --devset canary.jsonl --dataset canary \
  --baseline "$baseline" --max-drop 0.02 \
  --junit "${REPORTS:-reports}/gate.xml" --markdown "${REPORTS:-reports}/gate.md"
