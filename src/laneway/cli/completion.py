"""The command completion: a script with which a shell completes commands, options and their values.

Words that are no options are completed as file names, by the shell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from laneway.cli.arguments import commands
from laneway.cli.output import Answer

if TYPE_CHECKING:
    import argparse

# `laneway` has neither options with values nor arguments before the command.
_BASH = """\
_laneway() {{
  local command="${{COMP_WORDS[1]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" current="${{COMP_WORDS[COMP_CWORD]}}"
  local words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  else
    case "$command $previous" in
{values}
      *) case "$command $current" in
{options}
      esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _laneway laneway
"""
_ZSH = """\
#compdef laneway
_laneway() {{
  local command="${{words[2]}}" previous="${{words[CURRENT-1]}}" current="${{words[CURRENT]}}"
  local found=""
  if [ "$CURRENT" -eq 2 ]; then
    found="{commands}"
  else
    case "$command $previous" in
{values}
      *) case "$command $current" in
{options}
      esac ;;
    esac
  fi
  if [ -n "$found" ]; then compadd -- ${{=found}}; else _files; fi
}}
compdef _laneway laneway
"""


def completion(arguments: argparse.Namespace) -> Answer:
    """Print the script of a shell."""
    template, name = (_BASH, "words") if arguments.shell == "bash" else (_ZSH, "found")
    values, options = [], []
    for command, parser in commands().items():
        actions = parser.actions
        named = [option for each in actions for option in each.option_strings if option.startswith("--")]
        if named:
            options.append(f'        "{command} -"*) {name}="{" ".join(named)}" ;;')
        for each in actions:
            # The shell of `completion` itself comes after its name.
            keys = each.option_strings or ([command] if each.choices else [])
            if each.choices:
                pattern = "|".join(f'"{command} {key}"' for key in keys)
                values.append(f'      {pattern}) {name}="{" ".join(each.choices)}" ;;')
    script = template.format(commands=" ".join(commands()), values="\n".join(values), options="\n".join(options))
    return Answer({"script": script}, script.rstrip("\n").split("\n"))
