"""The same of a language model: SmolLM2-135M on the demo's task, as the demo itself trains it.

π_old of a rollout is the checkpoint before it, and the log-ratios are those of the demo's traces: of each response at
the update that trained on it.
"""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from experiments.truth.signals import View
from experiments.truth.values import ROUND, Place, Response, Values
from fipo.errors import DataError
from fipo.run.model import end_at, load_model
from fipo.run.rewards import load_rewards
from fipo.traces import Trace, read_traces

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "trl" / "demo.yaml"
FOLDER = ROOT / "runs" / "truth" / "smollm2"
UPDATES = 8  # of a rollout
ROLLOUTS = (1, 3, 5)
SAME_POLICY = 0.05  # mean difference of log-probs: the trainer's logits are float32, these are bfloat16


def train() -> None:
    """The demo up to the last rollout that is measured, with a checkpoint before each."""
    last = FOLDER / f"checkpoint-{UPDATES * (max(ROLLOUTS) + 1)}"
    if last.exists():
        return
    flags = {"output_dir": FOLDER, "save_steps": UPDATES, "save_total_limit": 99, "eval_size": 0, "overwrite": "true"}
    command = [sys.executable, "-m", "fipo.cli", "train", RECIPE, *(f"--{key}={value}" for key, value in flags.items())]
    running = subprocess.Popen(command, cwd=ROOT)
    while running.poll() is None and not last.exists():
        time.sleep(1)
    running.send_signal(signal.SIGINT)
    running.wait()
    if not last.exists():
        raise DataError(f"The demo ended before {last.name}; see what it printed.")


def traced(rollout: int) -> list[Trace]:
    """The rollout's responses that can be measured: away from π_old, and from groups with right and wrong answers."""
    here = [trace for trace in read_traces(FOLDER / "traces") if trace.rollout == rollout]
    rewards: dict[int, set[float]] = {}
    for trace in here:
        rewards.setdefault(trace.group, set()).add(is_right(trace))
    return [trace for trace in here if trace.update > 0 and len(rewards[trace.group]) > 1]


def is_right(trace: Trace) -> float:
    return trace.rewards["last_number"]


def response_of(trace: Trace) -> Response:
    return Response(trace.prompt, trace.token_ids.tolist(), torch.tensor(trace.old_logps), is_right(trace))


def view_of(traces: list[Trace], values: list[Values]) -> View:
    """What signals see."""

    def padded(rows: list[Any]) -> Tensor:
        return pad_sequence([torch.as_tensor(row.copy()) for row in rows], batch_first=True)

    mask = padded([trace.trained for trace in traces])
    return View(
        padded([trace.log_ratio for trace in traces]) * mask,
        mask,
        torch.tensor([float(trace.advantages[0]) for trace in traces]),
        padded([trace.entropy for trace in traces]),
        padded([trace.token_ids for trace in traces]),
        None,
        padded([found.advantage.numpy() for found in values]),
    )


def with_truth(traces: list[Trace], values: list[Values]) -> list[Trace]:
    return [replace(trace, true_advantage=found.advantage.numpy()) for trace, found in zip(traces, values, strict=True)]


class Policy:
    """π_old of a rollout."""

    def __init__(self, rollout: int, responses: list[Response]) -> None:
        recipe = yaml.safe_load(RECIPE.read_text())
        model, self.tokenizer = load_model(recipe["model_name_or_path"], dtype="auto", adapters=True)
        self.ends = torch.tensor(end_at(recipe["stop_character"], model, self.tokenizer))
        self.model = PeftModel.from_pretrained(model, FOLDER / f"checkpoint-{UPDATES * rollout}").eval()
        self.limit, self.responses = recipe["max_completion_length"], responses
        (self.reward,) = load_rewards(["last_number"], max_completion_length=self.limit)
        rows = map(json.loads, (ROOT / recipe["dataset"]).read_text().splitlines())
        self.answers = {row["prompt"]: row["answer"] for row in rows}
        self.prompts = [self.tokenizer(response.problem).input_ids for response in responses]
        self.generator = torch.Generator().manual_seed(rollout)

    @torch.inference_mode()
    def difference(self) -> float:
        """Mean absolute difference of its log-probs from the trainer's old ones.

        Raises:
            DataError: It is too large for this to be π_old.
        """
        differences = []
        for prompt, response in zip(self.prompts, self.responses, strict=True):
            ids = torch.tensor([[*prompt, *response.ids]])
            logps = self.model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            logps = logps.gather(-1, ids[0, len(prompt) :, None])[:, 0]
            differences.append((logps - response.logps).abs())
        mean = float(torch.cat(differences).mean())
        if mean > SAME_POLICY:
            raise DataError(
                f"The checkpoint's log-probs differ from the trace's by {mean:.3f} on average, so it is not the policy "
                "that sampled them; delete the run and train again."
            )
        return mean

    def right_from(self, places: list[Place]) -> list[int]:
        """How many of ROUND continuations of each prefix, all of one length, end in a right answer."""
        starts = [self.responses[row].ids[:t] for row, t in places]
        prefixes = torch.tensor([[*self.prompts[row], *start] for (row, _), start in zip(places, starts, strict=True)])
        rests = self._sample(prefixes, self.limit - len(starts[0]))
        found = []
        for place, (row, _) in enumerate(places):
            ids = [starts[place] + rest for rest in rests[place * ROUND : (place + 1) * ROUND]]
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            scores = self.reward(texts, ids, answer=[self.answers[self.responses[row].problem]] * ROUND)
            found.append(int(sum(score or 0 for score in scores)))
        return found

    @torch.inference_mode()
    def _sample(self, prefixes: Tensor, most: int) -> list[list[int]]:
        """ROUND continuations of each of (P, L) at temperature 1, with their end; a prefix is read once."""
        out = self.model(prefixes, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        cache.batch_repeat_interleave(ROUND)
        logits = out.logits[:, -1].repeat_interleave(ROUND, 0)
        rows = torch.arange(len(logits))
        found: list[list[int]] = [[] for _ in rows]
        for _ in range(most):
            tokens = torch.multinomial(logits.float().softmax(-1), 1, generator=self.generator)
            for row, token in zip(rows.tolist(), tokens[:, 0].tolist(), strict=True):
                found[row].append(token)
            going = (~torch.isin(tokens[:, 0], self.ends)).nonzero()[:, 0]
            if not len(going):
                break
            rows = rows[going]
            cache.batch_select_indices(going)
            logits = self.model(tokens[going], past_key_values=cache, use_cache=True).logits[:, -1]
        return found
