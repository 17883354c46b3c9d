"""FIPO on TRL's GRPOTrainer. Needs the extra `train`."""

from fipo.trainer.config import FIPOConfig
from fipo.trainer.trainer import FIPOTrainer

__all__ = ["FIPOConfig", "FIPOTrainer"]
