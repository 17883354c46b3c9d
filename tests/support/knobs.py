"""The README's table of hyper-parameters, from where they are stated, and values that none has by default."""

import math

from fipo.params import KNOBS, FIPOParams

OTHERS = {"decay_rate": math.inf, "clip_ratio_low": 0.1, "clip_ratio_high": 0.3, "clip_high_only": True}
OTHERS |= {"safety_thresh": 4.0, "dual_clip_c": 5.0, "max_dual_clipped": 3, "distance": "trained"}

COLUMNS = {"default": FIPOParams(), "paper, 7B": FIPOParams.preset("7b"), "paper, 32B": FIPOParams.preset("32b")}


def table():
    """Markdown."""
    lines = [f"| `FIPOParams` field, `fipo_…` key | {' | '.join(COLUMNS)} | meaning |", "|" + " --- |" * 5]
    for name, knob in KNOBS.items():
        values = [_shown(getattr(params, name)) for params in COLUMNS.values()]
        lines.append(f"| `{name}` | {' | '.join(values)} | {knob.help} |")
    return "\n".join(lines)


def _shown(value):
    return str(value).lower() if isinstance(value, bool | str) else f"{value:g}"


if __name__ == "__main__":
    print(table())
