"""The commands, and their arguments."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from laneway import __version__
from laneway.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPILOG = """\
Each command has --help and --json. `laneway completion bash` completes them.
Exit codes: 0 success; 1 the check failed; 2 error; 130 interrupted."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help of 80 columns at most, with little indentation."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=80)
        # argparse doesn't count the indentation of commands, and would break the line of the longest.
        self._action_max_length = 16


class CommandParser(argparse.ArgumentParser):
    """A parser that knows which arguments it has."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - argparse's own
        """Make a parser without arguments."""
        self.actions: list[argparse.Action] = []
        super().__init__(*args, **options)

    def add_argument(self, *args: Any, **options: Any) -> argparse.Action:  # noqa: ANN401 - argparse's own
        """Add an argument."""
        self.actions.append(super().add_argument(*args, **options))
        return self.actions[-1]


def _command(parsers: Any, name: str, module: str, text: str) -> CommandParser:  # noqa: ANN401 - argparse's own
    """Add a command, which the function of its name in a module of this package runs."""
    parser: CommandParser = parsers.add_parser(name, help=text, description=f"{text}.", formatter_class=_Help)
    parser.set_defaults(module=module)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--storage-options", metavar="JSON", help="options of the filesystem, such as endpoint_url")
    return parser


def _source(
    parser: argparse.ArgumentParser,
    *,
    is_option: bool = False,
    required: bool = False,
    others: Sequence[str] = (),
) -> None:
    """Add the data, in one of some other formats too; with `is_option` that of a state, which may be of a mixture."""
    if is_option:
        data = (
            "the data of the run: a directory, glob, file or URL; a saved manifest; of a mixture NAME=SOURCE, for each "
            "of its sources; or its dataset or mixture in your code: train.py:dataset"
        )
        parser.add_argument("--source", dest="sources", action="append", required=required, help=data)
        _mixture(parser)
    else:
        data = (
            "a directory, glob, file or URL of these; a saved manifest; or a dataset or mixture in your code: "
            "train.py:dataset"
        )
        parser.add_argument("source", help=data)
    # Only help and a name that none of laneway's own formats has load those of other packages.
    choices = [*FORMATS, *others] if others else FORMATS
    parser.add_argument("--format", choices=choices, metavar="FORMAT", help="%(choices)s; default: detected")


def _mixture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="JSON", help="of a mixture, if not those of the state, or a schedule")
    parser.add_argument("--stop", metavar="END", help="of a mixture: rows, first_exhausted or all_exhausted")


def _source_and_others(parser: argparse.ArgumentParser) -> None:
    """Add the data, which may be a source of a mixture, and its other sources."""
    _source(parser)
    parser.add_argument(
        "--source", dest="sources", action="append", metavar="NAME=SOURCE", help="another source of the mixture"
    )
    _mixture(parser)


def _filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--filter", metavar="JSON", help='rows to select, such as \'[["price", ">", 10]]\'')


def _dataset(parser: argparse.ArgumentParser) -> None:
    _filter(parser)
    parser.add_argument("--batch-size", type=int, help="rows of a batch")
    parser.add_argument("--shuffle", action="store_true", help="shuffle")
    parser.add_argument("--seed", type=int, help="seed of the shuffle (0)")
    parser.add_argument("--lanes", type=int, help="number of lanes")
    parser.add_argument("--turn-rows", type=int, help="rows of a turn")
    parser.add_argument("--shard-bytes", help='size of a shard ("8MiB")')
    parser.add_argument("--window-bytes", help='size of a window ("64MiB")')
    parser.add_argument("--remainder", choices=["pad", "drop", "keep"], help="the row by which ranks differ")
    parser.add_argument("--drop-last", action="store_true", help="drop the last, short batch")


def _job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--world-size", type=int, default=1, help="ranks (1)")
    parser.add_argument("--workers", type=int, default=0, help="workers of each rank (0)")
    parser.add_argument("--epoch", type=int, default=0, help="epoch, zero-based (0)")


def _state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", help="which of several loaders: the key of its state")


def _columns(text: str) -> list[str]:
    return text.split(",")


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parser() -> CommandParser:
    """Return the parser of all arguments."""
    return _parsers()[0]


def commands() -> dict[str, CommandParser]:
    """Return the parser of each command, by its name."""
    return dict(_parsers()[1].choices)


def _parsers() -> tuple[CommandParser, Any]:
    """Return the parser of all arguments, and what chooses between those of the commands."""
    found = CommandParser(
        "laneway",
        description="Look at data, plans, states and checkpoints.",
        epilog=_EPILOG,
        formatter_class=_Help,
        add_help=False,
    )
    # Not in the list: the help is to fit on one screen, and who reads it knows how.
    found.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    found.add_argument("--version", action="version", version=f"laneway {__version__}")
    chosen = found.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    _add_commands_for_data(chosen)
    _add_commands_for_states(chosen)
    # Without help=, it is not listed: the end of the help names it.
    completion = chosen.add_parser("completion", description="Print a script for a shell.", formatter_class=_Help)
    completion.add_argument("shell", choices=["bash", "zsh"], help="the shell")
    completion.set_defaults(module="completion", json=False)
    return found, chosen


def _add_commands_for_data(commands: Any) -> None:  # noqa: ANN401 - argparse's own
    command = _command(commands, "inspect", "data", "Say what a dataset consists of, with advice")
    _source(command)
    command = _command(commands, "head", "data", "Show the first rows")
    _source(command)
    _filter(command)
    command.add_argument("-n", type=int, default=10, help="number of rows (10)")
    command.add_argument("--columns", type=_columns, help="comma-separated names")
    command = _command(commands, "plan", "data", "Say what each rank of a job does in an epoch")
    _source(command)
    _job(command)
    _dataset(command)
    command.add_argument("--plot", metavar="FILE.svg", help="draw it: mixing, and what each rank reads")
    command = _command(commands, "where", "saved", "Say at which step a row is delivered")
    _source_and_others(command)
    command.add_argument("path", metavar="PATH", help="the data file, relative to the source")
    command.add_argument("row", metavar="ROW", type=int, help="number of the row in the file")
    command.add_argument("--state", metavar="STATE", help="a checkpoint of the epoch, or of the mixture")
    _state(command)
    _job(command)
    _dataset(command)
    # With a checkpoint, they are those of the run.
    command.set_defaults(world_size=None, workers=None, epoch=None)
    command = _command(commands, "verify", "data", "Read all the data, and name what is damaged")
    _source(command)
    command = _command(commands, "convert", "data", "Rewrite data as Parquet files sized for training")
    _source(command, others=("webdataset", "mds"))
    command.add_argument("dest", metavar="DEST", help="an empty directory, or one of an interrupted call")
    command.add_argument("--columns", type=_columns, help="comma-separated names")
    command.add_argument("--row-group-bytes", help='size of a row group in memory ("8MiB")')
    command.add_argument("--file-bytes", help='size of a file ("256MiB")')
    command = _command(commands, "bench", "bench", "Measure how well a training loop is fed")
    _source(command)
    _dataset(command)
    command.add_argument("--columns", type=_columns, help="comma-separated names")
    command.add_argument("--workers", type=_counts, default=[0, 1, 2], help="numbers of workers (0,1,2)")
    command.add_argument("--step-ms", type=float, default=20.0, help="time of an emulated step (20)")
    command.add_argument("--seconds", type=float, default=5.0, help="time of each measurement (5)")
    command.add_argument("--plot", metavar="FILE.svg", help="draw it: utilisation, and the time of each stage")


def _add_commands_for_states(commands: Any) -> None:  # noqa: ANN401 - argparse's own
    command = _command(commands, "state", "saved", "Say what a checkpoint holds, and whether it fits a dataset")
    command.add_argument("file", metavar="STATE", help="a file, folder, or glob of the files of ranks")
    command.add_argument("--diff", metavar="STATE", help="compare with another checkpoint")
    _source(command, is_option=True)
    _filter(command)
    _state(command)
    command = _command(commands, "rows", "saved", "Say which rows a step had, or will have")
    command.add_argument("file", metavar="STATE", help="a checkpoint of the epoch")
    command.add_argument("--step", type=int, required=True, help="step of the epoch, zero-based")
    command.add_argument("--rank", type=int, help="only this rank")
    command.add_argument("--show", action="store_true", help="read the rows and show them")
    command.add_argument("--world-size", type=int, help="ranks after the checkpoint (as before)")
    command.add_argument("--workers", type=int, help="workers after the checkpoint (keep its lanes)")
    _source(command, is_option=True, required=True)
    _filter(command)
    _state(command)
    command = _command(commands, "audit", "saved", "Prove that each row came once, or say what is missing")
    command.add_argument(
        "files", metavar="STATE", nargs="+", help="the checkpoints from which the run was resumed, or their folder"
    )
    command.add_argument("--as-given", action="store_true", help="don't put them in the order of their numbers")
    _source(command, is_option=True)
    _filter(command)
    _state(command)
    command = _command(commands, "report", "reports", "Write a page with pictures: lanes, mixing, ranks, audit")
    _source_and_others(command)
    command.add_argument(
        "files", metavar="STATE", nargs="*", help="the checkpoints from which the run was resumed, or their folder"
    )
    command.add_argument("-o", "--output", metavar="FILE.html", required=True, help="the page to write")
    command.add_argument("--as-given", action="store_true", help="don't put them in the order of their numbers")
    _state(command)
    _job(command)
    _dataset(command)
    # With checkpoints, they are those of the run.
    command.set_defaults(world_size=None, workers=None, epoch=None)
    command = _command(commands, "redistribute", "saved", "Write the states of the ranks of another job")
    command.add_argument("file", metavar="STATE", help="a checkpoint of the whole job")
    command.add_argument("--world-size", type=int, required=True, help="ranks")
    command.add_argument("--workers", type=int, default=0, help="workers of each rank (0)")
    command.add_argument("--batch-size", dest="new_batch_size", type=int, help="rows of a batch (as before)")
    command.add_argument("-o", "--output", metavar="DIR", required=True, help="folder to write")
    _source(command, is_option=True)
    _filter(command)
    _state(command)
