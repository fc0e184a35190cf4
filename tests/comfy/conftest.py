"""One ComfyUI for all tests of the nodes; without one they skip and say why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import host as module
from .host import Host

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder that asks for a ComfyUI carries the marker."""
    reason = module.reason_to_skip()
    for item in items:
        if HERE in item.path.parents and {"host", "base"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.comfy)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base directory of the ComfyUI, with the pack and the probe nodes in it."""
    base = tmp_path_factory.mktemp("comfy")
    module.install_pack(base)
    module.install_probe(base)
    return base


@pytest.fixture(scope="session")
def host(base: Path) -> Iterator[Host]:
    """The running ComfyUI."""
    with module.running(base) as host:
        yield host
