"""The command lines: what all runs share, and each scenario's own part."""

from dataclasses import dataclass

from debug_dumps import GROUP_SIZE, GROUPS, ROLLOUTS
from qwen3 import SIZES

# docs/engines.md, "Start": the flags of slime's pull request 1801.
FIPO = """
    --loss-type fipo_loss --fipo-decay-rate 32.0 --fipo-chunk-size 128
    --fipo-clip-ratio-low 0.2 --fipo-clip-ratio-high 0.28 --fipo-clip-high-only
    --fipo-safety-thresh 3.0 --fipo-dual-clip-c 10.0
"""
NEUTRAL = "--loss-type fipo_loss --fipo-clip-ratio-low 0 --fipo-clip-ratio-high 0 --fipo-max-dual-clipped 1000"
GRPO = "--loss-type policy_loss --eps-clip-c 10.0"

SHARED = f"""
    --make-vocab-size-divisible-by 128
    --spec cpu_layers spec --transformer-impl local --cp-comm-type all_gather --no-persist-layer-norm
    --no-rope-fusion --no-masked-softmax-fusion --no-gradient-accumulation-fusion --no-bias-swiglu-fusion
    --attention-dropout 0.0 --hidden-dropout 0.0 --accumulate-allreduce-grads-in-fp32 --attention-softmax-in-fp32
    --debug-train-only --disable-rollout-global-dataset --actor-num-nodes 1
    --num-rollout {ROLLOUTS} --rollout-batch-size {GROUPS} --n-samples-per-prompt {GROUP_SIZE}
    --global-batch-size {GROUP_SIZE}
    --use-dynamic-batch-size --calculate-per-token-loss
    --advantage-estimator grpo --eps-clip 0.2 --eps-clip-high 0.28
    --optimizer adam --lr 1e-3 --lr-decay-style constant --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98
"""

# docs/engines.md, "Start", without the launcher; the hyper-parameters are those of FIPO.
FIPO_CONFIG = """
loss_type: custom_loss
custom_loss_function_path: fipo.engines.slime.fipo_loss_function
custom_megatron_before_train_step_hook_path: fipo.engines.slime.before_train_step
fipo_decay_rate: 32.0
fipo_clip_ratio_low: 0.2
fipo_clip_ratio_high: 0.28
fipo_clip_high_only: true
fipo_safety_thresh: 3.0
fipo_dual_clip_c: 10.0
"""
WITHOUT_CARRY = FIPO_CONFIG.replace("fipo.engines.slime.fipo_loss", "without_carry.fipo_loss")

# π_old away from π_θ, so that every update has dropped, dual-clipped and safety-capped tokens (debug_dumps.py).
AWAY = "--use-rollout-logprobs"
REGULARIZED = "--use-kl-loss --kl-loss-coef 0.1 --kl-loss-type low_var_kl --entropy-coef 0.01 --use-tis"
CHECKPOINTS = "--save {folder}/checkpoints --save-interval 1"
DUMPS = "--save-debug-rollout-data {folder}/dumps/rollout_{{rollout_id}}.pt " + (
    "--save-debug-train-data {folder}/dumps/train_{{rollout_id}}.pt"
)
TRACES = "--fipo-trace-dir {folder}/traces --fipo-trace-every 1 --fipo-trace-samples 8"
TIMED = "--custom-megatron-init-path timed_traces.begin --num-rollout 1"
TRACKED = "--use-wandb --wandb-mode offline --wandb-dir {folder} --wandb-project fipo --wandb-group fipo " + (
    "--disable-wandb-random-suffix"  # for which slime asks W&B for what newer ones no longer have
)
FROM_DUMPS = "--load-debug-rollout-data {dumps}/rollout_{{rollout_id}}.pt"
BY_TRANSFORMERS = "--rollout-function-path rollout_by_transformers.generate --save-hf {folder}/hf/{{rollout_id}}"


@dataclass(frozen=True)
class Scenario:
    """One run: its own flags, in which {folder} is its folder, and how it is spread over processes."""

    flags: str
    rollouts: str = FROM_DUMPS
    launcher: bool = True  # fipo's, or slime's train.py itself
    config: str = ""  # of --custom-config-path
    cp: int = 1
    dp: int = 1
    tp: int = 1
    pp: int = 1
    max_tokens: int = 128  # of a micro-batch
    size: str = "tiny"  # of qwen3.SIZES

    @property
    def processes(self):
        return self.cp * self.dp * self.tp * self.pp

    def command(self, slime, folder, model, dumps):
        """What a user types after `python`."""
        config = folder / "config.yaml"
        config.write_text(f"bf16: false\n{self.config}")
        return [
            *(["-m", "fipo.engines.slime", "train.py"] if self.launcher else [slime / "train.py"]),
            *f"{SIZES[self.size].megatron_flags} {SHARED}".split(),
            *("--hf-checkpoint", model, "--load", model, "--ref-load", model),
            *("--custom-config-path", config),
            *("--actor-num-gpus-per-node", self.processes, "--num-gpus-per-node", self.processes),
            *("--context-parallel-size", self.cp, "--tensor-model-parallel-size", self.tp),
            *("--pipeline-model-parallel-size", self.pp),
            *("--max-tokens-per-gpu", self.max_tokens),
            *f"{self.rollouts} {self.flags}".format(folder=folder, dumps=dumps).split(),
        ]


SCENARIOS = {
    "fipo": Scenario(f"{FIPO} {CHECKPOINTS}"),
    "cp2": Scenario(FIPO, cp=2),
    "config": Scenario("", launcher=False, config=FIPO_CONFIG),
    "resumed": Scenario(f"{FIPO} --load {{folder}}/start"),
    "neutral": Scenario(NEUTRAL),
    "grpo": Scenario(GRPO, launcher=False),
    "loop": Scenario(f"{FIPO} {CHECKPOINTS} --num-rollout 10 --lr 1e-2", rollouts=BY_TRANSFORMERS, cp=2),
    "away_shuffled": Scenario(f"{FIPO} {AWAY} --fipo-control shuffle"),
    "away_shuffled_cp2_tp2": Scenario(f"{FIPO} {AWAY} --fipo-control shuffle", cp=2, tp=2),
    "away": Scenario(f"{FIPO} {AWAY} {DUMPS} {TRACES} {TRACKED}"),
    "away_small_micro_batches": Scenario(f"{FIPO} {AWAY}", max_tokens=64),
    "away_cp2": Scenario(f"{FIPO} {AWAY}", cp=2),
    "away_dp2": Scenario(f"{FIPO} {AWAY} {TRACES}", dp=2),
    "away_tp2": Scenario(f"{FIPO} {AWAY}", tp=2),
    "away_cp2_tp2": Scenario(f"{FIPO} {AWAY} {TRACES}", cp=2, tp=2),
    "away_pp2": Scenario(f"{FIPO} {AWAY} {TRACES}", pp=2),
    "away_cp2_pp2": Scenario(f"{FIPO} {AWAY} {TRACES}", cp=2, pp=2),
    "away_without_carry": Scenario(AWAY, launcher=False, config=WITHOUT_CARRY, cp=2),
    "timed": Scenario(f"{FIPO} {AWAY} {TRACES} --fipo-trace-samples 16 {TIMED}", max_tokens=2048, size="19 million"),
    "regularized": Scenario(f"{FIPO} {REGULARIZED}"),
    "regularized_cp2": Scenario(f"{FIPO} {REGULARIZED}", cp=2),
}
