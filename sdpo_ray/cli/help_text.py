"""Help of a command from its docstring, which is wrapped for the source and not for the terminal."""

from inspect import cleandoc
from typing import Any

from typer.core import TyperCommand


class HelpCommand(TyperCommand):
    """A command whose help is wrapped to the width of the terminal."""

    def __init__(self, name: str | None, *, help: str | None = None, **attributes: Any) -> None:
        super().__init__(name, help=unwrap(help or ""), **attributes)


def unwrap(text: str) -> str:
    """Join the lines of each paragraph. A paragraph that begins with a backspace keeps its lines, as in click."""
    paragraphs = cleandoc(text).split("\n\n")
    return "\n\n".join(each if each.startswith("\b") else each.replace("\n", " ") for each in paragraphs)
