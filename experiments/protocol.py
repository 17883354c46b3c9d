"""What is run, as data: settings, arms, seeds. docs/evidence.md says why."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from fipo import FIPOParams

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Setting:
    """One task and one budget; the same for all arms."""

    name: str
    prompts: int  # problems in a rollout
    rollouts: int
    learning_rate: float  # the best of LEARNING_RATES for the GRPO arm
    eval_every: int  # rollouts
    eval_problems: int
    final_problems: int
    group: int = 8  # responses to a problem
    warmup_rollouts: int = 4
    epsilon_low: float = 0.2
    epsilon_high: float = 0.28
    max_grad_norm: float = 1.0


SETTINGS = {
    "short": Setting("short", 32, 20, 3e-5, eval_every=4, eval_problems=128, final_problems=512),
    "long": Setting("long", 12, 12, 1e-4, eval_every=3, eval_problems=64, final_problems=256),
}
# larger_number/recipe.yaml as it is, 14 rollouts of 8 × 8
SMOLLM2 = Setting("smollm2", 8, 14, 1e-3, eval_every=4, eval_problems=64, final_problems=64)
SMOLLM2_FLAGS = {"eval_size": 64, "eval_every": 32, "fipo_trace_every": 0, "sample_every": 0}


@dataclass(frozen=True)
class Arm:
    """One way to weigh tokens. Arms differ in nothing else, unless their name says so."""

    name: str
    control: str | None = None  # of fipo.core.control; None: FIPO's own weights
    signed: str | None = None  # weights exp(sign(A) · this), of FIPOOutput; None: FIPO's own
    params: FIPOParams = field(default_factory=FIPOParams)
    updates: int = 8  # per rollout
    bf16: bool = False  # logits rounded to bfloat16 before the log-probs, of both policies
    forward: str | None = None  # of body and head, of both policies: in ROUNDED_FORWARDS; None: float32
    learning_rate: float | None = None  # None: the setting's


GRPO = Arm("grpo", control="none")
FIPO = Arm("fipo")
SHUFFLED = Arm("shuffled", control="shuffle")
UNIFORM = Arm("uniform", control="uniform")
ARMS = [GRPO, FIPO, SHUFFLED, UNIFORM]
SEEDS, SMOLLM2_SEEDS = range(10), range(3)

LEARNING_RATES = (3e-5, 1e-4, 3e-4)
SELECTION = [Arm(f"grpo_lr_{rate:g}", control="none", learning_rate=rate) for rate in LEARNING_RATES]
SELECTION_SEEDS = range(100, 102)  # none of SEEDS: the rate is not fitted to the runs that count

HIGHER_RATE = 1e-4  # the policy drifts further within a rollout, so the weights are larger
ABLATIONS = {
    "decay rate": [Arm(f"decay_{rate:g}", params=FIPOParams(decay_rate=rate)) for rate in (4, 8, 128, math.inf)],
    "clip range": [
        *[Arm(f"clip_{c:g}", params=FIPOParams(clip_ratio_low=c, clip_ratio_high=c)) for c in (0.1, 0.5)],
        Arm("high_only", params=FIPOParams(clip_high_only=True)),
    ],
    "updates per rollout": [
        arm for n in (2, 4, 16) for arm in (Arm(f"grpo_updates_{n}", "none", updates=n), Arm(f"updates_{n}", updates=n))
    ],
    "no mask, no safety": [Arm("unguarded", params=FIPOParams(dual_clip_c=math.inf, safety_thresh=math.inf))],
    "higher learning rate": [
        replace(arm, name=f"{arm.name}_rate_{HIGHER_RATE:g}", learning_rate=HIGHER_RATE) for arm in ARMS
    ],
    "bfloat16 log-probs": [Arm("grpo_bf16", control="none", bf16=True), Arm("bf16", bf16=True)],
}
ABLATION_SETTING, ABLATION_SEEDS = "short", range(5)
# What stood out among the ablations, once more, on seeds that had no part in choosing it
CONFIRMED = [arm for arms in ABLATIONS.values() for arm in arms if arm.name in ("decay_8", "updates_16")]
CONFIRMATION_SEEDS = range(5, 10)
# What docs/credit_truth.md found to point at the true credit, on seeds that had no part in finding it
SIGNED = [Arm("signed_future_kl", signed="future_kl"), Arm("signed_log_ratio", signed="log_ratio")]
SIGNED_SEEDS = range(10, 18)
# Does it matter for learning that forwards round? docs/precision.md
ROUNDED_FORWARDS = ("bfloat16", "4 bits")
ROUNDED_RATE = 1e-5  # at which log-ratios are of the size of bfloat16's rounding
ROUNDED = {
    forward: [
        replace(
            arm,
            name="_".join([arm.name, f"rate_{ROUNDED_RATE:g}", *([forward.replace(" ", "_")] if forward else [])]),
            learning_rate=ROUNDED_RATE,
            forward=forward,
        )
        for arm in (GRPO, FIPO, SHUFFLED)
    ]
    for forward in (None, *ROUNDED_FORWARDS)
}
ROUNDED_SEEDS = range(20, 28)


def baseline(arm: Arm) -> Arm:
    """GRPO with everything else as in `arm`: as many updates, log-probs as exact, as high a learning rate."""

    def scaffold(one: Arm) -> Arm:
        return replace(one, name="", control=GRPO.control, params=GRPO.params)

    named = [one for arms in ABLATIONS.values() for one in arms if one.control == GRPO.control]
    return next((one for one in named if scaffold(one) == scaffold(arm)), GRPO)


@dataclass(frozen=True)
class Elsewhere:
    """A setting of another trainer's, told apart by its name."""

    name: str


@dataclass(frozen=True)
class Run:
    """One training."""

    setting: Setting | Elsewhere
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.setting.name}/{self.arm.name}/{self.seed}"

    @property
    def file(self) -> Path:
        return RESULTS / f"{self.name}.json"


def selection_runs() -> list[Run]:
    return [Run(s, arm, seed) for s in SETTINGS.values() for seed in SELECTION_SEEDS for arm in SELECTION]


def main_runs() -> list[Run]:
    """Seed by seed, so that an interrupted series holds whole comparisons."""
    return [Run(setting, arm, seed) for seed in SEEDS for setting in SETTINGS.values() for arm in ARMS]


def smollm2_runs() -> list[Run]:
    return [Run(SMOLLM2, arm, seed) for seed in SMOLLM2_SEEDS for arm in ARMS]


def ablation_runs() -> list[Run]:
    setting = SETTINGS[ABLATION_SETTING]
    return [Run(setting, arm, seed) for seed in ABLATION_SEEDS for arms in ABLATIONS.values() for arm in arms]


def confirmation_runs() -> list[Run]:
    """FIPO and GRPO with the default knobs and these seeds are among the main runs."""
    arms = [one for arm in CONFIRMED for one in (baseline(arm), arm) if one is not GRPO]
    return [Run(SETTINGS[ABLATION_SETTING], arm, seed) for seed in CONFIRMATION_SEEDS for arm in arms]


def signed_runs() -> list[Run]:
    """Seed by seed."""
    arms = [GRPO, FIPO, *SIGNED]
    return [Run(SETTINGS[ABLATION_SETTING], arm, seed) for seed in SIGNED_SEEDS for arm in arms]


def rounded_runs() -> list[Run]:
    """Seed by seed."""
    arms = [arm for arms in ROUNDED.values() for arm in arms]
    return [Run(SETTINGS[ABLATION_SETTING], arm, seed) for seed in ROUNDED_SEEDS for arm in arms]


SERIES = {
    "select": selection_runs,
    "main": main_runs,
    "ablations": ablation_runs,
    "smollm2": smollm2_runs,
    "confirm": confirmation_runs,
    "signed": signed_runs,
    "rounded": rounded_runs,
}
