#!/usr/bin/env bash
# FIPO on Qwen2.5-32B as in the paper, with verl: recipes/verl/fipo_qwen2.5_32b.sh [verl's overrides, which win]
# ARM=dapo is the baseline without weights, ARM=shuffled and ARM=uniform are the controls; DRY_RUN=1 prints the command;
# paper.sh beside this file names every variable.
set -euo pipefail

MODEL=Qwen2.5-32B
SAMPLES=16              # of a prompt
MAX_RESPONSE=20480
OVERLONG_BUFFER=4096    # the last tokens of MAX_RESPONSE, in which the penalty grows
MODEL_ARGS=()
WEIGHT_ARGS=(           # weights in [1, 1.2]
   decay_rate=32.0
   clip_ratio_high=0.2
   clip_high_only=True
   safety_thresh=10.0
)

source "$(dirname "${BASH_SOURCE[0]}")/paper.sh"
submit "$@"
