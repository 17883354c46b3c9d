#!/usr/bin/env bash
# FIPO on Qwen3.5 and dapo-math-17k with slime: recipes/slime/qwen3.5_fipo.sh [slime's flags, which win]
# ARM=grpo is the baseline, ARM=shuffled and ARM=uniform are the controls. DRY_RUN=1 prints the commands. Install fipo on
# every node first: `fipo doctor slime` says where it is missing. Not run by this project on GPUs: its commands are tested
# dry.
set -euo pipefail

# Required: these paths mean the same on every node.
# SLIME_DIR       slime's source, the folder that holds train.py
# MEGATRON_DIR    Megatron-LM's source
# HF_CHECKPOINT   the model's folder from the Hugging Face hub (Qwen/Qwen3.5-0.8B, …)
# PROMPT_DATA     dapo-math-17k.jsonl (hub dataset zhuzilin/dapo-math-17k)
# EVAL_DATA       aime-2024.jsonl (hub dataset zhuzilin/aime-2024)

# The run
ARM=${ARM:-fipo}                         # fipo; grpo: no weights; shuffled, uniform: FIPO's, but not where they belong
DRY_RUN=${DRY_RUN:-0}                    # 1: print the commands and run nothing
MODEL_SIZE=${MODEL_SIZE:-0.8B}           # 0.8B, 2B or 4B; must be HF_CHECKPOINT's
SEED=${SEED:-0}                          # of data, rollouts and training; arms are compared at equal seeds
RUN_NAME=${RUN_NAME:-Qwen3.5-${MODEL_SIZE}-${ARM}-s${SEED}}  # names the run in W&B and its checkpoints
SAVE_DIR=${SAVE_DIR:-${HF_CHECKPOINT:-}-${RUN_NAME}}     # checkpoints; a run goes on from the last one it finds here
TORCH_DIST=${TORCH_DIST:-${HF_CHECKPOINT:-}_torch_dist}  # the model in Megatron's format; made when it is not there
PRECISION=${PRECISION:-float16}          # or bfloat16, whose rounding is larger than what updates change: docs/precision.md
NUM_ROLLOUT=${NUM_ROLLOUT:-500}          # rollouts of 32 prompts: about one epoch
RM_TYPE=${RM_TYPE:-math}                 # slime's reward; math reads \boxed{}, deepscaler wants </think> first
WANDB_PROJECT=${WANDB_PROJECT-fipo}      # empty: no W&B; its key is WANDB_API_KEY where Ray was started
WANDB_MODE=${WANDB_MODE:-online}         # online, offline or disabled

# The machines
RAY_DASHBOARD=${RAY_DASHBOARD:-}         # dashboard of a running cluster, http://host:8265; empty: start Ray here
NUM_NODES=${NUM_NODES:-1}                # nodes that train
GPUS_PER_NODE=${GPUS_PER_NODE:-8}        # GPUs of each; training and rollouts take turns on them
TP_SIZE=${TP_SIZE:-1}                    # tensor parallel size of training
CP_SIZE=${CP_SIZE:-1}                    # context parallel size of training: splits long responses
MAX_TOKENS_PER_GPU=${MAX_TOKENS_PER_GPU:-9216}  # of a micro-batch; a longer response is a micro-batch of its own
GPUS_PER_ENGINE=${GPUS_PER_ENGINE:-1}    # GPUs of one SGLang engine
SGLANG_MEMORY=${SGLANG_MEMORY:-0.7}      # share of a GPU's memory for SGLang during rollouts

source "$(dirname "${BASH_SOURCE[0]}")/../shell.sh"
require SLIME_DIR "the folder of slime's source that holds train.py"
require MEGATRON_DIR "the folder of Megatron-LM's source"
require HF_CHECKPOINT "the folder of Qwen3.5-${MODEL_SIZE} from the Hugging Face hub"
require PROMPT_DATA "the file dapo-math-17k.jsonl"
require EVAL_DATA "the file aime-2024.jsonl"
[[ -n "${RAY_DASHBOARD}" || "${NUM_NODES}" == 1 ]] ||
   stop "NUM_NODES is ${NUM_NODES}, but this script starts Ray on one; start the cluster and set RAY_DASHBOARD."

source "$(dirname "${BASH_SOURCE[0]}")/models.sh"

CKPT_ARGS=(
   --hf-checkpoint "${HF_CHECKPOINT}"
   --ref-load "${TORCH_DIST}"
   --load "${SAVE_DIR}"
   --save "${SAVE_DIR}"
   --save-interval 20
)

# 32 prompts × 16 samples = 512 samples a rollout, trained on in 8 updates of 64. With one update all weights are 1.
ROLLOUT_ARGS=(
   --prompt-data "${PROMPT_DATA}"
   --input-key prompt
   --label-key label
   --apply-chat-template
   --rollout-shuffle
   --rm-type "${RM_TYPE}"
   --num-rollout "${NUM_ROLLOUT}"
   --rollout-batch-size 32
   --n-samples-per-prompt 16
   --global-batch-size 64
   --rollout-max-response-len 10240
   --rollout-temperature 1.0
   --balance-data
   # Dynamic sampling: groups that are all right or all wrong teach nothing and are sampled again.
   --over-sampling-batch-size 64
   --dynamic-sampling-filter-path slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std
)

EVAL_ARGS=(
   --eval-interval 20
   --eval-prompt-data aime-2024 "${EVAL_DATA}"
   --n-samples-per-eval-prompt 16
   --eval-max-response-len 10240
   --eval-top-p 0.7
)

PERF_ARGS=(
   --tensor-model-parallel-size "${TP_SIZE}"
   --sequence-parallel
   --pipeline-model-parallel-size 1
   --context-parallel-size "${CP_SIZE}"
   --expert-model-parallel-size 1
   --expert-tensor-parallel-size 1
   --recompute-granularity full
   --recompute-method uniform
   --recompute-num-layers 1
   --use-dynamic-batch-size
   --max-tokens-per-gpu "${MAX_TOKENS_PER_GPU}"
)

# The policy loss apart from the weights. The paper's reduction is the mean over tokens, not over samples.
GRPO_ARGS=(
   --advantage-estimator grpo
   --eps-clip 0.2
   --eps-clip-high 0.28
   --kl-coef 0.0
   --entropy-coef 0.0
   --calculate-per-token-loss
)

OPTIMIZER_ARGS=(
   --optimizer adam
   --lr 1e-6
   --lr-decay-style constant
   --weight-decay 0.1
   --adam-beta1 0.9
   --adam-beta2 0.98
)

WANDB_ARGS=()
if [[ -n "${WANDB_PROJECT}" ]]; then
   WANDB_ARGS=(
      --use-wandb
      --wandb-mode "${WANDB_MODE}"
      --wandb-project "${WANDB_PROJECT}"
      --wandb-group "${RUN_NAME}"
   )
fi

SEED_ARGS=(
   --seed "${SEED}"
   --rollout-seed "${SEED}"
)

PRECISION_ARGS=()  # slime's default is bfloat16
case "${PRECISION}" in
   float16) PRECISION_ARGS=(--fp16 --sglang-dtype float16) ;;
   bfloat16) ;;
   *) stop "PRECISION is ${PRECISION}, but must be float16 or bfloat16." ;;
esac

SGLANG_ARGS=(
   --rollout-num-gpus-per-engine "${GPUS_PER_ENGINE}"
   --sglang-mem-fraction-static "${SGLANG_MEMORY}"
)

MISC_ARGS=(
   --actor-num-nodes "${NUM_NODES}"
   --actor-num-gpus-per-node "${GPUS_PER_NODE}"
   --colocate
   --attention-backend flash
   # Megatron's default is 0.1, and then π_θ ≠ π_old before the first update.
   --attention-dropout 0.0
   --hidden-dropout 0.0
   --accumulate-allreduce-grads-in-fp32
   --attention-softmax-in-fp32
)

# The figures of slime's pull request 1801, which proposed the loss: weights in [1, 1.28].
FIPO_ARGS=(
   --loss-type fipo_loss
   --fipo-decay-rate 32.0
   --fipo-clip-ratio-low 0.2
   --fipo-clip-ratio-high 0.28
   --fipo-clip-high-only
   --fipo-safety-thresh 3.0
   --fipo-dual-clip-c 10.0
)
LAUNCHER=(-m fipo.engines.slime train.py)
case "${ARM}" in
   fipo) LOSS_ARGS=("${FIPO_ARGS[@]}") ;;
   shuffled) LOSS_ARGS=("${FIPO_ARGS[@]}" --fipo-control shuffle) ;;
   uniform) LOSS_ARGS=("${FIPO_ARGS[@]}" --fipo-control uniform) ;;
   grpo)
      LAUNCHER=("${SLIME_DIR}/train.py")
      LOSS_ARGS=(--loss-type policy_loss --eps-clip-c 10.0)
      ;;
   *)
      stop "ARM is ${ARM}, but must be fipo, grpo, shuffled or uniform."
      ;;
esac

convert() {  # Hugging Face's format → Megatron's; needs one GPU here
   [[ "${DRY_RUN}" != 1 && -e "${TORCH_DIST}/latest_checkpointed_iteration.txt" ]] && return
   run env "PYTHONPATH=${MEGATRON_DIR}:${SLIME_DIR}" python3 "${SLIME_DIR}/tools/convert_hf_to_torch_dist.py" \
      "${MODEL_ARGS[@]}" --hf-checkpoint "${HF_CHECKPOINT}" --save "${TORCH_DIST}"
}

submit() {  # slime's flags, which win over the ones above
   local nvls=0
   nvidia-smi topo -m 2>/dev/null | grep -q 'NV[0-9]' && nvls=1
   local environment="{\"env_vars\": {\"PYTHONPATH\": \"${MEGATRON_DIR}:${SLIME_DIR}\", \
\"CUDA_DEVICE_MAX_CONNECTIONS\": \"1\", \"NCCL_NVLS_ENABLE\": \"${nvls}\"}}"
   convert
   if [[ -z "${RAY_DASHBOARD}" ]]; then
      RAY_DASHBOARD=http://127.0.0.1:8265
      run ray start --head --node-ip-address 127.0.0.1 --num-gpus "${GPUS_PER_NODE}" --disable-usage-stats
   fi
   run ray job submit --address "${RAY_DASHBOARD}" --runtime-env-json "${environment}" -- python3 "${LAUNCHER[@]}" \
      "${MODEL_ARGS[@]}" \
      "${CKPT_ARGS[@]}" \
      "${ROLLOUT_ARGS[@]}" \
      "${EVAL_ARGS[@]}" \
      "${PERF_ARGS[@]}" \
      "${GRPO_ARGS[@]}" \
      "${OPTIMIZER_ARGS[@]}" \
      "${SEED_ARGS[@]}" \
      "${WANDB_ARGS[@]}" \
      "${SGLANG_ARGS[@]}" \
      "${PRECISION_ARGS[@]}" \
      "${MISC_ARGS[@]}" \
      "${LOSS_ARGS[@]}" \
      "$@"
}

submit "$@"
