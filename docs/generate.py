"""Write the reference pages that follow from the code: command line, configuration, tables, views, API.

python docs/generate.py [FOLDER]        docs/reference by default
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import audit  # noqa: E402
from audit import schema  # noqa: E402
from pipelines.configuration.config import Config  # noqa: E402
from reports.views import VIEWS, definition  # noqa: E402

NOTE = "<!-- Written by docs/generate.py from the code: do not edit. -->\n\n"
REFERENCE = ROOT / "docs/reference"

# (name, what one row is, schema). The detectors' columns have a section of their own.
TABLES: list[tuple[str, str, pa.Schema]] = [
    ("rows", "caption of an input row; most rows have one", schema.ROWS),
    ("captions", "distinct caption of the run", schema.CAPTIONS),
    ("caption_groups", "distinct caption", schema.CAPTION_GROUPS),
    ("control_screen", "control caption and seed, with the detectors' columns", schema.control_screen(())),
    ("control_scores", "control caption that gives p-values; its own is against the others", schema.CONTROL_SCORES),
    ("screen", "caption and seed, with the detectors' columns", schema.screen(())),
    ("scores", "caption", schema.SCORES),
    ("perturbations", "selected caption, with `select.perturbation_margin`", schema.PERTURBATIONS),
    ("generations", "generated caption, purpose and seed, with the detectors' columns", schema.generations(())),
    ("embeddings_EMBEDDER", "training image", schema.embeddings(512)),
    ("image_clusters", "training image", schema.IMAGE_CLUSTERS),
    ("inverted_files", "embedder, with `index.type: ivf`: how its file was built", schema.INVERTED_FILES),
    ("matches", "generation, embedder and rank; regions are those of the first embedder", schema.MATCHES),
    ("held_out_pairs", "held-out pair of a caption and an image that was generated", schema.HELD_OUT_PAIRS),
    ("copied_images", "caption and training image that it copied: the best generation", schema.COPIED_IMAGES),
    ("evidence", "training image on which a verdict rests", schema.EVIDENCE),
    ("verdicts", "distinct caption", schema.VERDICTS),
    ("mitigation", "caption, seed and setting that `crossaudit mitigate` generated", schema.MITIGATION),
    ("mitigation_summary", "caption set and setting", schema.MITIGATION_SUMMARY),
    ("review_pairs", "pair of pictures that raters judge (`crossaudit review`)", schema.REVIEW_PAIRS),
    ("reviews", "pair and rater; a confirmed caption has one pair", schema.REVIEWS),
    ("human_verdicts", "confirmed caption in the review; a view of these two", schema.HUMAN_VERDICTS),
    ("errors", "thing that was not audited", schema.ERRORS),
    ("thresholds", "embedder and kind of copy; a view of the manifest", schema.THRESHOLDS),
    ("stages", "stage; a view of the manifest", schema.STAGES),
    (
        "exclusions.parquet",
        "dataset row that carries what the model reproduces",
        schema.EXCLUSIONS,
    ),
]


def main(folder: Path = REFERENCE) -> None:
    """Write all generated pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"cli": cli, "configuration": configuration, "tables": tables, "views": views, "api": api}
    for name, page in pages.items():
        (folder / f"{name}.md").write_text(NOTE + page(), encoding="utf-8")


def glossary() -> dict[str, str]:
    """Return the meaning of each column, from the glossary page."""
    page = (REFERENCE / "glossary.md").read_text(encoding="utf-8").partition("## Columns")[2]
    return dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.M))


def cli() -> str:
    """Return the page of the command line, as typer writes it."""
    command = ["pipelines.cli", "utils", "docs", "--name", "crossaudit", "--title", "Command line"]
    done = subprocess.run(
        [sys.executable, "-m", "typer", *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def configuration() -> str:
    """Return the page of audit.yaml."""
    intro = (
        "All keys of `audit.yaml`. `crossaudit init` writes a commented file, `crossaudit config audit.yaml` prints it "
        "as resolved, and `crossaudit config --schema` prints its JSON schema. Relative paths are relative to the file."
    )
    return "\n".join(["# Configuration\n", textwrap.fill(intro, 118) + "\n", *_section("", Config, {})])


def _section(prefix: str, model: type[BaseModel], seen: dict[type[BaseModel], str]) -> Iterator[str]:
    """Yield the items of the plain keys of a section, then the sections in it. `seen`: where a model was shown."""
    inner: list[tuple[str, type[BaseModel], str]] = []
    for key, field in model.model_fields.items():
        name, kinds = f"{prefix}{key}", _kinds(field.annotation)
        models = [kind for kind in kinds if _is_model(kind)]
        if models:
            inner.append((name, models[0], field.description or ""))
        else:
            yield _key(name, field, kinds)
    for name, nested, description in inner:
        has_short = "_short" in nested.__pydantic_decorators__.model_validators
        short = "A bare path stands for `{path: ...}`." if has_short else ""
        like = f"The keys are those of [{seen[nested]}](#{seen[nested].replace('.', '')})." if nested in seen else ""
        text = " ".join(filter(None, [description, short, like]))
        yield f"\n## {name}\n" + (f"\n{textwrap.fill(text, 118)}\n" if text else "")
        if not like:
            seen[nested] = name
            yield from _section(f"{name}.", nested, seen)


def _key(name: str, field: FieldInfo, kinds: list[Any]) -> str:
    """Return the list item of a key."""
    default = field.get_default(call_default_factory=True)
    words = " or ".join(dict.fromkeys(_word(kind) for kind in kinds))
    given = "required" if default is PydanticUndefined else f"default: `{_value(default)}`"
    return _item(f"`{name}` ({words}; {given}): {field.description or ''}".removesuffix(": "))


def _kinds(annotation: Any) -> list[Any]:
    """Return the alternatives of a type, without annotations."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    if get_origin(annotation) is list and _is_model(inner := _kinds(get_args(annotation)[0])[0]):
        return [inner]
    return [annotation]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _word(kind: Any) -> str:
    """Return a type in words."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is list:
        return f"list of {' or '.join(_word(part) for part in _kinds(get_args(kind)[0]))}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "section"}
    return "null" if kind is type(None) else names.get(kind, str(kind))


def _value(default: Any) -> str:
    """Return a default as YAML writes it."""
    if isinstance(default, BaseModel):
        return "{" + ", ".join(f"{name}: {value}" for name, value in default) + "}"
    if isinstance(default, list):
        return f"[{', '.join(str(item) for item in default)}]"
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return str(default)


def tables() -> str:
    """Return the page of the tables."""
    intro = (
        'A run is Parquet in `RUN/<table>/<part>.parquet`. `crossaudit query RUN "show tables"` lists those that a run '
        "has. The meanings are those of the [glossary](glossary.md#columns). The schemas are in `audit/schema.py`."
    )
    parts = ["# Tables\n", textwrap.fill(intro, 118) + "\n"]
    for name, row, columns in TABLES:
        parts += [f"## {name}\n", textwrap.fill(f"One row per {row}.", 118) + "\n", _columns(columns)]
    of_model = [name for name in schema.DETECTOR_COLUMNS if not name.startswith(schema.REFERENCE)]
    own = pa.schema([(name, schema.DETECTOR_COLUMNS[name]) for name in of_model])
    note = "`screen`, `control_screen` and `generations` have those of the detectors that the run names. "
    note += "Those of a reference model are `reference_<column>`."
    return "\n".join([*parts, "## Columns of the detectors\n", textwrap.fill(note, 118) + "\n", _columns(own)])


def _columns(columns: pa.Schema) -> str:
    """Return the table of a schema's columns."""
    meanings = glossary()
    lines = [f"| `{field.name}` | {_arrow(field.type)} | {meanings.get(field.name, '')} |" for field in columns]
    return "\n".join(["| Column | Type | Meaning |", "|---|---|---|", *lines]) + "\n"


def _arrow(kind: pa.DataType) -> str:
    """Return an Arrow type in a word or two."""
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.value_type} x width"
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)


def views() -> str:
    """Return the page of the views, from the comments of their SQL files."""
    intro = (
        "These views answer the questions that come first. They are SQL files in `reports/sql`, and work in "
        "`crossaudit query`, `crossaudit sql` and Python, and with `crossaudit views RUN` in DuckDB alone: see "
        "[Query a run](../how-to/query-a-run.md). With several runs, each has a first column `run`."
    )
    parts = ["# Views\n", textwrap.fill(intro, 118, break_long_words=False, break_on_hyphens=False) + "\n"]
    for view in VIEWS:
        comment, columns, select = _parsed(definition(view))
        lines = [f"| `{name}` | {meaning} |" for name, meaning in columns.items()]
        parts += [f"## {view}\n", comment, "\n".join(["| Column | Meaning |", "|---|---|", *lines]) + "\n"]
        parts += [f"```sql\n{select}```\n"]
    return "\n".join(parts)


def _parsed(text: str) -> tuple[str, dict[str, str], str]:
    """Return the comment of a SQL file, the meaning of each column, and the statement."""
    lines = text.splitlines(keepends=True)
    head = [line.removeprefix("--").removeprefix(" ") for line in lines if line.startswith("--")]
    select = "".join(lines[len(head) :])
    *paragraphs, columns = "".join(head).split("\n\n")
    meanings = dict(line.split(": ", 1) for line in re.sub(r"\n  ", " ", columns).strip().split("\n"))
    return "\n\n".join(paragraphs) + "\n", meanings, select


def api() -> str:
    """Return the page of the public names of `audit`; mkdocstrings fills in their docstrings."""
    parts = ["# API\n", "`import audit` loads these names when they are used, so that it is fast.\n"]
    for name in audit.__all__:
        parts += [f"## audit.{name}\n", f"::: audit.{audit._HOME[name]}.{name}\n"]
    return "\n".join(parts)


def _item(text: str) -> str:
    """Return a list item, wrapped."""
    whole = " ".join(text.split())
    return textwrap.fill(whole, 118, initial_indent="- ", subsequent_indent="  ", break_long_words=False)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:2]))
