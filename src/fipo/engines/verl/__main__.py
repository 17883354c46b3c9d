"""`python -m fipo.engines.verl …` for `python -m verl.trainer.main_ppo …`: checks the configuration, then starts verl."""

import os

import hydra
import verl
from omegaconf import DictConfig
from verl.trainer import main_ppo

from fipo.engines.verl import check_config

CONFIGS = os.path.join(os.path.dirname(verl.__file__), "trainer", "config")


@hydra.main(config_path=CONFIGS, config_name="ppo_trainer", version_base=None)
def main(config: DictConfig) -> None:
    """Takes the command line of verl.trainer.main_ppo, Hydra's own flags included."""
    check_config(config)
    main_ppo.main(config)


if __name__ == "__main__":
    main()
