"""Starts slime's own train.py with FIPO's flags; nothing of slime is changed but what its parse_args is given.

slime builds its parser inside parse_args, which takes a provider of further flags. train.py passes none, so parse_args
is replaced by one that does, before train.py runs as if it had been started itself.
"""

import argparse
import inspect
import runpy
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fipo.engines.slime.arguments import LOSS_PATH, SETTINGS, add_arguments, check_arguments, flag_of
from fipo.engines.slime.contract import lacking, unsupported
from fipo.engines.slime.hooks import install_hooks
from fipo.errors import FIPOError, InvalidParameterError
from fipo.messages import did_you_mean

USAGE = """\
python -m fipo.engines.slime [train.py|train_async.py] <slime's own flags> --loss-type fipo_loss [--fipo-… flags]

train.py is slime's own, found beside its package; a path to a script of yours that calls slime's parse_args works too.
"""
FLAGS = [flag_of(name) for name in SETTINGS]


def main(arguments: list[str] | None = None) -> int:
    """Runs slime's script in this process; an expected error is one sentence on standard error, and 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    script, flags = ("train.py", arguments) if arguments[0].startswith("-") else (arguments[0], arguments[1:])
    try:
        flags, path = custom_loss_flags(flags), prepare(script)
    except FIPOError as error:
        return _fail(error)
    sys.argv = [str(path), *flags]
    sys.path.insert(0, str(path.parent))  # as `python train.py` does
    runpy.run_path(str(path), run_name="__main__")
    return 0


def custom_loss_flags(flags: list[str]) -> list[str]:
    """The command line as stock slime understands it. Raises an InvalidParameterError where a --fipo- flag is
    misspelled or out of range, or flags contradict each other."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_arguments(parser)
    parser.add_argument("--use-tis", action="store_true")
    parser.add_argument("--use-rollout-logprobs", action="store_true")
    try:
        known, rest = parser.parse_known_args(flags)
    except argparse.ArgumentError as error:
        raise InvalidParameterError(f"{error}; correct the flag.") from error
    for flag in rest:
        if flag.startswith("--") and flag[2:].replace("_", "-").startswith(("fipo-", "no-fipo-")):
            remedy = did_you_mean(flag.split("=")[0], FLAGS, f"they are {', '.join(FLAGS)}.")
            raise InvalidParameterError(f"{flag} is not a flag of fipo's; {remedy}")
    check_arguments(known)  # as far as these flags go, and before slime's own assertions
    result: list[str] = []
    for flag in flags:
        if flag == "fipo_loss" and result[-1:] == ["--loss-type"]:
            flag = f"{result.pop()}={flag}"
        stock = flag == "--loss-type=fipo_loss"
        result += ["--loss-type", "custom_loss", "--custom-loss-function-path", LOSS_PATH] if stock else [flag]
    return result


def prepare(script: str) -> Path:
    """Hands fipo's flags to slime's parse_args, and returns the path of the script to run. Raises a FIPOError where
    slime is missing, cannot be imported or is another version, or the script is not there."""
    spec = find_spec("slime")
    if spec is None or spec.origin is None:
        raise FIPOError(
            f"slime is not installed for {sys.executable}; clone https://github.com/THUDM/slime and install it with "
            "pip install -e, on every node."
        )
    package = Path(spec.origin).parent
    path = next((path for path in (package.parent / script, Path(script)) if path.is_file()), None)
    if path is None:
        raise FIPOError(
            f"{script} is neither at {package.parent} nor here, but slime's scripts lie beside its package, in the "
            "source tree alone; install slime with pip install -e, or give the script's path."
        )
    if missing := lacking(package):
        raise FIPOError(unsupported(f"{package} does not define {', '.join(missing)}"))
    try:
        module: Any = import_module("slime.utils.arguments")
    except ImportError as error:
        raise FIPOError(f"slime at {package} cannot be imported: {error}; install what it requires.") from error
    if "add_custom_arguments" not in inspect.signature(module.parse_args).parameters:
        raise FIPOError(f"{module.__file__}: {unsupported('parse_args takes no add_custom_arguments')}")
    module.parse_args = partial(_parse_args, module.parse_args)
    return path.resolve()


def _parse_args(original: Callable[..., Namespace], add_custom_arguments: Callable | None = None) -> Namespace:
    """slime's parse_args with fipo's flags, and its result only if FIPO can work with it."""

    def provider(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return (add_custom_arguments or (lambda parser: parser))(add_arguments(parser))

    args = original(add_custom_arguments=provider)
    try:
        if (args.loss_type, args.custom_loss_function_path) != ("custom_loss", LOSS_PATH):
            raise InvalidParameterError(  # now, for --custom-config-path has the last word
                f"--loss-type is {args.loss_type} with the function {args.custom_loss_function_path}, but this command "
                "trains with FIPO; pass --loss-type fipo_loss, and no other loss in --custom-config-path."
            )
        check_arguments(args)
    except FIPOError as error:
        raise SystemExit(_fail(error)) from None
    install_hooks(args)
    return args


def _fail(error: FIPOError) -> int:
    print(f"fipo: {error}", file=sys.stderr)
    return 2
