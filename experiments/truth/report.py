"""Fills docs/credit_truth.md from the units that are measured.

python -m experiments.truth.report
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from experiments.report import fill, table
from experiments.truth.measures import over_responses
from experiments.truth.signals import RAW, SIGNALS
from experiments.truth.study import SHOWN_UPDATE, SMOLLM2, UNITS
from fipo.errors import DataError

DOCUMENT = Path(__file__).parents[2] / "docs" / "credit_truth.md"
CHAINS = ("short", "long", SMOLLM2)
FEWEST, TOO_FEW = 20, "–"  # responses with a deciding token: of fewer, no interval is shown
RANK, AUC, LEFT = "rank correlation", "AUC", "left"
KINDS = {"right": True, "wrong": False}  # responses
KNOWN = ("uniform (GRPO)", "truth")  # what their measures are, they are by definition
FOLLOWED = ["FIPO", "FIPO, high only", "FIPO, signed", "own log-ratio, signed", "shuffled"]


def fill_page() -> None:
    """The page's tables and its figure, from what is there."""
    facts = {unit: unit.facts for unit in UNITS if unit.done and not unit.left_out}
    frames = [
        pd.read_parquet(unit.file("measures.parquet")).assign(
            chain=unit.chain,
            rollout=unit.rollout,
            prompt=lambda frame, unit=unit: [f"{unit.name}/{n}" for n in frame.prompt],
        )
        for unit, one in facts.items()
        if one["decided"]
    ]
    if not frames:
        return
    rows = pd.concat(frames)
    _require_the_same_signals(rows)
    replayed = rows[rows.chain != SMOLLM2]  # SmolLM2 was seen at one update a response, that of its own training
    at_tuned = rows[(rows.factor == 1) & ((rows["update"] == SHOWN_UPDATE) | (rows.chain == SMOLLM2))]
    blocks = {
        "facts": facts_table(facts),
        "signals": signal_table(at_tuned),
        "prediction": prediction_table(at_tuned),
        "updates": split_table(
            replayed[(replayed.factor == 1) | (replayed["update"] == SHOWN_UPDATE)],
            ["update", "factor"],
            "update {:g}, rate × {:.2g}",
        ),
        "stages": split_table(at_tuned[at_tuned.chain != SMOLLM2], ["rollout"], "rollout {}"),
        "gradients": gradient_table(facts),
    }
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), blocks))
    draw(at_tuned, DOCUMENT.with_suffix("") / "deciding_token.png")


def _require_the_same_signals(rows: pd.DataFrame) -> None:
    """Else means over a chain would be over other responses for one signal than for another."""
    for chain, own in rows.groupby("chain"):
        if own.groupby("signal").rollout.nunique().nunique() > 1:
            raise DataError(
                f"Not every signal was measured in every rollout of {chain}; run experiments.truth --again."
            )


def facts_table(facts: dict) -> str:
    headings = {
        "responses": "responses",
        "right": "of which right",
        "decided": "with a deciding token",
        "samples": "samples",
    }
    rows = [
        [
            unit.name,
            *(
                f"{found[name]:.3g}" if isinstance(found[name], float) and name != "right" else f"{found[name]:,.0f}"
                for name in headings
            ),
        ]
        for unit, found in facts.items()
    ]
    rows += [[unit.name, unit.left_out, *[""] * (len(headings) - 1)] for unit in UNITS if unit.done and unit.left_out]
    return table(["chain, seed, rollout", *headings.values()], rows)


def signal_table(rows: pd.DataFrame) -> str:
    """A table a chain: every signal's rank correlation, over both kinds of responses and each, and AUC over each."""
    tables = []
    for chain in present(rows):
        found = []
        for name in [name for name in SIGNALS if name not in KNOWN]:
            own = rows[(rows.chain == chain) & (rows.signal == name)]
            if len(own):
                kinds = [own[own.right == right] for right in KINDS.values()]
                found.append([name, interval(own, RANK), *(interval(some, of) for of in (RANK, AUC) for some in kinds)])
        tables.append(table([chain, RANK, *(f"{column}, {kind}" for column in (RANK, AUC) for kind in KINDS)], found))
    return "\n\n".join(tables)


def prediction_table(rows: pd.DataFrame) -> str:
    """What log-ratio and future_kl themselves follow: what a token changed, or what was still open."""
    found = []
    for chain in present(rows):
        for name in RAW:
            own = rows[(rows.chain == chain) & (rows.signal == name)]
            kinds = [own[own.right == right] for right in KINDS.values()]
            found.append([chain, name, *(interval(some, column) for some in kinds for column in (RANK, LEFT))])
    headings = [f"{kind}: with {what}" for kind in KINDS for what in ("V(y≤t) − V(y<t)", "R − V(y<t)")]
    return table(["chain", "", *headings], found)


def split_table(rows: pd.DataFrame, columns: list[str], heading: str) -> str:
    """A table a chain: the followed signals, a row a measure, a column where `columns` differ."""
    tables = []
    for chain in present(rows):
        here = rows[rows.chain == chain]
        cases = here[columns].drop_duplicates().sort_values(columns).values.tolist()
        found = []
        for name in FOLLOWED:
            for kind in ("", *KINDS):
                if (name, kind) == ("FIPO, signed", "right"):
                    continue  # FIPO's own: the advantage is positive
                own = here[(here.signal == name) & (here.right == KINDS[kind] if kind else True)]
                cells = [interval(own[(own[columns] == case).all(axis=1)], AUC if kind else RANK) for case in cases]
                if set(cells) != {TOO_FEW}:
                    found.append([f"{name}: {AUC}, {kind}" if kind else f"{name}: {RANK}", *cells])
        tables.append(table([chain, *(heading.format(*case) for case in cases)], found))
    return "\n\n".join(tables)


def gradient_table(facts: dict) -> str:
    """Means over units, the chains side by side."""
    measures = {"with the truth": "cosine with the truth's", "signal-to-noise": "signal-to-noise"}
    of_chain = {
        chain: [one["gradients"] for unit, one in facts.items() if unit.chain == chain and "gradients" in one]
        for chain in CHAINS
    }
    of_chain = {chain: own for chain, own in of_chain.items() if own}
    found = []
    for name in SIGNALS:
        means = [
            f"{sum(one[name][measure] for one in own) / len(own):.3f}" if all(name in one for one in own) else TOO_FEW
            for own in of_chain.values()
            for measure in measures
        ]
        found += [[name, *means]] if set(means) - {TOO_FEW} else []
    return table(["signal", *(f"{chain}: {measure}" for chain in of_chain for measure in measures.values())], found)


def present(rows: pd.DataFrame) -> list[str]:
    return [chain for chain in CHAINS if (rows.chain == chain).any()]


def interval(rows: pd.DataFrame, column: str) -> str:
    if len(rows) < FEWEST:
        return TOO_FEW
    middle, low, high = over_responses(rows[column].tolist(), rows.prompt.tolist())
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def draw(rows: pd.DataFrame, file: Path) -> None:
    """Where the deciding token ranks by each signal's size, with intervals, a panel a chain."""
    names = [name for name in SIGNALS if name not in ("truth", "uniform (GRPO)") and (rows.signal == name).any()][::-1]
    chains = present(rows)
    how = {"figsize": (2.5 + 3.5 * len(chains), 5), "sharey": True, "layout": "constrained", "squeeze": False}
    figure, (panels,) = plt.subplots(1, len(chains), **how)
    for panel, chain in zip(panels, chains, strict=True):
        for (kind, right), offset, colour in zip(KINDS.items(), (0.15, -0.15), ("#009e73", "#d55e00"), strict=True):
            for place, name in enumerate(names):
                own = rows[(rows.chain == chain) & (rows.signal == name) & (rows.right == right)]
                if len(own) < FEWEST:
                    continue
                middle, low, high = over_responses(own[AUC].tolist(), own.prompt.tolist())
                error = [[middle - low], [high - middle]]
                panel.errorbar(middle, place + offset, xerr=error, fmt="o", color=colour, ms=4)
            panel.plot([], [], "o", color=colour, ms=4, label=f"{kind} responses")
        panel.axvline(0.5, color="grey", lw=0.8)
        panel.set_yticks(range(len(names)), names)
        panel.set_xlim(0, 1)
        panel.set_title("SmolLM2-135M" if chain == SMOLLM2 else f"{chain} chains")
        panel.set_xlabel("AUC for the deciding token")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    fill_page()
