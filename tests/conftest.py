"""Fixtures that many tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from testbed import Testbed

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with real data and models; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("DS_TRAIN_SHARED", REPO.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data at {folder} (set DS_TRAIN_SHARED)")
    return folder


@pytest.fixture(scope="session")
def stories260k(shared_dir: Path) -> Path:
    """A real pretrained Llama of 260K parameters, Hugging Face format."""
    return shared_dir / "models" / "stories260K" / "hf"


@pytest.fixture(scope="session")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """Three hosts on this machine, for the whole session; skips where they can't be made."""
    hosts = Testbed(tmp_path_factory.mktemp("hosts"))
    hosts.up(3)
    try:
        yield hosts
    finally:
        hosts.down()
