"""FIPO on TRL's GRPOTrainer. Needs the extra `train`."""

from fipo.trainer.config import FIPOConfig
from fipo.trainer.credit import Credit, Observer
from fipo.trainer.trainer import FIPOTrainer

__all__ = ["Credit", "FIPOConfig", "FIPOTrainer", "Observer"]
