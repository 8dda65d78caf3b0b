"""All tasks run in every round, in alternating order."""

from __future__ import annotations

from benchmarks.paired import rounds


def test_every_task_runs_in_every_round_after_a_warm_up() -> None:
    ran: list[str] = []
    ticks = iter(range(1000))
    seconds = rounds({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, "cpu", 3, lambda: float(next(ticks)))
    assert ran == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert seconds == {"a": [1.0] * 3, "b": [1.0] * 3}
