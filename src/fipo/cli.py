"""The command `fipo`: thin; every subcommand lives where its subject does."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

from fipo import __version__
from fipo.errors import DataError, FIPOError, InvalidParameterError
from fipo.messages import printable


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are fipo's."""

    def error(self, message: str) -> NoReturn:
        raise InvalidParameterError(f"{message}; see `{self.prog} --help`.")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0: it did what was asked. 1: the doctor found what would make a run fail. 2: an expected error, with one line on
    standard error. 130: Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):  # terminals that are not UTF-8 show \u2026 for what they do not have
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    if not arguments:
        print(parser.format_help(), file=sys.stderr)
        return 2
    try:
        options, flags = parser.parse_known_args(arguments)
        if flags and options.command not in ("train", "test-reward"):  # which take those of a recipe
            options.parser.error(f"unrecognized arguments: {' '.join(flags)}")
        options.flags = flags
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


def _parser() -> Parser:
    parser = Parser(prog="fipo", description="Per-token credit for reinforcement learning of language models.")
    parser.set_defaults(parser=parser)
    parser.add_argument("--version", action="version", version=f"fipo {__version__}")
    subcommands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, run: Callable[[argparse.Namespace], int], help: str) -> Parser:
        takes_help = name != "train"  # which has a help of its own
        child = subcommands.add_parser(name, help=help, description=help, allow_abbrev=False, add_help=takes_help)
        child.set_defaults(run=run, parser=child)
        return child

    add("train", _train, "Train with a recipe: fipo train recipe.yaml [--flag value …].")
    init = add("init", _init, "Write a commented recipe for a model and data of your own.")
    init.add_argument("recipe", type=Path, help="the YAML file to write")
    init.add_argument("--model", required=True, help="a hub name, a folder or a .gguf file")
    init.add_argument("--dataset", required=True, help="rg:task, a local file, or a hub dataset")
    init.add_argument("--dataset-config", dest="config", help="of a hub dataset")
    init.add_argument("--dataset-split", dest="split", help="of a hub dataset")
    init.add_argument("--prompt-column", help="if it has an unusual name")
    init.add_argument("--answer-column", help="if it has an unusual name")
    score = add("test-reward", _test_reward, "Score completions with a recipe's rewards, without a model.")
    score.add_argument("recipe", help="a recipe whose rewards are used; --flag value … as behind fipo train")
    score.add_argument("completions", type=Path, help="JSONL with completion and answer a line")
    report = add("report", _report, "Write one HTML report about runs: curves, and every token's credit.")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a file of traces or metrics")
    report.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the report [%(default)s]")
    watch = add("watch", _watch, "Show the report of runs that are under way, in a browser on this machine.")
    watch.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder; it need not exist yet")
    watch.add_argument("--port", type=int, default=0, help="a free one unless given; give one for ssh -L")
    analyze = add("analyze", _analyze, "Summarise the token weights of a run, and warn of what looks wrong.")
    analyze.add_argument("traces", type=Path, help="a run, its traces folder, or a trace file")
    analyze.add_argument("--json", action="store_true", help="print the numbers as JSON")
    precision = add(
        "precision", _precision, "Measure how much of a model's token weights would be rounding, by precision."
    )
    precision.add_argument("model", help="a hub name, a folder or a .gguf file")
    precision.add_argument("--dataset", help="prompts, as of a recipe; openings of texts unless given")
    precision.add_argument("--prompt_column", default="prompt", help="of the dataset [%(default)s]")
    precision.add_argument("--traces", type=Path, help="take the responses of a run, or of an imported dump")
    precision.add_argument("--learning_rate", type=float, default=1e-6, help="[%(default)s]")
    precision.add_argument("--updates", type=int, default=8, help="between two rollouts [%(default)s]")
    precision.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16", "float32"], help="[all three]")
    precision.add_argument("--responses", type=int, default=16, help="to measure [%(default)s]")
    precision.add_argument("--tokens", type=int, default=128, help="of a response, at most [%(default)s]")
    importer = add("import", _import, "Convert a dump of another stack to traces.")
    importer.add_argument("dump", type=Path, help="the dump's file or folder")
    importer.add_argument("--from", dest="kind", required=True, help="slime or prime-rl")
    importer.add_argument("-o", "--output", type=Path, default=Path("traces.parquet"), help="the trace file to write")
    importer.add_argument("--tokenizer", help="a folder or hub name, for token bytes")
    importer.add_argument("--preset", help="the hyper-parameters of the weights: 7b or 32b")
    importer.add_argument("--current-logprobs", action="store_true", help="slime: log_probs are the current policy's")
    doctor = add("doctor", _doctor, "Check what this machine has for training, and what would make a run fail.")
    about = "trainer (the default: `fipo train`), slime or verl"
    doctor.add_argument("engine", nargs="?", choices=["trainer", "slime", "verl"], default="trainer", help=about)
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")
    return parser


def _fail(sentence: str) -> int:
    print(f"fipo: {printable(sentence)}", file=sys.stderr)
    return 2


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Around the imports of a subcommand: says what to install where a package of the extra is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise DataError(
            f"{error}; install what is missing with pip install 'fipo[{name}]' (in a clone: '.[{name}]')."
        ) from error


def _train(options: argparse.Namespace) -> int:
    if not options.flags:
        raise InvalidParameterError("fipo train needs a recipe or flags; `fipo train --help` lists them.")
    with _extra("train"):
        from fipo.run.recipe import split_command

        recipe, flags = split_command(options.flags)  # before slower imports
        _quiet_libraries()
        if {"-h", "--help", "--help-all"} & set(flags):
            from fipo.run.arguments import print_help

            return print_help("--help-all" in flags)
        from fipo.run.train import train
    return train(recipe, flags)


def _quiet_libraries() -> None:
    """Their progress bars and notices of future changes would bury what the run says."""
    os.environ["TQDM_DISABLE"] = "1"  # read where tqdm is imported
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def _init(options: argparse.Namespace) -> int:
    _quiet_libraries()
    with _extra("train"):
        from fipo.run.init import write_recipe
    about = {name: getattr(options, name) for name in ("config", "split", "prompt_column", "answer_column")}
    print(write_recipe(options.recipe, options.model, options.dataset, **about))
    return 0


def _test_reward(options: argparse.Namespace) -> int:
    _quiet_libraries()
    with _extra("train"):
        from fipo.run.recipe import split_command

        recipe, flags = split_command([options.recipe, *options.flags])
        from fipo.run.test_reward import score_file
    return score_file(recipe, flags, options.completions)


def _analyze(options: argparse.Namespace) -> int:
    with _extra("report"):
        from fipo.traces import read_traces
        from fipo.traces.analysis import analyze
    traces = read_traces(options.traces)
    result = analyze(traces)
    if options.json:
        print(json.dumps(result | {"problems": traces.problems}, indent=1, allow_nan=False))
        return 0
    weight, rounding = result["weight"], ""
    if result["rounding"] and result["rounding"]["log_ratio"]:
        rounding = f"; rounding moves it by about {result['rounding']['weight']:.2%}"
    print(
        f"{result['tokens']:,} trained tokens of {result['completions']:,} completions: weight {weight['mean']:.4f} on "
        f"average, standard deviation {weight['std']:.4f}; {weight['at_low']:.1%} at the lower bound, "
        f"{weight['at_high']:.1%} at the upper one{rounding}. `fipo report` shows the tables, --json all numbers."
    )
    for sentence in [*result["warnings"], *traces.problems]:
        print(f"! {printable(sentence)}")
    return 0


def _precision(options: argparse.Namespace) -> int:
    _quiet_libraries()
    with _extra("train"):
        from fipo.rounding.command import precision
    about = ("dataset", "prompt_column", "traces", "learning_rate", "updates", "dtypes", "responses", "tokens")
    return precision(options.model, **{name: getattr(options, name) for name in about})


def _import(options: argparse.Namespace) -> int:
    with _extra("report"):
        from fipo.params import FIPOParams
        from fipo.traces import write_traces
        from fipo.traces.importers import import_dump
    about = {"tokenizer": options.tokenizer, "current_logprobs": options.current_logprobs}
    params = FIPOParams.preset(options.preset) if options.preset else None
    with _extra("train"):  # loads the tokenizer
        found = import_dump(options.kind, options.dump, params=params, **about)
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
    from fipo.run.doctor import DIAGNOSES, show

    return show(DIAGNOSES[options.engine](), options.json)


if __name__ == "__main__":
    sys.exit(main())
