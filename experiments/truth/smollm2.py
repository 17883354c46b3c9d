"""The same of a language model: SmolLM2-135M on the demo's task, as the demo itself trains it.

π_old of a rollout is the checkpoint before it, and the log-ratios are those of the demo's traces: of each response at
the update that trained on it.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from experiments.truth.last_layer import delta
from experiments.truth.signals import View
from experiments.truth.values import ROUND, Continuation, Place, Response, Values
from fipo.errors import DataError
from fipo.run.model import end_at, load_model
from fipo.run.rewards import load_rewards
from fipo.traces import Trace, read_traces

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "trl" / "demo.yaml"
FOLDER = ROOT / "runs" / "truth" / "smollm2"
UPDATES = 8  # of a rollout
ROLLOUTS = (1, 3, 5)
OTHER_PROMPTS = 4  # to which a prompt is changed
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
    """All of the rollout's responses."""
    return [trace for trace in read_traces(FOLDER / "traces") if trace.rollout == rollout]


def measurable(traces: list[Trace]) -> list[int]:
    """Which of a rollout's can be measured: away from π_old, and from groups with right and wrong answers."""
    rewards: dict[int, set[float]] = {}
    for trace in traces:
        rewards.setdefault(trace.group, set()).add(is_right(trace))
    return [row for row, trace in enumerate(traces) if trace.update > 0 and len(rewards[trace.group]) > 1]


def is_right(trace: Trace) -> float:
    return trace.rewards["last_number"]


def response_of(trace: Trace) -> Response:
    return Response(trace.prompt, trace.token_ids.tolist(), torch.tensor(trace.old_logps), is_right(trace))


def other_sums_shown(prompt: str, number: int) -> str:
    """The prompt's question after two other worked sums: what should not matter to its answer."""
    drawing, question, shown = random.Random(number), prompt.splitlines()[-1], []
    while len(shown) < 2:
        a, b, c = (drawing.randint(1, 6) for _ in range(3))
        line = f"{a} + {b} + {c} -> {a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}"
        if not line.startswith(question):
            shown.append(line)
    return "\n".join([*shown, question])


def view_of(traces: list[Trace], values: list[Values], of_model: dict[str, Tensor]) -> View:
    """What signals see."""
    mask = padded([trace.trained for trace in traces])
    return View(
        padded([trace.log_ratio for trace in traces]) * mask,
        mask,
        torch.tensor([float(trace.advantages[0]) for trace in traces]),
        padded([trace.entropy for trace in traces]),
        padded([trace.token_ids for trace in traces]),
        padded([found.advantage.float().numpy() for found in values]),
        of_model,
    )


def padded(rows: list[Any]) -> Tensor:
    """(R, T, …) of arrays or tensors (T_r, …), with zeros behind."""
    return pad_sequence([torch.tensor(np.asarray(row)) for row in rows], batch_first=True)


def with_truth(traces: list[Trace], values: list[Values]) -> list[Trace]:
    return [
        replace(trace, true_advantage=found.advantage.float().numpy())
        for trace, found in zip(traces, values, strict=True)
    ]


def _standardised(rows: list[Tensor]) -> Iterator[Tensor]:
    """Each of them, in standard deviations from the mean of all."""
    every = torch.cat(rows)
    return iter([(row - every.mean()) / every.std(correction=0).clamp(min=1e-6) for row in rows])


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
        lengths = {len(prompt) for prompt in self.prompts}
        longest = max(len(response.ids) for response in responses)
        if len(lengths) > 1 or longest > self.limit:
            raise DataError(
                f"Prompts must have one length and responses at most {self.limit} tokens, but prompts have "
                f"{sorted(lengths)} tokens and the longest response {longest}; take the demo's data."
            )
        self.generator = torch.Generator().manual_seed(rollout)

    @torch.inference_mode()
    def read(self, prompt: str, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Of a response, log-probs (T,) and the hidden states (T, H) that they come from."""
        start = self.tokenizer(prompt).input_ids
        out = self.model(torch.tensor([[*start, *ids]]), output_hidden_states=True)
        logps = out.logits[0, len(start) - 1 : -1].float().log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        return logps, out.hidden_states[-1][0, len(start) - 1 : -1].float()

    def difference(self) -> float:
        """Mean absolute difference of its log-probs from the trainer's old ones.

        Raises:
            DataError: It is too large for this to be π_old.
        """
        pairs = [(self.read(response.problem, response.ids)[0], response.logps) for response in self.responses]
        mean = float(torch.cat([(own - old).abs() for own, old in pairs]).mean())
        if mean > SAME_POLICY:
            raise DataError(
                f"The checkpoint's log-probs differ from the trace's by {mean:.3f} on average, so it is not the policy "
                "that sampled them; delete the run and train again."
            )
        return mean

    def delta(self, traces: list[Trace]) -> Tensor:
        """(R, T) DelTA's weights of a whole rollout's responses."""
        logps, hidden = zip(*(self.read(trace.prompt, trace.token_ids.tolist()) for trace in traces), strict=True)
        advantages = torch.tensor([float(trace.advantages[0]) for trace in traces])
        return delta(padded(hidden), padded(logps), advantages, padded([trace.trained for trace in traces]))

    def drift(self, traces: list[Trace]) -> Tensor:
        """(R, T) how far a token's probability moves, on average, when other sums are shown.

        In standard deviations from the mean over the tokens of the responses to one prompt.
        """
        moved: dict[int, list[Tensor]] = {}
        for trace in traces:
            prompts = [trace.prompt, *(other_sums_shown(trace.prompt, number) for number in range(OTHER_PROMPTS))]
            own, *others = (self.read(prompt, trace.token_ids.tolist())[0].exp() for prompt in prompts)
            moved.setdefault(trace.group, []).append(torch.stack([(other - own).abs() for other in others]).mean(0))
        standard = {group: _standardised(of_group) for group, of_group in moved.items()}
        return padded([next(standard[trace.group]) for trace in traces])

    def continued(self, places: list[Place]) -> list[list[Continuation]]:
        """ROUND continuations of each prefix, all of one length."""
        starts = [self.responses[row].ids[:t] for row, t in places]
        prefixes = torch.tensor([[*self.prompts[row], *start] for (row, _), start in zip(places, starts, strict=True)])
        rests = self._sample(prefixes, self.limit - len(starts[0]))
        found = []
        for place, (row, _) in enumerate(places):
            ids = [starts[place] + rest for rest in rests[place * ROUND : (place + 1) * ROUND]]
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            scores = self.reward(texts, ids, answer=[self.answers[self.responses[row].problem]] * ROUND)
            found.append([Continuation(tuple(one), bool(score)) for one, score in zip(ids, scores, strict=True)])
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
