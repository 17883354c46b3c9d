"""Tables and plots of docs/evidence.md from the results that are there; what is left out is named.

python -m experiments.report
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import alignment, plots
from experiments.protocol import (
    ABLATION_SEEDS,
    ABLATION_SETTING,
    ABLATIONS,
    ARMS,
    CONFIRMATION_SEEDS,
    CONFIRMED,
    FIPO,
    GRPO,
    ROUNDED,
    ROUNDED_RATE,
    ROUNDED_SEEDS,
    SEEDS,
    SELECTION,
    SERIES,
    SETTINGS,
    SHUFFLED,
    SIGNED,
    SIGNED_SEEDS,
    SMOLLM2,
    UNIFORM,
    Arm,
    Elsewhere,
    Setting,
    baseline,
)
from experiments.results import read_results
from experiments.statistics import (
    SCORES,
    Interval,
    Results,
    accuracy_at_start,
    detectable_difference,
    final_accuracy,
    interquartile_mean,
    of_seeds,
    paired_difference,
    probability_of_improvement,
    scores,
    sign_flip_p,
)

DOCUMENT = Path(__file__).parents[1] / "docs" / "evidence.md"
PRECISION = DOCUMENT.with_name("precision.md")
COMPARED = [*SETTINGS.values(), SMOLLM2]
PAIRS = [(FIPO, GRPO), (FIPO, SHUFFLED), (FIPO, UNIFORM), (SHUFFLED, GRPO), (UNIFORM, GRPO)]
SIGNED_PAIRS = [*((arm, other) for arm in SIGNED for other in (GRPO, FIPO)), (FIPO, GRPO)]
ROUNDED_PAIRS = [
    *((fipo, other) for grpo, fipo, shuffled in ROUNDED.values() for other in (grpo, shuffled)),
    *((arm, exact) for arms in [*ROUNDED.values()][1:] for arm, exact in zip(arms, ROUNDED[None], strict=True)),
]
WEIGHT_COLUMNS = {  # column → heading
    "log_ratio": "abs(log_ratio)",
    "future_kl_abs": "abs(future_kl)",
    "fipo/weight_at_low": "below the bounds",
    "fipo/weight_at_high": "above",
    "fipo/policy_kl": "policy KL",
    "fipo/weight_mean": "mean weight",
    "weight_std": "its standard deviation",
    "weight_std_within": "within responses",
}


def main() -> int:
    """Writes the tables into the document and draws the plots; prints what is left out."""
    runs = [run for series in SERIES.values() for run in series()]
    results, excluded = read_results(runs)
    found = blocks(results, excluded, len(runs))
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), found))
    PRECISION.write_text(fill(PRECISION.read_text(), {"learning": rounding_tables(results)}))
    plots.draw(of_seeds(results, SEEDS), DOCUMENT.with_suffix(""))
    print(found["excluded"])
    return 0


def blocks(results: Results, excluded: dict[str, str], total: int) -> dict[str, str]:
    """The document's tables by name."""
    main, signed = of_seeds(results, SEEDS), of_seeds(results, SIGNED_SEEDS)
    return {
        "settings": settings_table(),
        "selection": selection_table(results),
        "accuracy": accuracy_table(main),
        "comparisons": comparison_table(main),
        "seeds": seed_table(main),
        "ablations": ablation_table(of_seeds(results, ABLATION_SEEDS)),
        "confirmation": confirmation_table(of_seeds(results, CONFIRMATION_SEEDS)),
        "signed": comparison_table(signed, [SETTINGS[ABLATION_SETTING]], SIGNED_PAIRS, SIGNED_SEEDS, each_seed=True),
        "weights": weight_table(main),
        "alignment": alignment_table(),
        "excluded": excluded_list(excluded, total),
    }


def fill(document: str, blocks: dict[str, str]) -> str:
    """The document with each `<!-- name -->` … `<!-- /name -->` holding its block.

    Raises:
        ValueError: A block has no place.
    """
    for name, block in blocks.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not place.search(document):
            raise ValueError(f"The document has no place for {name!r}; add <!-- {name} --> and <!-- /{name} -->.")
        document = place.sub(lambda found, block=block: f"{found[1]}{block}\n{found[2]}", document)
    return document


def settings_table() -> str:
    """What the settings of (a) differ in."""
    columns = {
        "setting": "{s.name}",
        "problems × responses per rollout": "{s.prompts} × {s.group}",
        "rollouts": "{s.rollouts}",
        "of which warm-up, linear": "{s.warmup_rollouts}",
        "updates": "{updates}",
        "learning rate": "{s.learning_rate:g}",
        "held-out problems, every … rollouts": "{s.eval_problems}, {s.eval_every}",
        "at the end": "{s.final_problems}",
    }
    rows = [[cell.format(s=s, updates=8 * s.rollouts) for cell in columns.values()] for s in SETTINGS.values()]
    return table(list(columns), rows)


def accuracy_table(results: Results, settings: Sequence[Setting | Elsewhere] = COMPARED) -> str:
    rows = []
    for setting in settings:
        for arm in ARMS:
            found = {name: scores(results, setting, arm, score) for name, score in SCORES.items()}
            count = len(found["final accuracy"])
            if count:
                estimates = [interval(interquartile_mean(tuple(values.values()))) for values in found.values()]
                start = np.mean(list(scores(results, setting, arm, accuracy_at_start).values()))
                ends = list(found["final accuracy"].values())
                spread = [f"{100 * np.std(ends, ddof=1):.1f}" if count > 1 else "–", f"{100 * min(ends):.1f}"]
                rows.append([setting.name, arm.name, str(count), f"{100 * start:.1f}", *estimates, *spread])
    headings = ["at the start, %", *(f"{name}, %" for name in SCORES)]
    return table(["setting", "arm", "seeds", *headings, "standard deviation of final accuracy", "lowest seed, %"], rows)


def comparison_table(
    results: Results,
    settings: Sequence[Setting | Elsewhere] = COMPARED,
    pairs: Sequence[tuple[Arm, Arm]] = PAIRS,
    seeds: range = SEEDS,
    *,
    each_seed: bool = False,
) -> str:
    """An interval is in bold where it excludes zero and comes from all seeds: over few it is too narrow to say so."""
    rows = []
    for setting in settings:
        for ours, theirs in pairs:
            row = [setting.name, f"{ours.name} − {theirs.name}"]
            for name, score in SCORES.items():
                pair = [scores(results, setting, arm, score) for arm in (ours, theirs)]
                shared = pair[0].keys() & pair[1].keys()
                if len(shared) > 1:
                    row.append(interval(paired_difference(*pair), sign="+", bold=len(shared) >= len(seeds)))
                    if name == "final accuracy":
                        row += [f"{sign_flip_p(*pair):.2g}", f"{100 * detectable_difference(*pair):.1f}"]
                        row += [seed_by_seed(*pair)] if each_seed else []
            rows += [row] if len(row) > 2 else []
    final, area = (f"{name}: difference, points" for name in SCORES)
    columns = ["sign-flip p", "detectable at 80 % power, points", *["of each seed"] * each_seed]
    return table(["setting", "pair", final, *columns, area], rows)


def rounding_tables(results: Results) -> str:
    """What each arm reached in each forward, and the differences."""
    setting, found = SETTINGS[ABLATION_SETTING], of_seeds(results, ROUNDED_SEEDS)
    rows = []
    for forward, arms in ROUNDED.items():
        for arm in arms:
            each = [tuple(scores(found, setting, arm, score).values()) for score in SCORES.values()]
            if each[0]:
                estimates = [interval(interquartile_mean(values)) for values in each]
                rows.append([forward or "float32", arm.name.split("_")[0], str(len(each[0])), *estimates])
    reached = table(["forward", "arm", "seeds", *(f"{name}, %" for name in SCORES)], rows)
    compared = comparison_table(found, [setting], ROUNDED_PAIRS, ROUNDED_SEEDS, each_seed=True)
    return f"{reached}\n\n{compared}".replace(f"_rate_{ROUNDED_RATE:g}", "")


def seed_table(results: Results) -> str:
    """The primary comparisons, seed by seed."""
    rows = []
    for setting in COMPARED:
        for ours, theirs in PAIRS[:2]:
            a, b = (scores(results, setting, arm, final_accuracy) for arm in (ours, theirs))
            if a.keys() & b.keys():
                better = interval(probability_of_improvement(a, b))
                rows.append([setting.name, f"{ours.name} − {theirs.name}", better, seed_by_seed(a, b)])
    return table(["setting", "pair", "P(better), %", "final accuracy of each seed: difference, points"], rows)


def ablation_table(results: Results) -> str:
    """Differences from GRPO and from FIPO with default hyper-parameters, on the seeds that both have."""
    setting, rows = SETTINGS[ABLATION_SETTING], []
    for arm in [arm for arms in ABLATIONS.values() for arm in arms if arm.control != GRPO.control]:
        row = [arm.name]
        for name, other in (
            ("final accuracy", baseline(arm)),
            ("final accuracy", FIPO),
            ("area under curve", baseline(arm)),
        ):
            ours, theirs = (scores(results, setting, one, SCORES[name]) for one in (arm, other))
            row.append(
                interval(paired_difference(ours, theirs), sign="+") if ours.keys() & theirs.keys() else "not run"
            )
        rows.append(row)
    headings = ["final accuracy − its GRPO", "final accuracy − FIPO", "area under curve − its GRPO"]
    return table(["arm", *(f"{heading}, points" for heading in headings)], rows)


def confirmation_table(results: Results) -> str:
    """What stood out among the ablations, against its GRPO and FIPO with default hyper-parameters."""
    rows = []
    for arm in CONFIRMED:
        for other in dict.fromkeys((FIPO, baseline(arm))):
            ours, theirs = (scores(results, SETTINGS[ABLATION_SETTING], one, final_accuracy) for one in (arm, other))
            if ours.keys() & theirs.keys():
                difference = interval(paired_difference(ours, theirs), sign="+")
                rows.append([f"{arm.name} − {other.name}", difference, seed_by_seed(ours, theirs)])
    return table(["pair", "final accuracy: difference, points", "of each seed"], rows)


def selection_table(results: Results) -> str:
    """A row a learning rate, with both seeds' scores in each setting."""
    rows = []
    for arm in SELECTION:
        found = [list(scores(results, s, arm, score).values()) for s in SETTINGS.values() for score in SCORES.values()]
        rows.append([f"{arm.learning_rate:g}", *(", ".join(f"{100 * value:.1f}" for value in one) for one in found)])
    return table(["learning rate", *(f"{s}, {name}, %" for s in SETTINGS for name in SCORES)], rows)


def weight_table(results: Results) -> str:
    """Means over seeds and rollouts."""
    rows = []
    for setting in COMPARED:
        for arm in ARMS:
            found = [r["rollouts"] for run, r in results.items() if (run.setting, run.arm) == (setting, arm)]
            if found:
                means = [number([np.mean(one[name]) for one in found if name in one]) for name in WEIGHT_COLUMNS]
                rows.append([setting.name, arm.name, *means])
    return table(["setting", "arm", *WEIGHT_COLUMNS.values()], rows)


def alignment_table() -> str:
    """Angles between gradients, of experiments.alignment."""
    found = json.loads(alignment.FILE.read_text())
    names = [arm.name for arm in ARMS if arm is not GRPO] + [alignment.HALVES]
    rows = [[case, *(f"{angles[name]:.1f}°" for name in names)] for case, angles in found.items()]
    return table(["setting, learning rate", *names], rows)


def excluded_list(excluded: dict[str, str], total: int) -> str:
    """Every run that is left out, by name, under the reason; further seeds of an arm by their number alone."""
    if not excluded:
        return f"All {total} runs are in."
    by_reason: dict[str, dict[str, list[str]]] = {}
    for name, reason in excluded.items():
        arm, seed = name.rsplit("/", 1)
        by_reason.setdefault(reason, {}).setdefault(arm, []).append(seed)
    lines = []
    for reason, arms in by_reason.items():
        names = "; ".join(f"{arm}/{', '.join(seeds)}" for arm, seeds in arms.items())
        lines.append(f"- {names}: {reason}")
    return f"{total - len(excluded)} of {total} runs are in. Left out:\n\n" + "\n".join(lines)


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def interval(found: Interval, sign: str = "", *, bold: bool = False) -> str:
    """In percent; in bold where it excludes zero, if asked."""
    estimate, low, high = (100 * value for value in found)
    text = f"{estimate:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
    return f"**{text}**" if bold and (low > 0 or high < 0) else text


def seed_by_seed(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """The differences on the seeds that both have, in points."""
    return ", ".join(f"{100 * (ours[seed] - theirs[seed]):+.1f}" for seed in sorted(ours.keys() & theirs.keys()))


def number(values: list[float]) -> str:
    return f"{np.mean(values):.3g}" if values else "–"


if __name__ == "__main__":
    sys.exit(main())
