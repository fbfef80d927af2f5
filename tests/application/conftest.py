"""What most tests of the use cases begin with."""

from __future__ import annotations

import pytest

from tests.application.world import World


@pytest.fixture
def world() -> World:
    return World()
