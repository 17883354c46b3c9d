#!/usr/bin/env bash
# GRPO, the baseline of qwen3.5_fipo.sh: everything is the same, the dual clip included, but there are no weights.
ARM=grpo
source "$(dirname "${BASH_SOURCE[0]}")/qwen3.5_fipo.sh"
