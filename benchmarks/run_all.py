"""Runs every benchmark; writes results.json, tables.md and the plots of docs/performance.md. `make bench` calls it.

python -m benchmarks.run_all           # three quarters of an hour on two cores
python -m benchmarks.run_all --draw    # from the results.json that is there
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks import future_kl, lm_head, measure, precision, tracing, train_step

FOLDER = Path(__file__).parent / "results"
BENCHMARKS = {
    "future_kl": future_kl,
    "precision": precision,
    "lm_head": lm_head,
    "train_step": train_step,
    "tracing": tracing,
}
COLUMNS = {  # benchmark → column → (heading, format)
    "future_kl": {
        "shape": ("B × T", ""),
        "fipo_ms": ("fipo, ms", ".3f"),
        "copy_ms": ("one copy, ms", ".4f"),
        "times_copy": ("÷ copy", ".1f"),
        "pr1801_ms": ("chunked product of PR 1801, ms", ",.1f"),
        "times_faster": ("times faster", ",.0f"),
    },
    "precision": {
        "path": ("path", ""),
        "log_ratio": ("mean error of the log-ratio", ".1e"),
        "weight": ("mean error of the weight", ".1e"),
        "grad_hidden": ("relative error of the hidden states' gradient", ".1e"),
        "grad_head": ("relative error of the head's gradient", ".1e"),
    },
    "lm_head": {
        "shape": ("model, B×T×H×V", ""),
        "dtype": ("dtype", ""),
        "contender": ("contender", ""),
        "median_s": ("median, s", ".2f"),
        "min_s": ("min, s", ".2f"),
        "max_s": ("max, s", ".2f"),
        "times_products": ("÷ products", ".2f"),
        "peak_mb": ("peak memory, MB", ",.0f"),
    },
    "train_step": {
        "trainer": ("trainer", ""),
        "rows": ("sequences", "d"),
        "length": ("completion", "d"),
        "median_s": ("median, s", ".2f"),
        "min_s": ("min, s", ".2f"),
        "max_s": ("max, s", ".2f"),
        "times_grpo": ("÷ GRPO", ".2f"),
        "peak_mb": ("peak memory, MB", ",.0f"),
        "longest": ("longest completion in 12 GB", "d"),
    },
    "tracing": {
        "rows": ("sequences", "d"),
        "length": ("completion", "d"),
        "step_s": ("step, s", ".2f"),
        "write_ms": ("writing its traces, ms", ".0f"),
        "share": ("share of a traced step", ".2%"),
        "share_of_run": ("share of a run's updates", ".2%"),
    },
}
COLOURS = {"products": "0.7", "plain": "#a6611a", "trl": "#dfc27d", "liger": "#80cdc1", "fipo": "#018571"}
COLOURS |= dict.fromkeys(("kept", "recomputed", "frozen"), "#5ab4ac")  # fipo's other ways


def table(rows: list[dict[str, Any]], columns: dict[str, tuple[str, str]]) -> str:
    lines = ["| " + " | ".join(heading for heading, _ in columns.values()) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = ("" if row.get(key) is None else format(row[key], form) for key, (_, form) in columns.items())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_tables(results: dict[str, Any]) -> None:
    parts = []
    for name, columns in COLUMNS.items():
        machine = ", ".join(f"{key} {value}" for key, value in results["machines"][name].items())
        parts.append(f"## {name}\n\nMeasured on: {machine}.\n\n{table(results[name], columns)}")
    (FOLDER / "tables.md").write_text("# Benchmark tables\n\n" + "\n\n".join(parts) + "\n")


def draw_heads(rows: list[dict[str, Any]]) -> None:
    cases = list(dict.fromkeys((row["shape"], row["dtype"]) for row in rows))
    figure, axes = plt.subplots(2, len(cases), figsize=(4 * len(cases), 5), squeeze=False)
    for column, case in enumerate(cases):
        here = [row for row in rows if (row["shape"], row["dtype"]) == case]
        names = [row["contender"] for row in here]
        for line, (key, label) in enumerate({"median_s": "seconds", "peak_mb": "peak memory, MB"}.items()):
            axis = axes[line][column]
            axis.barh(names[::-1], [row[key] for row in here[::-1]], color=[COLOURS[name] for name in names[::-1]])
            axis.set_xlabel(label)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0][column].set_title(f"{case[0]}\n{case[1]}", fontsize=10)
    figure.suptitle("Hidden states → loss and gradients; lower is better")
    figure.tight_layout()
    figure.savefig(FOLDER / "lm_head.png", dpi=110)


def draw_steps(rows: list[dict[str, Any]]) -> None:
    rows = [row for row in rows if "median_s" in row]
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    for axis, (key, label) in zip(axes, {"median_s": "seconds a step", "peak_mb": "process, MB"}.items(), strict=True):
        for offset, (trainer, colour) in enumerate({"GRPO": COLOURS["trl"], "FIPO": COLOURS["fipo"]}.items()):
            values = [row[key] for row in rows if row["trainer"] == trainer]
            axis.bar([i + 0.4 * offset for i in range(len(lengths))], values, width=0.38, label=trainer, color=colour)
        axis.set_xticks([i + 0.2 for i in range(len(lengths))], [f"{length} tokens" for length in lengths])
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False)  # where the bars leave room
    figure.suptitle("One optimizer step on SmolLM2-135M, float32")
    figure.tight_layout()
    figure.savefig(FOLDER / "train_step.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--only", nargs="*", choices=BENCHMARKS, help="measure these again and keep the other results")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / "results.json"
    results = json.loads(file.read_text()) if file.exists() and (options.draw or options.only) else {}
    for name, benchmark in BENCHMARKS.items():
        if not options.draw and (not options.only or name in options.only):
            print(f"== {name}", flush=True)
            results |= {name: benchmark.everything()}
            results.setdefault("machines", {})[name] = measure.machine()
            file.write_text(json.dumps(results, indent=1) + "\n")
    write_tables(results)
    draw_heads(results["lm_head"])
    draw_steps(results["train_step"])


if __name__ == "__main__":
    main()
