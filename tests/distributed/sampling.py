"""Sampling and mini-batches that do not depend on the number of processes, so that runs can be compared by step."""

import hashlib
import os

import torch
import trl.trainer.grpo_trainer as grpo

from fipo.trainer import FIPOTrainer

PROCESSES = 2  # of the runs that are compared with one process


def make_independent_of_processes():
    draw_by_place()
    keep_mini_batches()


def draw_by_place():
    """Tokens by noise that depends on rollout, prompt, copy of the prompt and position alone."""
    multinomial, generate, keys = torch.multinomial, FIPOTrainer._generate_single_turn, []

    def noise(key, size):
        digest = hashlib.sha256(f"{key} {keys[0]}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        return torch.empty(size, dtype=torch.float64).exponential_(generator=generator)

    def draw(probs, num_samples=1, **options):
        if not keys:
            return multinomial(probs, num_samples, **options)
        _, *rows = keys
        chosen = (probs.double() / torch.stack([noise(key, probs.shape[1]) for key in rows])).argmax(-1, keepdim=True)
        keys[0] += 1
        return chosen

    def keyed(trainer, prompt_ids, *args, **kwargs):
        copies, keys[:] = {}, [0]  # the position, and what tells the rows apart
        for ids in map(tuple, prompt_ids):
            copies[ids] = copies.get(ids, -1) + 1
            keys.append((trainer._step, ids, copies[ids], trainer.model.training))
        try:
            return generate(trainer, prompt_ids, *args, **kwargs)
        finally:
            keys.clear()

    torch.multinomial, FIPOTrainer._generate_single_turn = draw, keyed


def keep_mini_batches():
    """Instead of TRL's shuffle: what two processes take of a rollout for an update, one process takes too."""
    world = int(os.environ.get("WORLD_SIZE", 1))

    def order(rows):
        updates = int(os.environ["UPDATES_PER_ROLLOUT"])
        return torch.arange(rows).view(PROCESSES // world, updates, -1).transpose(0, 1).reshape(-1)

    def shuffle(batch):
        rows = next(value.shape[0] for value in batch.values() if isinstance(value, torch.Tensor) and value.dim())
        places = order(rows)

        def pick(value):
            if isinstance(value, torch.Tensor):
                return value[places] if value.dim() else value
            return [value[place] for place in places.tolist()] if isinstance(value, list) else value

        return {name: pick(value) for name, value in batch.items()}

    grpo.shuffle_sequence_dict  # noqa: B018 - fails here if TRL calls it something else
    grpo.shuffle_sequence_dict = shuffle
