#!/usr/bin/env bash
# FIPO on Qwen2.5-Math-7B as in the paper, with verl: recipes/verl/fipo_qwen2.5_math_7b.sh [verl's overrides, which win]
# ARM=dapo is the baseline without weights, ARM=shuffled and ARM=uniform are the controls; DRY_RUN=1 prints the command;
# paper.sh beside this file names every variable.
set -euo pipefail

MODEL=Qwen2.5-Math-7B
SAMPLES=32              # of a prompt
MAX_RESPONSE=10240
OVERLONG_BUFFER=2048    # the last tokens of MAX_RESPONSE, in which the penalty grows
MODEL_ARGS=(            # its config.json allows 4096 tokens: extended for training and for vLLM
   +actor_rollout_ref.model.override_config.max_position_embeddings=12288
   +actor_rollout_ref.rollout.engine_kwargs.vllm.hf_overrides.max_position_embeddings=12288
)
WEIGHT_ARGS=(           # weights in [0.8, 1.2]
   decay_rate=32.0
   clip_ratio_low=0.2
   clip_ratio_high=0.2
   clip_high_only=False
   safety_thresh=3.0
)
NUM_NODES=${NUM_NODES:-4}
SP_SIZE=${SP_SIZE:-4}
TP_SIZE=${TP_SIZE:-1}

source "$(dirname "${BASH_SOURCE[0]}")/paper.sh"
submit "$@"
