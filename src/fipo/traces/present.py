"""The analysis of traces as a person reads it in a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from fipo.messages import printable


def show_analysis(result: dict[str, Any], problems: list[str], console: Console) -> None:
    weight, params = result["weight"], result["params"]
    console.print(
        f"{result['tokens']:,} trained tokens of {result['completions']:,} completions · "
        f"decay rate {params['decay_rate']} · range [{params['weight_low']:g}, {params['weight_high']:g}]"
    )
    console.print(
        _table(
            "Weights",
            [
                {
                    "mean": weight["mean"],
                    "std": weight["std"],
                    "min": weight["min"],
                    "median": weight["deciles"][5],
                    "max": weight["max"],
                    "at the lower bound": _percent(weight["at_low"]),
                    "at the upper bound": _percent(weight["at_high"]),
                }
            ],
        )
    )
    console.print(_table("Flags", [{name: _percent(share) for name, share in result["flags"].items()}]))
    rows = [
        {
            "decay rate": row["decay_rate"],
            "clip ratio": row["clip_ratio"],
            "at the lower bound": _percent(row["at_low"]),
            "at the upper bound": _percent(row["at_high"]),
            "std of the weight": row["std"],
        }
        for row in result["what_if"]
    ]
    console.print(_table("What if", rows))
    explained = {name.replace("_", " "): _percent(share) for name, share in result["explained"].items()}
    console.print(_table("Share of the weights' variance that goes with", [explained]))
    if result["noise_floor"]:
        noise = result["noise_floor"]
        console.print(
            f"Noise floor: |log-ratio| {noise['log_ratio']:.2g}, which moves weights by "
            f"{_percent(noise['weight_shift'])}."
        )
    for sentence in [*result["warnings"], *problems]:
        console.print(f"! {printable(sentence)}", markup=False, soft_wrap=True)


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    return table
