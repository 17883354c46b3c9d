"""The command `fipo`: thin; every subcommand lives where its subject does."""

import argparse
import errno
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from fipo import __version__
from fipo.errors import DataError, FIPOError, InvalidParameterError
from fipo.terminal import did_you_mean, one_line, printable

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
FULL_DISK = ("no space left", "file too large", "file write failed", "disk quota", "i/o error")  # of other libraries
REPORT_PACKAGES = {"numpy", "plotly", "pyarrow", "rich"}
PACKAGES = {  # extra → what it brings
    "report": REPORT_PACKAGES,
    "watch": REPORT_PACKAGES | {"starlette", "uvicorn"},
    "train": REPORT_PACKAGES
    | {"accelerate", "datasets", "math_verify", "peft", "reasoning_gym", "transformers", "trl", "yaml"},
}
OPTIONAL = {  # what a run may ask for → how to install it beside fipo
    "vllm": "pip install '.[vllm]' in a clone of fipo",
    **{name: f"pip install {name}" for name in ("bitsandbytes", "deepspeed", "liger-kernel", "trackio", "wandb")},
}


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are fipo's."""

    def error(self, message: str) -> NoReturn:
        raise InvalidParameterError(f"{message}; `{self.prog} --help` tells more.")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0: it did what was asked. 1: the doctor found what would make a run fail. 2: an expected error, told in one line on
    standard error. 130: Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, commands = _parser()
    if not arguments:
        print(parser.format_help(), file=sys.stderr)
        return 2
    try:
        _require_command(arguments[0], commands)
        options, rest = parser.parse_known_args(arguments)
        if options.command is None:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        if options.command == "train":
            return _train(rest)
        if rest and options.command != "test-reward":
            commands[options.command].error(f"unrecognized arguments: {' '.join(rest)}")
        options.flags = rest
        return options.run(options)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    except FIPOError as error:
        return _fail(str(error))
    except OSError as error:
        if arguments[0] == "train":
            raise
        return _fail(f"{error}; check the path and the room on its disk.")
    except KeyboardInterrupt:
        _fail("Interrupted.")
        return 130


def _parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(prog="fipo", description="Per-token credit for reinforcement learning of language models.")
    parser.add_argument("--version", action="version", version=f"fipo {__version__}")
    subcommands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    added: dict[str, Parser] = {}

    def add(name: str, run: Callable[[argparse.Namespace], int] | None, help: str) -> Parser:
        takes_help = run is not None  # `train` has a help of its own
        added[name] = subcommands.add_parser(name, help=help, description=help, allow_abbrev=False, add_help=takes_help)
        added[name].set_defaults(run=run)
        return added[name]

    add("train", None, "fipo train recipe.yaml [--flag value …]: train")
    init = add("init", _init, "write a commented recipe for a model and data of your own")
    init.add_argument("recipe", type=Path, help="the YAML file to write")
    init.add_argument("--model", required=True, help="a hub name, a folder or a .gguf file")
    init.add_argument("--dataset", required=True, help="rg:task?option=value, a local file, or a hub dataset")
    init.add_argument("--dataset-config", help="of a hub dataset")
    init.add_argument("--dataset-split", help="of a hub dataset")
    init.add_argument("--prompt-column", help="if it has an unusual name")
    init.add_argument("--answer-column", help="if it has an unusual name")
    score = add("test-reward", _test_reward, "score completions with a recipe's rewards, without a model")
    score.add_argument("recipe", help="a recipe whose rewards are used; --flag value … as behind fipo train")
    score.add_argument("completions", type=Path, help="JSONL with completion and answer a line")
    report = add("report", _report, "write one HTML report about runs: curves, and every token's credit")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a file of traces or metrics")
    report.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the report [%(default)s]")
    watch = add("watch", _watch, "the report of runs that are under way, in a browser on this machine")
    watch.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder; it need not exist yet")
    watch.add_argument("--port", type=int, default=0, help="a free one unless given; give one for ssh -L")
    analyze = add("analyze", _analyze, "what the credit did, in numbers, from a run's traces")
    analyze.add_argument("traces", type=Path, help="a run, its traces folder, or a trace file")
    analyze.add_argument("--json", action="store_true", help="print the numbers as JSON")
    importer = add("import", _import, "another stack's dump as traces")
    importer.add_argument("dump", type=Path, help="the dump's file or folder")
    importer.add_argument("--from", dest="kind", required=True, help="slime, fipo-fork or prime-rl")
    importer.add_argument("-o", "--output", type=Path, default=Path("traces.parquet"), help="the trace file to write")
    importer.add_argument("--tokenizer", help="a folder or hub name, for token bytes")
    importer.add_argument("--preset", help="the hyper-parameters of the weights: 7b or 32b")
    importer.add_argument("--current-logprobs", action="store_true", help="slime: log_probs are the current policy's")
    doctor = add("doctor", _doctor, "what this machine has for training, and what would make a run fail")
    about = "trainer (the default: `fipo train`), slime or verl"
    doctor.add_argument("engine", nargs="?", choices=["trainer", "slime", "verl"], default="trainer", help=about)
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")
    return parser, added


def _require_command(word: str, commands: dict[str, Parser]) -> None:
    if word.startswith("-") or word in commands:
        return
    remedy = did_you_mean(word, commands, f"the commands are {', '.join(commands)}.")
    raise InvalidParameterError(f"{word} is no command of fipo; {remedy}")


def _fail(sentence: str) -> int:
    print(f"fipo: {printable(sentence)}", file=sys.stderr)
    return 2


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Around the imports of a subcommand: says what to install where a package of the extra is missing."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in PACKAGES[name]:
            raise
        raise DataError(
            f"{error}; install what is missing with pip install 'fipo[{name}]' (in a clone: '.[{name}]')."
        ) from error


def _train(arguments: list[str]) -> int:
    if not arguments:
        raise InvalidParameterError("fipo train needs a recipe or flags; `fipo train --help` lists them.")
    if any(flag in arguments for flag in ("-h", "--help", "--help-all")):
        with _extra("train"):
            from fipo.run.help import print_help
        return print_help("--help-all" in arguments)
    with _extra("train"):
        from fipo.run.recipe import parse_recipe, read_settings, require_sources

        settings = read_settings(arguments)
        require_sources(settings)  # before slower imports
        _quiet_libraries()
        from fipo.run.train import train
    try:
        return train(*parse_recipe(settings))
    except ImportError as error:
        name = next((name for name in OPTIONAL if name in str(error).lower()), None)
        if name is None:
            raise
        installed = find_spec(name.replace("-", "_")) is not None
        state = f"installed, but cannot be used ({one_line(error)})" if installed else "not installed"
        raise DataError(f"{name} is {state}, but the run asks for it; {OPTIONAL[name]}.") from error
    except Exception as error:  # torch and safetensors tell a full disk in words of their own
        told = isinstance(error, OSError) and error.errno in DISK_ERRORS
        if not told and not any(words in str(error).lower() for words in FULL_DISK):
            raise
        raise DataError(
            f"{one_line(error)}; the last whole checkpoint is untouched: make room and go on with --resume true."
        ) from error


def _quiet_libraries() -> None:
    """Their progress bars and notices of future changes would bury what the run says."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def _init(options: argparse.Namespace) -> int:
    with _extra("train"):
        from fipo.run.sources import require_source

        require_source(options.dataset)  # before slower imports
        from fipo.run.init import write_recipe

        _quiet_libraries()
    about = {"config": options.dataset_config, "split": options.dataset_split}
    about |= {"prompt_column": options.prompt_column, "answer_column": options.answer_column}
    print(write_recipe(options.recipe, options.model, options.dataset, **about))
    return 0


def _test_reward(options: argparse.Namespace) -> int:
    with _extra("train"):
        from fipo.run.score import score_file
    return score_file(options.recipe, options.completions, options.flags)


def _analyze(options: argparse.Namespace) -> int:
    with _extra("report"):
        from fipo.traces import read_traces
        from fipo.traces.analysis import analyze
    traces = read_traces(options.traces)
    result = analyze(traces)
    if options.json:
        print(json.dumps(result | {"problems": traces.problems}, indent=1, allow_nan=False))
        return 0
    weight = result["weight"]
    print(
        f"{result['tokens']:,} trained tokens of {result['completions']:,} completions: weight {weight['mean']:.4f} on "
        f"average, standard deviation {weight['std']:.4f}; {weight['at_low']:.1%} at the lower bound, "
        f"{weight['at_high']:.1%} at the upper one. `fipo report` shows the tables, --json all numbers."
    )
    for sentence in [*result["warnings"], *traces.problems]:
        print(f"! {printable(sentence)}")
    return 0


def _import(options: argparse.Namespace) -> int:
    with _extra("report"):
        from fipo.params import FIPOParams
        from fipo.traces import write_traces
        from fipo.traces.importers import import_dump
    tokenizer = None
    if options.tokenizer:
        with _extra("train"):
            from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
        except (OSError, ValueError) as error:
            raise DataError(
                f"--tokenizer is {options.tokenizer}, but must be a folder with a tokenizer or a name on the hub: "
                f"{error}"
            ) from error
    params = FIPOParams.preset(options.preset) if options.preset else None
    found = import_dump(
        options.kind, options.dump, tokenizer=tokenizer, params=params, current_logprobs=options.current_logprobs
    )
    write_traces(found, options.output, found.params)
    print(f"{len(found)} completions: {options.output}")
    for sentence in found.problems:
        print(f"! {printable(sentence)}")
    return 0


def _report(options: argparse.Namespace) -> int:
    with _extra("report"):
        from fipo.report import read_report
    report = read_report(options.runs)
    path = report.write(options.output)
    for problem in report.problems:
        print(f"fipo: {printable(problem)}", file=sys.stderr)
    print(path)
    return 0


def _watch(options: argparse.Namespace) -> int:
    with _extra("watch"):
        from fipo.report.server import watch
    watch(options.runs, options.port, lambda address: print(f"{address}\nCtrl-C ends it; the runs go on.", flush=True))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from fipo.checks import tell
    from fipo.run.doctor import diagnose_trainer
    from fipo.run.engines_doctor import diagnose_slime, diagnose_verl

    diagnose = {"trainer": diagnose_trainer, "slime": diagnose_slime, "verl": diagnose_verl}[options.engine]
    return tell(diagnose(), options.json)


if __name__ == "__main__":
    sys.exit(main())
