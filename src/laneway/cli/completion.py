"""The command completion: a script with which a shell completes commands, options and their values.

Words that are no options are completed as file names, by the shell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from laneway.cli.arguments import commands
from laneway.cli.output import Answer

if TYPE_CHECKING:
    import argparse

# What a shell does before it looks for words, with the command, the words and the number of the current one; and after.
_SHELLS = {
    "bash": (
        """\
_laneway() {
  local command="${COMP_WORDS[1]}" previous="${COMP_WORDS[COMP_CWORD-1]}" current="${COMP_WORDS[COMP_CWORD]}"
  local number="$COMP_CWORD"
  COMPREPLY=()
""",
        """\
  COMPREPLY=($(compgen -W "$found" -- "$current"))
}
complete -o default -F _laneway laneway
""",
    ),
    "zsh": (
        """\
#compdef laneway
_laneway() {
  local command="${words[2]}" previous="${words[CURRENT-1]}" current="${words[CURRENT]}"
  local number="$((CURRENT - 1))"
""",
        """\
  if [ -n "$found" ]; then compadd -- ${=found}; else _files; fi
}
compdef _laneway laneway
""",
    ),
}
# `laneway` has neither options with values nor arguments before the command.
_FIND = """\
  local found=""
  if [ "$number" -eq 1 ]; then
    found="{commands}"
  else
    case "$command $previous" in
{values}
      *) case "$command $current" in
{options}
      esac ;;
    esac
  fi
"""


def completion(arguments: argparse.Namespace) -> Answer:
    """Print the script of a shell."""
    parsers = commands()
    values, options = [], []
    for command, parser in parsers.items():
        actions = parser.actions
        named = [option for each in actions for option in each.option_strings if option.startswith("--")]
        if named:
            options.append(f'        "{command} -"*) found="{" ".join(named)}" ;;')
        for each in actions:
            # The shell of `completion` itself comes after its name.
            keys = each.option_strings or ([command] if each.choices else [])
            if each.choices:
                pattern = "|".join(f'"{command} {key}"' for key in keys)
                values.append(f'      {pattern}) found="{" ".join(each.choices)}" ;;')
    before, after = _SHELLS[arguments.shell]
    find = _FIND.format(commands=" ".join(parsers), values="\n".join(values), options="\n".join(options))
    script = before + find + after
    return Answer({"script": script}, script.rstrip("\n").split("\n"))
