"""A run to review, and its pages served in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from pipelines.review.server import ReviewServer
from pipelines.runs.review import Review, open_review
from tests.support.reviewed import reviewable
from tests.support.serving import serving

Serve = Callable[..., AbstractContextManager[ReviewServer]]


@pytest.fixture(scope="session")
def reviewable_run(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with 12 confirmed captions, 8 of which are copies. It is made once: tests must not change it."""
    return reviewable(toy / "audit.yaml", tmp_path_factory.mktemp("reviewable") / "run")


@pytest.fixture
def own_run(reviewable_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that the test may change."""
    return Path(shutil.copytree(reviewable_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Return a function that serves a review while a context lasts."""

    @contextmanager
    def served(review: Review, rater: str | None = None, port: int = 0) -> Iterator[ReviewServer]:
        server = ReviewServer(review.answers, review.pictures, rater, port)
        with serving(server):
            yield server

    return served


@pytest.fixture
def review(own_run: Path) -> Review:
    """The review of the run, with 9 decoys that are not copies and 3 that are."""
    return open_review(str(own_run), decoys=9)
