"""The commands and their options, from the program that prints `--help`."""

from __future__ import annotations

import inspect
import re
from typing import Any

from typer.main import get_command

from raycrt.cli.main import assembled


def program() -> Any:
    """The program `raycrt`; its `commands` are those of the shell."""
    return get_command(assembled())


def markdown() -> str:
    """A section for each command, with an entry for each argument and option."""
    return "\n".join(_section(name, command) for name, command in program().commands.items())


def _section(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=f"raycrt {name}")
    parts = [
        f"## raycrt {name}\n",
        f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n",
        inspect.cleandoc(command.help) + "\n",
        f":::{{program}} raycrt {name}\n:::\n",
        *(_entry(parameter, context) for parameter in command.params),
    ]
    return "\n".join(parts)


def _entry(parameter: Any, context: Any) -> str:
    names, said = parameter.get_help_record(context)
    if parameter.param_type_name == "argument":
        names = parameter.name
    said, *facts = re.split(r"\s+\[(?=default|required)", said)
    said += "".join(f"\n\n`{fact.removesuffix(']')}`" for fact in facts)
    return f":::{{option}} {names}\n{said}\n:::\n"
