"""A task for a run of verl's trainer: sums as prompts, and a reward that a random model of 30,000 parameters meets."""

import json


def write_prompts(path):
    """64 prompts as JSON lines in the columns that verl's data set reads."""
    with open(path, "w") as file:
        for i in range(64):
            row = {
                "data_source": "sums",
                "prompt": [{"role": "user", "content": f"{i // 8}+{i % 8}"}],
                "reward_model": {"style": "rule", "ground_truth": str(i // 8 + i % 8)},
                "extra_info": {"index": i},
            }
            file.write(json.dumps(row) + "\n")
    return str(path)


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """The share of digits: two responses rarely have the same, so there is always an advantage."""
    return sum(character.isdigit() for character in solution_str) / max(len(solution_str), 1)
