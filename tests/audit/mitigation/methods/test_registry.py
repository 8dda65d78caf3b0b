from __future__ import annotations

from pathlib import Path

import pytest

import audit
from audit.errors import AuditError, UsageError
from audit.mitigation.methods.method import Method
from audit.mitigation.methods.registry import METHODS, parse
from audit.schema import METHOD_WORDS


def test_the_tables_know_every_method() -> None:
    assert ("none", *METHODS) == METHOD_WORDS


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("rescale", audit.Rescale()),
        ("rescale:bos_scale=4,keep=words", audit.Rescale(4, "words")),
        ("padding:token=none,zero_eos=false,zero_share=0.7", audit.Padding(None, False, 0.7)),
        ("padding:token=!", audit.Padding("!")),
        ("padding:token=3", audit.Padding(3)),
        ("attenuate:alpha=0.1", audit.Attenuate(0.1)),
        ("delayed_guidance:until=none", audit.DelayedGuidance(None)),
        ("dilute", audit.Dilute()),
        ("weak_guidance:scale=0", audit.WeakGuidance(0)),
    ],
)
def test_a_method_is_written_as_its_name_and_settings(text: str, method: Method) -> None:
    assert parse(text) == method


def test_bands_are_read_from_their_file(tmp_path: Path, bands: audit.RunBands) -> None:
    bands.save(tmp_path / "bands.json")
    assert parse(f"stabilise:bands={tmp_path / 'bands.json'},tail=0.1") == audit.Stabilise(bands, 0.1)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("mask", "there is no method 'mask'"),
        ("rescale:scale=2", "rescale has no setting 'scale=2'"),
        ("rescale:keep", "rescale has no setting 'keep'"),
        ("rescale:keep=some", "keep is 'some'"),
        ("rescale:bos_scale=big", "bos_scale=big"),
        ("stabilise", "stabilise needs bands"),
    ],
)
def test_a_wrong_text_is_an_error_that_says_what_is_known(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        parse(text)


def test_a_file_that_is_missing_or_holds_something_else_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="cannot be read"):
        parse("stabilise:bands=/nowhere")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(AuditError, match="does not hold the bands"):
        parse(f"stabilise:bands={tmp_path / 'a.json'}")
