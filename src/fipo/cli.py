"""The command `fipo`: thin; every subcommand lives where its subject does."""

import argparse
import errno
import json
import sys
import warnings
from pathlib import Path

from fipo import __version__
from fipo.errors import DataError, FIPOError
from fipo.terminal import printable

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
USAGE = """\
fipo train recipe.yaml [--flag value …]          train; every flag of TRL's GRPOConfig and ModelConfig works
fipo train --model_name_or_path … --dataset … --rewards … --output_dir …
fipo test-reward recipe.yaml completions.jsonl   score completions with a recipe's rewards, without a model
fipo report RUN [RUN …] -o report.html           one page about runs: curves, and every token's credit
fipo analyze RUN [--json]                        what the credit did, from a run's traces
fipo import --from slime DUMP -o traces.parquet  another stack's dump as traces; or trl, verl, fipo-fork, prime-rl
fipo doctor slime [--json]                       what this node and a running Ray cluster lack for FIPO in slime
fipo --version"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code; an expected error is one sentence on standard error, and 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = {
        "train": _train,
        "test-reward": _test_reward,
        "report": _report,
        "analyze": _analyze,
        "import": _import,
        "doctor": _doctor,
    }
    if arguments[:1] == ["--version"]:
        print(f"fipo {__version__}")
        return 0
    if not arguments or arguments[0] not in commands:
        asked_for_help = arguments[:1] in (["-h"], ["--help"])
        print(USAGE, file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    try:
        return commands[arguments[0]](arguments[1:])
    except FIPOError as error:
        return _fail(str(error))
    except ImportError as error:
        extra = "report" if arguments[0] in ("report", "analyze", "import") else "train"
        return _fail(f"{error}; install what is missing with pip install 'fipo[{extra}]'.")
    except OSError as error:
        if arguments[0] != "train":
            return _fail(f"{error}; check the path and the room on its disk.")
        if error.errno not in DISK_ERRORS:
            raise
        return _fail(f"{error}; the last whole checkpoint is untouched: make room and go on with --resume true.")
    except KeyboardInterrupt:
        _fail("Interrupted; what was not in a checkpoint is lost.")
        return 130


def _fail(sentence: str) -> int:
    print(f"fipo: {printable(sentence)}", file=sys.stderr)
    return 2


def _train(arguments: list[str]) -> int:
    _quiet_libraries()
    from fipo.run.recipe import parse_recipe
    from fipo.run.train import train

    return train(*parse_recipe(arguments))


def _quiet_libraries() -> None:
    """Their progress bars and notices of future changes would bury what the run says."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def _test_reward(arguments: list[str]) -> int:
    from fipo.run.score import score_file

    parser = argparse.ArgumentParser(prog="fipo test-reward", description="Score completions without a model.")
    parser.add_argument("recipe", help="a recipe whose rewards are used")
    parser.add_argument("completions", type=Path, help="JSONL with completion and answer a line")
    options = parser.parse_args(arguments)
    return score_file(options.recipe, options.completions)


def _analyze(arguments: list[str]) -> int:
    from rich.console import Console

    from fipo.traces import read_traces
    from fipo.traces.analysis import analyze
    from fipo.traces.present import show_analysis

    parser = argparse.ArgumentParser(prog="fipo analyze", description="What the credit did, from a run's traces.")
    parser.add_argument("traces", type=Path, help="a run, its traces folder, or a trace file")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args(arguments)
    traces = read_traces(options.traces)
    result = analyze(traces)
    if options.json:
        print(json.dumps(result | {"problems": traces.problems}, indent=1))
    else:
        show_analysis(result, traces.problems, Console(highlight=False))
    return 0


def _import(arguments: list[str]) -> int:
    from fipo.params import FIPOParams
    from fipo.traces import write_traces
    from fipo.traces.importers import IMPORTERS, import_dump

    parser = argparse.ArgumentParser(prog="fipo import", description="Another stack's dump as traces.")
    parser.add_argument("dump", type=Path, help="the dump's file or folder")
    parser.add_argument("--from", dest="kind", required=True, choices=IMPORTERS, help="which stack wrote it")
    parser.add_argument("-o", "--output", type=Path, default=Path("traces.parquet"), help="the trace file to write")
    parser.add_argument("--tokenizer", help="a folder or hub name, for token bytes")
    parser.add_argument("--preset", help="the knobs of the weights: 7b or 32b")
    parser.add_argument("--current-logprobs", action="store_true", help="slime: log_probs are the current policy's")
    options = parser.parse_args(arguments)
    tokenizer = None
    if options.tokenizer:
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


def _report(arguments: list[str]) -> int:
    from fipo.report import read_report

    parser = argparse.ArgumentParser(prog="fipo report", description="Write one HTML page about one or several runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a file of traces or metrics")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page [%(default)s]")
    options = parser.parse_args(arguments)
    report = read_report(options.runs)
    path = report.write(options.output)
    for problem in report.problems:
        print(f"fipo: {printable(problem)}", file=sys.stderr)
    print(path)
    return 0


def _doctor(arguments: list[str]) -> int:
    from fipo.engines.slime.doctor import diagnose_slime

    parser = argparse.ArgumentParser(prog="fipo doctor", description="What is missing for FIPO inside another trainer.")
    parser.add_argument("engine", choices=["slime"], help="the trainer")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    options = parser.parse_args(arguments)
    return diagnose_slime(options.json)


if __name__ == "__main__":
    sys.exit(main())
