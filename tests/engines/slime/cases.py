"""The updates that ranks.py takes and test_slime_loss.py looks at: samples, options of slime's users, and splits."""

import os

MILES, SLIME = (os.environ.get(name) for name in ("MILES_SRC", "SLIME_SRC"))

# (prompt, response) of support/one_truth.py's rows: prompts longer than a chunk, uneven chunks; the dropped row's two
# dual-clipped tokens lie on two context-parallel ranks.
LENGTHS = [(3, 23), (1, 1), (4, 9), (9, 17), (20, 14), (5, 20)]
ROLLOUTS = [0, 1, 2, 3, 4, 4]  # samples 4 and 5 are one rollout
NEUTRAL = {"clip_ratio_low": 0.0, "clip_ratio_high": 0.0, "max_dual_clipped": 10**6}

REGULARIZED = {"use_kl_loss": True, "entropy_coef": 0.05}  # as in one_truth
REJECTS = {"custom_tis_function_path": "slime_custom.reject_every_third"}
RULE = {"fipo_rule": "python:core.test_rules:falling"}
OPTIONS = {
    "plain": {},
    "high_only": {"fipo_clip_high_only": True},
    "trained_distance": {"fipo_distance": "trained", "fipo_decay_rate": 4.0},
    "tis": {"use_tis": True},
    "tis_custom": {"use_tis": True, **REJECTS},
    "mismatch": {"get_mismatch_metrics": True, **REJECTS},
    "opsm": {"use_opsm": True},
    "token_mean": {"calculate_per_token_loss": True},
    "per_token": {"calculate_per_token_loss": True, **REGULARIZED},
    "recompute": {"recompute_loss_function": True, "use_opsm": True, **REGULARIZED},
    "rollout_logprobs": {"use_rollout_logprobs": True},
    "shuffle": {"fipo_control": "shuffle"},
    "uniform": {"fipo_control": "uniform"},
    "none": {"fipo_control": "none"},
    "rule": RULE,
    "shuffled_rule": {**RULE, "fipo_control": "shuffle"},
    "no_bounds": {"fipo_clip_ratio_low": 0.0, "fipo_clip_ratio_high": 0.0},
}
if MILES or SLIME:  # what the stand-in has not
    reducer = {"custom_pg_loss_reducer_function_path": "slime_custom.constant_divisor"}
    OPTIONS["others"] = {"use_unbiased_kl": True, "rollout_temperature": 0.8, **reducer, **REGULARIZED}
if SLIME and not MILES:
    OPTIONS["top_p"] = {"rollout_top_p": 0.9}
    OPTIONS |= {name: {"advantage_estimator": name} for name in ("gspo", "cispo")}

WHOLE = [list(range(len(LENGTHS)))]
ONE_BY_ONE = [[i] for i in range(len(LENGTHS))]  # some ranks then have no response token at all
HALVES = ([[0, 2], [4, 5]], [[1], [3]])  # of two data-parallel ranks, two micro-batches each
# processes → name → (context-parallel size, all-gather, micro-batches of each data-parallel rank)
SPLITS = {
    1: {"whole": (1, False, [WHOLE]), "one_by_one": (1, False, [ONE_BY_ONE])},
    # The groups are rebuilt in between.
    2: {"cp2": (2, False, [WHOLE]), "dp2": (1, False, HALVES), "cp2_one_by_one": (2, False, [ONE_BY_ONE])},
    4: {"cp2_dp2": (2, False, HALVES), "cp4": (4, False, [ONE_BY_ONE])},
}
if MILES or SLIME:  # another layout of logits, which slime takes back to the zigzag
    SPLITS[2] |= {"cp2_allgather": (2, True, [WHOLE]), "cp2_allgather_one_by_one": (2, True, [ONE_BY_ONE])}
COMPARED = ("whole", "cp2")  # with slime's own policy loss


def runs(split, option):
    """slime's own GSPO aborts where a rank without tokens leaves out a collective."""
    return (split, option) != ("cp2_allgather_one_by_one", "gspo")
