# What the paper's runs share (arXiv:2603.19835), for stock verl 0.9: dapo-math-17k, AIME 2024, FIPO or its baseline DAPO.
# Sourced by fipo_*.sh, which set the model's own figures and call `submit`. Not run by this project on GPUs: every
# override is composed with verl's own configuration in the tests.

# Required: these paths mean the same on every node.
# HF_CHECKPOINT   the model's folder from the Hugging Face hub
# PROMPT_DATA     dapo-math-17k.parquet (hub dataset BytedTsinghua-SIA/DAPO-Math-17k)
# EVAL_DATA       aime-2024.parquet (hub dataset BytedTsinghua-SIA/AIME-2024)

# The run
ARM=${ARM:-fipo}                         # fipo; dapo or grpo: no weights; shuffled, uniform: FIPO's, but not in place
SEED=${SEED:-0}                          # of data, rollouts and mini-batches; arms are compared at equal seeds
DRY_RUN=${DRY_RUN:-0}                    # 1: print the command and run nothing
RUN_NAME=${RUN_NAME:-${MODEL}-${ARM}-s${SEED}}  # names the run in W&B and its checkpoints
SAVE_DIR=${SAVE_DIR:-${HF_CHECKPOINT:-}-${RUN_NAME}}  # checkpoints; a run goes on from the last one it finds here
PRECISION=${PRECISION:-float16}          # or bfloat16, whose rounding is larger than what updates change: docs/precision.md
LOGGER=${LOGGER:-[console,wandb]}        # verl's loggers. W&B's key is WANDB_API_KEY where Ray was started

# The machines. Start Ray on them, and install fipo on each.
RAY_DASHBOARD=${RAY_DASHBOARD:-http://127.0.0.1:8265}  # the cluster's dashboard
NUM_NODES=${NUM_NODES:-16}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
SP_SIZE=${SP_SIZE:-8}                    # Ulysses sequence parallel size of training: splits long responses
TP_SIZE=${TP_SIZE:-4}                    # tensor parallel size of vLLM

source "$(dirname "${BASH_SOURCE[0]}")/../shell.sh"
require HF_CHECKPOINT "the folder of ${MODEL} from the Hugging Face hub"
require PROMPT_DATA "the file dapo-math-17k.parquet"
require EVAL_DATA "the file aime-2024.parquet"

MAX_PROMPT=2048
MAX_TOKENS=$((MAX_PROMPT + MAX_RESPONSE))
ACTOR=actor_rollout_ref.actor
ROLLOUT=actor_rollout_ref.rollout

# 512 prompts a rollout, trained on in 8 updates of 64. With one update all weights are 1.
DATA_ARGS=(
   data.train_files="${PROMPT_DATA}"
   data.val_files="${EVAL_DATA}"
   data.prompt_key=prompt
   data.truncation=left
   data.max_prompt_length="${MAX_PROMPT}"
   data.max_response_length="${MAX_RESPONSE}"
   data.train_batch_size=512
   "${ACTOR}.ppo_mini_batch_size=64"
   "${ROLLOUT}.n=${SAMPLES}"
)

# DAPO: groups that are all right or all wrong are sampled again; responses that end near the limit lose reward.
# verl also takes reward_model.reward_manager, the name in older scripts, and does not use it.
ALGORITHM_ARGS=(
   algorithm.adv_estimator=grpo
   algorithm.use_kl_in_reward=False
   algorithm.filter_groups.enable=True
   algorithm.filter_groups.metric=acc
   algorithm.filter_groups.max_inflight_gen_batches=4
   reward.reward_manager.name=dapo
   +reward.reward_kwargs.max_resp_len="${MAX_RESPONSE}"
   +reward.reward_kwargs.overlong_buffer_cfg.enable=True
   +reward.reward_kwargs.overlong_buffer_cfg.len="${OVERLONG_BUFFER}"
   +reward.reward_kwargs.overlong_buffer_cfg.penalty_factor=1.0
   +reward.reward_kwargs.overlong_buffer_cfg.log=True
)

# verl also takes actor.grad_clip, the name in older scripts, and does not use it.
ACTOR_ARGS=(
   "${ACTOR}.use_kl_loss=False"
   "${ACTOR}.entropy_coeff=0"
   "${ACTOR}.clip_ratio_low=0.2"
   "${ACTOR}.clip_ratio_high=0.28"
   "${ACTOR}.clip_ratio_c=10.0"
   "${ACTOR}.loss_agg_mode=token-mean"
   "${ACTOR}.optim.lr=1e-6"
   "${ACTOR}.optim.lr_warmup_steps=10"
   "${ACTOR}.optim.weight_decay=0.1"
   "${ACTOR}.optim.clip_grad=1.0"
   "${ACTOR}.strategy=fsdp2"
   "${ACTOR}.use_dynamic_bsz=True"
   "${ACTOR}.ppo_max_token_len_per_gpu=${MAX_TOKENS}"
   "${ACTOR}.fsdp_config.ulysses_sequence_parallel_size=${SP_SIZE}"
   "${ACTOR}.fsdp_config.param_offload=True"
   "${ACTOR}.fsdp_config.optimizer_offload=True"
   actor_rollout_ref.model.path="${HF_CHECKPOINT}"
   actor_rollout_ref.model.use_remove_padding=True
   actor_rollout_ref.model.enable_gradient_checkpointing=True
)

ROLLOUT_ARGS=(
   "${ROLLOUT}.name=vllm"
   "${ROLLOUT}.tensor_model_parallel_size=${TP_SIZE}"
   "${ROLLOUT}.gpu_memory_utilization=0.8"
   "${ROLLOUT}.enable_chunked_prefill=True"
   "${ROLLOUT}.max_num_batched_tokens=${MAX_TOKENS}"
   "${ROLLOUT}.max_model_len=${MAX_TOKENS}"
   "${ROLLOUT}.temperature=1.0"
   "${ROLLOUT}.top_p=1.0"
   "${ROLLOUT}.top_k=-1"
   "${ROLLOUT}.val_kwargs.do_sample=True"
   "${ROLLOUT}.val_kwargs.temperature=1.0"
   "${ROLLOUT}.val_kwargs.top_p=0.7"
   "${ROLLOUT}.val_kwargs.top_k=-1"
   "${ROLLOUT}.val_kwargs.n=1"   # the data repeats every problem 32 times
)

PRECISION_ARGS=(
   "+${ACTOR}.fsdp_config.mixed_precision.param_dtype=${PRECISION}"
   "${ROLLOUT}.dtype=${PRECISION}"
)

SEED_ARGS=(
   data.seed="${SEED}"
   "${ROLLOUT}.seed=${SEED}"
   "${ACTOR}.data_loader_seed=${SEED}"
)

TRAINER_ARGS=(
   trainer.project_name=fipo
   trainer.experiment_name="${RUN_NAME}"
   trainer.logger="${LOGGER}"
   trainer.nnodes="${NUM_NODES}"
   trainer.n_gpus_per_node="${GPUS_PER_NODE}"
   trainer.default_local_dir="${SAVE_DIR}"
   trainer.save_freq=5
   trainer.test_freq=5
   trainer.total_epochs=1   # the data repeats every problem about 100 times
)

FIPO_ARGS=(
   "${ACTOR}.policy_loss._target_=fipo.engines.verl.FIPOPolicyLossConfig"
   "${ACTOR}.policy_loss.loss_mode=fipo"
   "${WEIGHT_ARGS[@]/#/+${ACTOR}.policy_loss.}"
)
case "${ARM}" in
   fipo) LOSS_ARGS=("${FIPO_ARGS[@]}") ;;
   shuffled) LOSS_ARGS=("${FIPO_ARGS[@]}" "+${ACTOR}.policy_loss.control=shuffle") ;;
   uniform) LOSS_ARGS=("${FIPO_ARGS[@]}" "+${ACTOR}.policy_loss.control=uniform") ;;
   dapo | grpo) LOSS_ARGS=("${ACTOR}.policy_loss.loss_mode=vanilla") ;;
   *)
      stop "ARM is ${ARM}, but must be fipo, dapo, grpo, shuffled or uniform."
      ;;
esac

submit() {  # verl's overrides, which win over the ones above
   run ray job submit --address "${RAY_DASHBOARD}" -- python3 -m verl.trainer.main_ppo \
      "${DATA_ARGS[@]}" \
      "${ALGORITHM_ARGS[@]}" \
      "${ACTOR_ARGS[@]}" \
      "${ROLLOUT_ARGS[@]}" \
      "${PRECISION_ARGS[@]}" \
      "${SEED_ARGS[@]}" \
      "${TRAINER_ARGS[@]}" \
      "${MODEL_ARGS[@]}" \
      "${LOSS_ARGS[@]}" \
      "$@"
}
