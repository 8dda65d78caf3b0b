from __future__ import annotations

import gc
from importlib import import_module

import pytest

from pipelines.engine.imports import no_collector


def test_the_collector_is_paused_and_then_as_it_was() -> None:
    with no_collector():
        assert not gc.isenabled()
        with no_collector():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_collector_runs_again_after_an_import_that_failed() -> None:
    with pytest.raises(ModuleNotFoundError), no_collector():
        import_module("no_such_module")
    assert gc.isenabled()
