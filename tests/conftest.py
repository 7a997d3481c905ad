"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with the real slides and the bad inputs; the test is skipped, visibly, where it does not exist."""
    folder = Path(os.environ.get("MSAMIL_TEST_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set MSAMIL_TEST_DATA")
    return folder
