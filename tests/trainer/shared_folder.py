"""Run by test_distributed.py on two ranks, each with an output folder of its own, as on machines that share no disk."""

import os
import sys

from support import tiny
from support.harness import COMMON, first_number_odd_is_random

from fipo import InvalidParameterError
from fipo.trainer import FIPOConfig, FIPOTrainer


def main(out, strategy):
    folder = os.path.join(out, os.environ["RANK"])
    options = {**COMMON, "per_device_train_batch_size": 4, "max_steps": 1, "save_strategy": strategy}
    trainer = FIPOTrainer(
        tiny.model(),
        first_number_odd_is_random,
        FIPOConfig(folder, **options),
        train_dataset=tiny.prompts(),
        processing_class=tiny.tokenizer(),
    )
    try:
        trainer.train()
    except InvalidParameterError as error:
        print(f"refused: {error}")
    trainer.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
