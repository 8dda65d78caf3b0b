"""Set up pytest for all tests: limits of hypothesis, the shared dataset, the order of test files."""

from hypothesis import settings

pytest_plugins = [
    "tests.support.collector",
    "tests.support.datasets",
    "tests.support.durations",
    "tests.support.soak",
]

# Deadlines would fail tests on a busy machine.
settings.register_profile("quick", deadline=None, max_examples=40)
# For `make soak`, which passes --hypothesis-profile.
settings.register_profile("soak", settings.get_profile("quick"), max_examples=2000)
settings.load_profile("quick")
