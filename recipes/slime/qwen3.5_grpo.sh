#!/usr/bin/env bash
# GRPO, the baseline of qwen3.5_fipo.sh: everything is the same, the dual clip included, but there are no weights.
set -euo pipefail
ARM=grpo
source "$(dirname "${BASH_SOURCE[0]}")/qwen3.5.sh"

LAUNCHER=("${SLIME_DIR}/train.py")
LOSS_ARGS=(
   --loss-type policy_loss
   --eps-clip-c 10.0
)
submit "$@"
