"""Set up pytest for all tests: no time limits for hypothesis, and the shared data set."""

from hypothesis import settings

pytest_plugins = ["tests.support.datasets"]

# Deadlines would fail tests on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
