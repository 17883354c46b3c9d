#!/usr/bin/env bash
# FIPO on Qwen3.5 with slime: MODEL_SIZE=0.8B|2B|4B recipes/slime/qwen3.5_fipo.sh [slime's flags, which win]
# qwen3.5.sh beside this file names every variable; DRY_RUN=1 prints the commands. Install fipo on every node first:
# `fipo doctor slime` says where it is missing.
set -euo pipefail
ARM=fipo
source "$(dirname "${BASH_SOURCE[0]}")/qwen3.5.sh"

# The figures of slime's pull request 1801, which proposed the loss: weights in [1, 1.28].
LAUNCHER=(-m fipo.engines.slime train.py)
LOSS_ARGS=(
   --loss-type fipo_loss
   --fipo-decay-rate 32.0
   --fipo-clip-ratio-low 0.2
   --fipo-clip-ratio-high 0.28
   --fipo-clip-high-only
   --fipo-safety-thresh 3.0
   --fipo-dual-clip-c 10.0
)
submit "$@"
