"""`fipo precision`: what of a token's weight would be signal, and what rounding, in training a model of one's own."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import get_max_memory
from rich.console import Console
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fipo.errors import DataError, InvalidParameterError
from fipo.messages import one_line
from fipo.params import FIPOParams
from fipo.rounding.drift import Updates, openings, sample
from fipo.rounding.errors import weight_errors
from fipo.rounding.forward import Forward, Responses, logps_of
from fipo.rounding.verdict import Row, best_dtype, settings, table, verdict
from fipo.run.data import load_prompts
from fipo.run.model import load_model
from fipo.traces import Trace, read_traces

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
BYTES_A_WEIGHT = 24  # in float32: itself, its gradient, AdamW's two moments, a copy in another precision, and slack
AN_UPDATE = 2  # responses
CERTAIN = 1e-4  # nats a token


def precision(
    name: str,
    *,
    dataset: str | None,
    prompt_column: str,
    traces: Path | None,
    learning_rate: float,
    updates: int,
    dtypes: list[str],
    responses: int,
    tokens: int,
) -> int:
    """Prints a table of errors, a sentence that judges them and what to set; returns 0.

    A part of the responses is trained on, with advantages of ±1 by chance; the others are measured before and after.
    Raises an InvalidParameterError or a DataError where that cannot be done.
    """
    _check(learning_rate, updates, dtypes, responses, tokens)
    count = responses + AN_UPDATE * updates
    known = None if traces is None else _read(traces, count)
    prompts = openings()
    if dataset is not None:
        prompts = load_prompts(dataset, prompt_column=prompt_column, answer_column="")["prompt"]
    model, tokenizer = load_model(name, dtype="float32", adapters=False)
    model.to(_device(model))
    if known is not None:
        found = _of_traces(known, model, tokenizer, tokens)
    else:
        ids = _ids(prompts, tokenizer, as_text=dataset is None)
        found = sample(model, tokenizer, [ids[row % len(ids)] for row in range(count)], 1, tokens)
    trained, measured = found[: AN_UPDATE * updates], found[AN_UPDATE * updates :]
    console = Console()
    console.print(
        f"{len(measured)} responses of {measured.trained.sum(-1).double().mean():.0f} tokens, scored before and after "
        f"{updates} updates at learning rate {learning_rate:g}, each on {AN_UPDATE} others ({model.device})."
    )

    forwards = {forward for dtype in dtypes for pair in _ways(dtype) for forward in pair[1:3]} | {TRUE}
    before = {forward: logps_of(model, measured, forward) for forward in forwards}
    surprise = -before[TRUE][0][measured.trained].mean().item()
    if not surprise > CERTAIN:
        raise DataError(
            f"The model is certain of its responses ({surprise:.1g} nats a token), so no update moves them; give "
            "prompts with more than one answer by --dataset."
        )
    _train(model, trained, updates, learning_rate)
    after = {forward: logps_of(model, measured, forward) for forward in forwards}

    signs = _signs(len(measured), seed=1).to(model.device)
    rows = []
    for dtype in dtypes:
        for way, forward, true, rounded_logits in _ways(dtype):
            pairs = (after[forward][rounded_logits], before[forward][rounded_logits]), (after[true][0], before[true][0])
            errors = weight_errors(*pairs, signs, measured.trained, FIPOParams())
            rows.append(Row(way, dtype, errors))
    console.print(table(rows))
    console.print(verdict(rows), highlight=False)
    if any(row.is_noise for row in rows):
        console.print(settings(best_dtype(rows)), soft_wrap=True, highlight=False)
    return 0


TRUE = Forward(torch.float32)


def _ways(dtype: str) -> list[tuple[str, Forward, Forward, int]]:
    """Names, forwards, what is true for them, and 1 where logits are rounded."""
    kind = DTYPES[dtype]
    if kind == torch.float32:
        return [(dtype, TRUE, TRUE, 0)]
    whole, autocast, true = Forward(kind), Forward(kind, autocast=True), Forward(kind, weights_alone=True)
    return [
        (dtype, whole, true, 1),  # Megatron, FSDP, vLLM
        (f"{dtype}, exact logits", whole, true, 0),
        (f"{dtype} autocast", autocast, true, 0),  # TRL with fipo's head
    ]


def _check(learning_rate: float, updates: int, dtypes: list[str], responses: int, tokens: int) -> None:
    if unknown := [dtype for dtype in dtypes if dtype not in DTYPES]:
        raise InvalidParameterError(f"dtypes has {unknown[0]!r}, but knows {', '.join(DTYPES)}; choose of these.")
    if not (0 < learning_rate < math.inf):
        raise InvalidParameterError(f"learning_rate is {learning_rate}, but must be above 0; change it.")
    for name, value, least in (("updates", updates, 1), ("responses", responses, 2), ("tokens", tokens, 2)):
        if value < least:
            raise InvalidParameterError(f"{name} is {value}, but must be at least {least}; raise it.")


def _device(model: Any) -> torch.device:
    """A GPU whose memory suffices, else the CPU. Raises a DataError where that is too small too."""
    weights = sum(weight.numel() for weight in model.parameters())
    free = get_max_memory()
    free["cpu"] += 4 * weights  # of the model itself, which is there already
    needed = BYTES_A_WEIGHT * weights
    for place, size in free.items():
        if size > needed:
            return torch.device(place)
    raise DataError(
        f"Measuring the model takes {needed / 2**30:.0f} GiB, but {max(free.values()) / 2**30:.0f} GiB of memory are "
        "free; take a smaller model of its family, whose errors are of the same size."
    )


def _ids(prompts: Sequence[Any], tokenizer: Any, *, as_text: bool) -> list[list[int]]:
    """As `fipo train` tokenizes prompts: chat messages where the tokenizer has a template."""
    if as_text or (tokenizer.chat_template is None and isinstance(prompts[0], str)):
        return tokenizer(list(prompts)).input_ids
    chats = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
    try:
        return tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)["input_ids"]
    except Exception as error:  # there is none, or it raises what programs raise
        raise DataError(f"The prompts do not fit the chat template ({one_line(error)}); give texts.") from error


def _read(path: Path, count: int) -> list[Trace]:
    """The last responses of a run, each once."""
    traces = list({(trace.rollout, trace.sample): trace for trace in read_traces(path)}.values())[-count:]
    if len(traces) < count:
        raise DataError(
            f"{path} has {len(traces)} responses, but {count} are needed; lower --responses or --updates, or give more."
        )
    return traces


def _of_traces(traces: list[Trace], model: Any, tokenizer: Any, tokens: int) -> Responses:
    vocabulary = len(model.get_input_embeddings().weight)
    prompts = [torch.tensor(tokenizer(trace.prompt, add_special_tokens=False).input_ids) for trace in traces]
    responses = [torch.tensor(trace.token_ids[:tokens], dtype=torch.long) for trace in traces]
    if any(len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary for ids in responses):
        raise DataError(f"The traces have token ids beyond the model's {vocabulary}; give the model that made them.")
    trained = [torch.tensor(trace.trained[:tokens], dtype=torch.bool) for trace in traces]
    sides = {"prompts": (prompts, "left"), "responses": (responses, "right")}
    ids = [pad_sequence(rows, batch_first=True, padding_side=side) for rows, side in sides.values()]
    there = [
        pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True, padding_side=side)
        for rows, side in sides.values()
    ]
    masks = pad_sequence(trained, batch_first=True)
    return Responses(torch.cat(ids, 1), torch.cat(there, 1), masks).to(model.device)


def _signs(count: int, seed: int) -> Tensor:
    """Advantages: one half is 1, the other −1, by chance."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return torch.where(order < count / 2, 1.0, -1.0)


def _train(model: Any, responses: Responses, updates: int, learning_rate: float) -> None:
    """Moves the model. AdamW's moments are filled first, with other advantages."""
    training = Updates(model, learning_rate)

    def batches(seed: int) -> list[tuple[Responses, Tensor]]:
        signs = torch.cat([_signs(AN_UPDATE, seed + update) for update in range(updates)]).to(model.device)
        rows = range(0, len(responses), AN_UPDATE)
        return [(responses[row : row + AN_UPDATE], signs[row : row + AN_UPDATE]) for row in rows]

    training.fill_moments(batches(seed=1000))
    for batch in batches(seed=0):
        training.update(*batch)
