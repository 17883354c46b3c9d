"""python recipe_flags.py < COMMANDS > UNKNOWN: which flags of command lines none of the engines' own parsers knows.

COMMANDS is a JSON list of lists, what follows `python3` in each; UNKNOWN a JSON list of lists of flags. The parsers
themselves would not tell: each leaves what it does not know to the others. Neither models nor GPUs are looked at.
"""

import argparse
import json
import sys

from slime.backends.megatron_utils.arguments import _megatron_parse_args
from slime.backends.sglang_utils.arguments import sglang_parse_args
from slime.utils import arguments as slime_arguments

from fipo.engines.slime.arguments import add_arguments
from fipo.engines.slime.launch import custom_loss_flags

LEFTOVERS = []  # what each parser leaves over of the command line
LAUNCHER = ["-m", "fipo.engines.slime", "train.py"]


def unknown_flags(command):
    """Goes through the parsers as slime's parse_args does, with fipo's flags if fipo's launcher starts it."""
    launched = command[: len(LAUNCHER)] == LAUNCHER
    flags = custom_loss_flags(command[len(LAUNCHER) :]) if launched else command[1:]
    sys.argv = ["train.py", *flags]
    LEFTOVERS.clear()
    slime_arguments._pre_parse_mode()
    sglang_parse_args()
    provider = slime_arguments.get_slime_extra_args_provider(add_arguments if launched else None)
    _megatron_parse_args(extra_args_provider=provider, ignore_unknown_args=True)
    return [word for word in flags if word.startswith("--") and all(word in rest for rest in LEFTOVERS)]


def noted(parser, *args, parse=argparse.ArgumentParser.parse_known_args, **kwargs):
    namespace, rest = parse(parser, *args, **kwargs)
    LEFTOVERS.append(rest)
    return namespace, rest


if __name__ == "__main__":
    argparse.ArgumentParser.parse_known_args = noted
    answers = [unknown_flags(command) for command in json.load(sys.stdin)]
    print(f"\n{json.dumps(answers)}")
