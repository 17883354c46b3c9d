"""Functions of a user's own, which settings name as python:module:function."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from fipo.errors import InvalidParameterError
from fipo.messages import one_line


def function_of(name: str, setting: str) -> Callable[..., Any]:
    """What `python:package.module:function` names, as the value of `setting`; it may lie in the current folder.

    Raises:
        InvalidParameterError: It has another form, cannot be imported, or is no plain function.
    """
    try:
        module, _, attribute = name.removeprefix("python:").partition(":")
        if not (name.startswith("python:") and module and attribute):
            raise ImportError("it has another form")
        if os.getcwd() not in sys.path:  # where `python -m` and Ray's workers find a file of the user's too
            sys.path.append(os.getcwd())
        function = getattr(found := importlib.import_module(module), attribute, None)
        if function is None:
            known = [name for name, value in vars(found).items() if callable(value) and not name.startswith("_")]
            raise ImportError(f"{found.__file__} has no {attribute}, but {', '.join(known) or 'no function'}")
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise ImportError(f"{attribute} is no plain function, but a {type(function).__name__}")
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            remedy = "install it, or mend the import"
        else:
            remedy = f"write it here ({os.getcwd()}), or start where it lies"
        raise InvalidParameterError(
            f"{setting} is {name!r}, but there is no module {error.name}, as {error.name}.py would be; {remedy}."
        ) from error
    except (Exception, SystemExit) as error:
        raise InvalidParameterError(
            f"{setting} is {name!r}, which cannot be imported ({type(error).__name__}: {one_line(error)}); write "
            "python:package.module:function, and let its module lie where every process can import it."
        ) from error
    return function
