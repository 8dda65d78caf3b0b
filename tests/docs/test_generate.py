"""The generated pages and the glossary have everything that the code has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest
import typer
from pydantic import BaseModel

import audit
from audit import schema
from pipelines.cli import app
from pipelines.configuration.config import Config
from reports.views import VIEWS, definition
from tests.support.pages import DOCS


@pytest.fixture(scope="module")
def pages(generate: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the generated pages."""
    folder: Path = tmp_path_factory.mktemp("reference")
    generate.main(folder)
    return folder


def columns() -> set[str]:
    """Every column of every schema and view, but those of a reference model."""
    schemas = [value for value in vars(schema).values() if isinstance(value, pa.Schema)]
    schemas += [schema.control_screen(()), schema.generations(()), schema.scored((), output="latents")]
    named = {name for each in [*schemas, schema.embeddings(2)] for name in each.names} | set(schema.DETECTOR_COLUMNS)
    named |= {name for view in VIEWS for name in re.findall(r"^-- (\w+): ", definition(view), re.M)}
    return {name for name in named if not name.startswith(schema.REFERENCE)}


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the plain keys of the configuration."""
    for name, field in model.model_fields.items():
        nested = re.findall(r"(?:config|inputs|select)\.(\w+)'?>?", str(field.annotation))
        inner = [getattr(__import__(model.__module__, fromlist=["x"]), part, None) for part in nested]
        models = [each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)]
        if models:
            yield from keys(models[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_column_is_in_the_glossary_and_every_entry_is_a_column(generate: ModuleType) -> None:
    assert set(generate.glossary()) == columns()


def test_each_term_is_in_the_glossary_once() -> None:
    page = (DOCS / "reference/glossary.md").read_text("utf-8")
    terms = re.findall(r"^(\w.*)\n:   ", page, re.M)
    entries = re.findall(r"^\| `(\w+)` \|", page, re.M)
    assert len(terms) > 30
    assert len(set(terms)) == len(terms)
    assert terms == sorted(terms, key=str.lower)
    assert len(set(entries)) == len(entries)


def test_every_schema_has_a_table(generate: ModuleType) -> None:
    shown = [columns for _, _, columns in generate.TABLES]
    assert all(value in shown for value in vars(schema).values() if isinstance(value, pa.Schema))


def test_every_column_of_a_table_has_a_meaning(pages: Path) -> None:
    assert "|  |" not in (pages / "tables.md").read_text("utf-8")


def test_every_view_is_on_the_page_of_the_views_with_the_meaning_of_each_column(pages: Path) -> None:
    page = (pages / "views.md").read_text("utf-8")
    assert re.findall(r"^## (\w+)", page, re.M) == list(VIEWS)
    columns = [re.findall(r"^-- (\w+): ", definition(view), re.M) for view in VIEWS]
    assert re.findall(r"^\| `(\w+)` \| \S", page, re.M) == [name for names in columns for name in names]


def test_every_command_is_on_the_page_of_the_command_line(pages: Path) -> None:
    shown = re.findall(r"^## `crossaudit ([\w-]+)`", (pages / "cli.md").read_text("utf-8"), re.M)
    assert shown == list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_every_key_is_on_the_page_of_the_configuration(pages: Path) -> None:
    page = (pages / "configuration.md").read_text("utf-8")
    missing = [key for key in keys(Config) if f"- `{key}` " not in page and not key.startswith("reference_model.")]
    assert not missing


def test_every_public_name_is_on_the_page_of_the_api(pages: Path) -> None:
    shown = re.findall(r"^::: audit\.[\w.]+\.(\w+)$", (pages / "api.md").read_text("utf-8"), re.M)
    assert shown == audit.__all__
