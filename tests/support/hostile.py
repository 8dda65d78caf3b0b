"""Fill the record of a run with text from the web that attacks the page which shows it."""

from __future__ import annotations

from itertools import cycle
from typing import Any

from reports.record.commands import shell_word
from reports.record.model import Record

# Each sets this variable of the page if it runs.
ATTACKED = "window.attacked"
ATTACKS = [
    f"<script>{ATTACKED} = 1</script>",
    f'"><img src=x onerror="{ATTACKED} = 1">',
    f"'><svg onload={ATTACKED}=1>",
    f"</bdi></td></table></script></style></title><script>{ATTACKED} = 1</script>",
    f"javascript:{ATTACKED}=1",
    f"{{{{ {ATTACKED} }}}} {{% raw %}} ${{{ATTACKED} = 1}}",
    "turned \u202egnp.tac\u202c \u2066isolated\u2069, ringing\u0007, nothing\u0000",
    "broken UTF-8: \ufffd\ufffd",
    "x" * 10_000,
    "wide 漢字 " * 1_250,
]


def hostile(record: Record) -> Record:
    """Return the record with attacks in every text that comes from a dataset or from a configuration."""
    attacks = cycle(ATTACKS)
    content = record.model_dump()
    for row in content["selected"]:
        row |= {"caption": next(attacks), "file": next(attacks), "hosts": [next(attacks)], "error": next(attacks)}
    for case in content["cases"]:
        case |= {name: f"crossaudit {shell_word(next(attacks))}" for name in ("explain", "reproduce")}
        for place in [*case["image_places"], *case["caption_places"]]:
            _attack(place, attacks, "file", "key", "url", "host")
    for failure in content["not_audited"]["failures"]:
        _attack(failure, attacks, "cause", "message")
    for step in content["next_steps"]:
        step["commands"] = [f"crossaudit {shell_word(next(attacks))}"]
    _attack(content["run"], attacks, "title", "model", "path")
    for entry in content["provenance"]["inputs"]:
        _attack(entry, attacks, "file")
    content["method"]["settings"] = {f"key {number}": attack for number, attack in enumerate(ATTACKS)} | {
        name: content["method"]["settings"][name] for name in ("generate", "confirm", "screen")
    }
    content["claims"]["sentences"] = ATTACKS
    return Record.model_validate(content)


def _attack(values: dict[str, Any], attacks: Any, *names: str) -> None:
    for name in names:
        values[name] = next(attacks)
