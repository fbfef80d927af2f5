"""Fixtures for tests of the use cases."""

from __future__ import annotations

import pytest

from tests.application.world import World


@pytest.fixture
def world() -> World:
    return World()
