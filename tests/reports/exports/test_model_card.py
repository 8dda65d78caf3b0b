from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from reports.exports.model_card import literal, to_model_card
from reports.pages import visible
from reports.record.model import Record
from tests.support.markup import Tags, text_of
from tests.support.report_run import HOSTILE

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def html(record: Record) -> str:
    """The section as a page shows it."""
    return str(MARKDOWN.render(to_model_card(record).decode()))


def test_a_section_has_its_parts_below_one_heading(record: Record) -> None:
    lines = to_model_card(record).decode().splitlines()
    assert lines[0] == "## Memorization audit"
    assert [line for line in lines if line.startswith("#")][1:] == [
        "### What was tested",
        "### Verdicts",
        "### Captions that the model reproduces",
        "### What the audit claims",
        "### What it does not show",
        "### How to reproduce it",
    ]
    assert lines[-1] == "```"


def test_the_verdicts_the_claims_and_the_limits_are_all_there(record: Record) -> None:
    text = text_of(html(record))
    assert record.answer.sentence in text
    for count in record.verdicts:
        assert f"{count.verdict} {count.captions:,} {count.rows:,} {count.meaning}" in text
    for sentence in [*(claim.sentence for claim in record.claims.claims), *record.limits]:
        assert sentence in text


def test_captions_are_text(record: Record) -> None:
    hostile = [
        row.model_copy(update={"caption": caption})
        for row, caption in zip(
            record.selected, [HOSTILE, "| a | b", "`x` ![i](http://e.org)", "*a*\n# b"], strict=False
        )
    ]
    page = html(record.model_copy(update={"selected": hostile}))
    tags = {tag for tag, _ in Tags(page).tags}
    assert not tags & {"script", "img", "a", "em"}
    for shown in (HOSTILE, "| a | b verbatim", "`x` ![i](http://e.org) verbatim", "*a*⟨U+000A⟩# b verbatim"):
        assert shown in text_of(page)


@given(st.text(st.sampled_from(string.ascii_letters + string.punctuation + " é\n\t<&*_"), min_size=1))
def test_any_text_reads_as_it_is(text: str) -> None:
    page = MARKDOWN.render(f"| x |\n|---|\n| x{literal(text)}x |\n")
    assert text_of(page) == " ".join(f"x x{visible(text)}x".split())
    assert {tag for tag, _ in Tags(page).tags} == {"table", "thead", "tbody", "tr", "th", "td"}


def test_a_run_that_confirmed_nothing_has_no_table_of_captions(record: Record) -> None:
    none = record.confirmed.model_copy(update={"captions": 0})
    page = to_model_card(record.model_copy(update={"selected": [], "confirmed": none})).decode()
    assert "### Captions that the model reproduces" not in page
    assert "### What the audit claims" in page
