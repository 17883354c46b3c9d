"""What a recipe's dataset names, and whether it is there. Light: it is asked before TRL is imported."""

from pathlib import Path
from typing import Any

from fipo.errors import DataError
from fipo.run.specs import Spec, typed
from fipo.terminal import did_you_mean, nearest_file

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")  # .gz may follow
PROCEDURAL = "rg:"


def require_source(source: str) -> None:
    """Raises an error if `source` names a file, a task or an option that does not exist; the hub is not asked."""
    if source.startswith(PROCEDURAL):
        task_of(source)
    else:
        file_of(source)


def file_of(source: str) -> Path | None:
    """The file that `source` names; None for a dataset of the hub or a folder.

    Raises:
        DataError: It names a file that does not exist, or one of an unknown kind.
    """
    path = Path(source)
    if ending_of(path) in ENDINGS:
        if not path.is_file():
            raise DataError(f"The dataset file {source} does not exist; {nearest_file(path)}")
        return path
    if path.is_file() or (not path.is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1)):
        found = "is a file of an unknown kind" if path.is_file() else "does not exist"
        raise DataError(f"The dataset {source} {found}; name a file that ends in {', '.join(ENDINGS)}.")
    return None


def ending_of(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def task_of(source: str) -> tuple[str, dict[str, Any]]:
    """The task of reasoning-gym that `source` names, and its options.

    Raises:
        DataError: There is none of that name.
        InvalidParameterError: It has no such option, or one of another type.
    """
    from reasoning_gym.factory import DATASETS

    spec = Spec.parse(source.removeprefix(PROCEDURAL))
    if spec.name not in DATASETS:
        known = f"choose one of {', '.join(sorted(DATASETS))}."
        raise DataError(f"reasoning-gym has no task {spec.name!r}; {did_you_mean(spec.name, DATASETS, known)}")
    return spec.name, typed(spec.options, DATASETS[spec.name][1], f"reasoning-gym's {spec.name}")
