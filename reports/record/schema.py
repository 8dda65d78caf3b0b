"""Write the JSON schema of the record: `python -m reports.record.schema`, after a change to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reports.record.model import VERSION, Record

FILE = Path(__file__).with_name("record.schema.json")


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of the record in the form in which it is written."""
    schema = Record.model_json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": f"Version {VERSION} of the record",
        **schema,
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(json_schema(), indent=1) + "\n", "utf-8")
