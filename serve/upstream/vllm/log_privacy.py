"""What vLLM does to logs, undone: it closes those of Ray Serve, and some of its lines repeat what people said."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

_HEAR_PEOPLE = (
    "vllm.entrypoints",
    "vllm.inputs",
    "vllm.parser",
    "vllm.reasoning",
    "vllm.renderers",
    "vllm.tokenizers",
    "vllm.tool_parsers",
    "vllm.v1.engine.input_processor",
    "vllm.v1.structured_output",
)
"""Loggers of code that reads requests."""


class UserTextFilter(logging.Filter):
    """Keeps a warning of such a logger, its place in the source and the kind of error; not what was filled in."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING and record.name.startswith(_HEAR_PEOPLE):
            # Without arguments it may be text that was put together before: there is no telling.
            said = str(record.msg) if record.args else "(words withheld)"
            kind = record.exc_info and record.exc_info[0]
            record.msg = f"{said} [{kind.__name__}]" if kind else said
            record.args, record.exc_info, record.exc_text, record.stack_info = None, None, None, None
        return True


def withhold_words() -> None:
    """Let vLLM log through `UserTextFilter`, in this process and in its engine's. Call it before vLLM is imported."""
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(Path(__file__).with_name("logging.json"))


@contextmanager
def kept_open() -> Iterator[None]:
    """Keep Ray Serve's log file open while vLLM 0.32 configures its own logging.

    It does so with `logging.config.dictConfig`, which closes every handler of the process; one that hands on what it
    gathers, as Ray Serve's, has nobody to hand it to from then on.
    """
    handlers = [each for each in logging.getLogger("ray.serve").handlers if isinstance(each, MemoryHandler)]
    targets = [handler.target for handler in handlers]
    try:
        yield
    finally:
        for handler, target in zip(handlers, targets, strict=True):
            handler.setTarget(target)
