"""A command group that lists its commands from a table and imports a command's module when the command is called."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from sdpo_ray.cli.options import single_command


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One command of a group. Made by `jobs.sdpo`; read by `LazyGroup`."""

    name: str
    module: str
    """Module with a function `main`, or with a Typer `app` where the command has commands of its own."""
    panel: str
    """Heading of the help under which the command is listed."""
    help: str
    """First sentence of the command's own help, so that the list is shown without importing the module."""


class LazyGroup(TyperGroup):
    """The commands of `verbs`. Listing, completing and correcting their names imports none of their modules."""

    verbs: ClassVar[Sequence[Verb]] = ()

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._modules = {verb.name: verb.module for verb in self.verbs}
        for verb in self.verbs:
            self.add_command(TyperCommand(name=verb.name, help=verb.help, rich_help_panel=verb.panel))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Name, command and remaining arguments, with the listed command replaced by the imported one."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, load(self._modules[name]) if name is not None else listed, rest


def load(module: str) -> Any:
    """The command of a module."""
    loaded = import_module(module)
    return get_command(loaded.app if hasattr(loaded, "app") else single_command(loaded.main))
