"""The figures of docs/evidence.md."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.protocol import (
    ABLATION_SEEDS,
    ABLATION_SETTING,
    ABLATIONS,
    ARMS,
    FIPO,
    GRPO,
    SETTINGS,
    SHUFFLED,
    SMOLLM2,
    UNIFORM,
    Arm,
    Setting,
    baseline,
)
from experiments.statistics import (
    SCORES,
    Results,
    final_accuracy,
    interquartile_mean,
    interquartile_means,
    of_seeds,
    paired_difference,
    scores,
)

COLOURS = {GRPO: "0.45", FIPO: "#018571", SHUFFLED: "#a6611a", UNIFORM: "#5e3c99"}
LABELS = {GRPO: "GRPO", FIPO: "FIPO", SHUFFLED: "FIPO, weights shuffled", UNIFORM: "FIPO, mean weight"}
MEASURED = {
    "reward": "reward in training",
    "length": "tokens a response",
    "entropy": "entropy, nats",
    "last_fipo/policy_kl": "policy KL,\nlast update",
    "weight_std": "weight's deviation",
    "outside": "share of weights\nat a bound",
}


def draw(results: Results, folder: Path) -> None:
    """Writes every figure that has data into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "legend.frameon": False})
    settings = [s for s in (*SETTINGS.values(), SMOLLM2) if any(run.setting == s for run in results)]
    settings = [s for s in settings if any(of_arm(results, s, arm) for arm in ARMS)]
    if settings:
        draw_curves(results, settings, folder / "curves.png")
        draw_scores(results, settings, folder / "scores.png")
        draw_training(results, settings, folder / "training.png")
    if any(of_arm(results, SETTINGS[ABLATION_SETTING], arm) for arms in ABLATIONS.values() for arm in arms):
        draw_ablations(results, folder / "ablations.png")


def draw_curves(results: Results, settings: list[Setting], file: Path) -> None:
    """Held-out accuracy against samples, and against the time that training took."""
    figure, axes = plt.subplots(2, len(settings), figsize=(4.2 * len(settings), 6), squeeze=False, sharey="col")
    for column, setting in enumerate(settings):
        clock = "cpu_seconds" if setting is not SMOLLM2 else "seconds"
        for arm in ARMS:
            found = of_arm(results, setting, arm)
            if not found:
                continue
            accuracy = np.array([result["evaluations"]["accuracy"] for result in found])
            samples = found[0]["evaluations"]["samples"]
            times = np.mean([np.interp(samples, *from_zero(result["rollouts"], clock)) for result in found], axis=0)
            points = interquartile_means(accuracy)
            band(axes[0, column], samples, points, arm)
            band(axes[1, column], times, points, arm)
        axes[0, column].set(title=setting.name, xlabel="samples")
        axes[1, column].set(xlabel="processor seconds of training" if clock == "cpu_seconds" else "seconds of training")
    for row in axes:
        row[0].set_ylabel("held-out accuracy")
    finish(figure, file, "Interquartile mean over seeds; 95 % bootstrap intervals")


def draw_scores(results: Results, settings: list[Setting], file: Path) -> None:
    """Every seed, the interquartile mean and its interval."""
    figure, axes = plt.subplots(len(SCORES), len(settings), figsize=(4.2 * len(settings), 4.2), squeeze=False)
    for column, setting in enumerate(settings):
        for row, (name, score) in enumerate(SCORES.items()):
            axis = axes[row, column]
            for place, arm in enumerate(reversed(ARMS)):
                values = tuple(scores(results, setting, arm, score).values())
                if values:
                    axis.plot(values, [place + 0.22] * len(values), "|", color=COLOURS[arm], alpha=0.6)
                    interval_bar(axis, place, interquartile_mean(values), COLOURS[arm])
            axis.set(yticks=range(len(ARMS)), xlabel=name)
            axis.set_yticklabels([LABELS[arm] for arm in reversed(ARMS)] if column == 0 else [])
        axes[0, column].set_title(setting.name)
    finish(figure, file, "Interquartile mean over seeds, its 95 % bootstrap interval, and every seed")


def draw_training(results: Results, settings: list[Setting], file: Path) -> None:
    """What the training itself showed."""
    figure, axes = plt.subplots(len(MEASURED), len(settings), figsize=(4.2 * len(settings), 11), squeeze=False)
    for column, setting in enumerate(settings):
        for row, (name, label) in enumerate(MEASURED.items()):
            axis = axes[row, column]
            for arm in ARMS:
                found = [result["rollouts"] for result in of_arm(results, setting, arm)]
                if found:
                    values = np.array([outside(one) if name == "outside" else one[name] for one in found])
                    band(axis, found[0]["samples"], interquartile_means(values), arm)
            axis.set_ylabel(label if column == 0 else "")
        axes[0, column].set_title(setting.name)
        axes[-1, column].set_xlabel("samples")
    finish(figure, file, "Mean over each rollout's updates; interquartile mean over seeds")


def draw_ablations(results: Results, file: Path) -> None:
    """Final accuracy of FIPO and of every ablation, less that of GRPO with everything else the same."""
    setting, results = SETTINGS[ABLATION_SETTING], of_seeds(results, ABLATION_SEEDS)
    arms = [FIPO, *(arm for group in ABLATIONS.values() for arm in group if arm.control != GRPO.control)]
    figure, axis = plt.subplots(figsize=(7, 0.3 * len(arms) + 1.2))
    for place, arm in enumerate(reversed(arms)):
        ours, theirs = (scores(results, setting, one, final_accuracy) for one in (arm, baseline(arm)))
        colour = next(colour for one, colour in COLOURS.items() if one.control == arm.control)
        shared = sorted(ours.keys() & theirs.keys())
        axis.plot([ours[seed] - theirs[seed] for seed in shared], [place + 0.25] * len(shared), "|", color=colour)
        if shared:
            interval_bar(axis, place, paired_difference(ours, theirs), colour)
    axis.axvline(0, color="0.8", zorder=0)
    axis.set(yticks=range(len(arms)), xlabel="final accuracy, less that of GRPO with everything else the same")
    axis.set_yticklabels([arm.name for arm in reversed(arms)])
    finish(figure, file, f"Ablations on {setting.name} chains: interquartile mean, 95 % bootstrap interval, every seed")


def of_arm(results: Results, setting: Setting, arm: Arm) -> list[dict[str, Any]]:
    return [result for run, result in results.items() if (run.setting, run.arm) == (setting, arm)]


def outside(rollouts: dict[str, list[float]]) -> np.ndarray:
    return np.array(rollouts["fipo/weight_at_low"]) + np.array(rollouts["fipo/weight_at_high"])


def from_zero(rollouts: dict[str, list[float]], clock: str) -> tuple[list[float], list[float]]:
    return [0.0, *rollouts["samples"]], [0.0, *rollouts[clock]]


def band(axis: Axes, x: Any, points: np.ndarray, arm: Arm) -> None:
    """Each of `points` (points, 3): an interquartile mean with its interval."""
    middle, low, high = points.T
    axis.plot(x, middle, color=COLOURS[arm], label=LABELS[arm])
    axis.fill_between(x, low, high, color=COLOURS[arm], alpha=0.15, linewidth=0)


def interval_bar(axis: Axes, place: float, found: tuple[float, float, float], colour: str) -> None:
    middle, low, high = found
    axis.plot([low, high], [place, place], color=colour, linewidth=4, alpha=0.4, solid_capstyle="butt")
    axis.plot([middle], [place], "o", color=colour, markersize=5)


def finish(figure: Any, file: Path, title: str) -> None:
    """Titles the figure, with one legend for all its axes, and writes it."""
    figure.suptitle(title, fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    room = 0.0
    if handles:
        room = 0.3 / figure.get_figheight()
        figure.legend(handles, labels, loc="lower center", ncols=len(handles))
    figure.tight_layout(rect=(0, room, 1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)
