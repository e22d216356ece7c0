"""Fixtures of the canary's tests."""

from pathlib import Path

import pytest

from tests.support.canary import UsersApp


@pytest.fixture
def users_app(tmp_path: Path) -> UsersApp:
    users_app = UsersApp(tmp_path)
    users_app.start()
    return users_app
