"""The entry point: parses arguments, runs a command, prints its answer.

Exit codes: 0, success; 1, the check failed; 2, an error, such as damaged or foreign input.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
import warnings
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from laneway.cli.output import print_answer
from laneway.errors import LanewayError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from laneway.cli.output import Answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Those of the command line; None: those of this process.

    Returns:
        The exit code.
    """
    command = "laneway"
    try:
        # Imported here: all commands together would take seconds, and Ctrl-C during the import ends quietly, too.
        options: argparse.Namespace = import_module("laneway.cli.arguments").parser().parse_args(arguments)
        command = f"laneway {options.command}"
        run: Callable[[argparse.Namespace], Answer] = getattr(_imported(options.module), options.command)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            # What a user's code prints is no part of the answer.
            with redirect_stdout(sys.stderr):
                answer = run(options)
        print_answer(answer, as_json=options.json)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as head, has all that it wants. Python would complain when it closes the output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (LanewayError, OSError, ValueError, TypeError) as error:
        sys.stderr.write(f"{command}: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:  # noqa: BLE001 - whatever a user's code raises; 1 would say that a check failed
        traceback.print_exc()
        return 2
    return answer.exit_code


def run() -> NoReturn:
    """Run the command of this process, and exit."""
    for name in ("stdout", "stderr"):
        # The shell has closed it, as with >&-.
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until this process ends
    code = main()
    # Otherwise the interpreter would look for garbage among all modules before it exits.
    gc.freeze()
    sys.exit(code)


def _imported(module: str) -> ModuleType:
    """Import a module of commands, without garbage collection: it takes much of the time, and finds nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(f"laneway.cli.{module}")
    finally:
        if was_enabled:
            gc.enable()


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    sys.stderr.write(f"laneway: warning: {message}\n")
