"""Chat formats that the tests of examples render with."""

from pathlib import Path

import pytest

from sdpo_ray.chat import ChatFormat
from tests.support.builders import TOOL_CHATML, tiny_policy


@pytest.fixture(scope="module")
def chat(path: Path) -> ChatFormat:
    return ChatFormat(path)


@pytest.fixture(scope="module")
def tool_chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    return ChatFormat(tiny_policy(tmp_path_factory.mktemp("tools"), template=TOOL_CHATML))
