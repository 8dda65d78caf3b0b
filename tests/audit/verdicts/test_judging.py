from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from audit import schema
from audit.verdicts.copies import LINKS, copied_images
from audit.verdicts.judging import ImageCounts, judge, negatives, with_p_not_reproduced
from audit.verdicts.thresholds import Threshold

THRESHOLDS = {"verbatim": Threshold(0.8, "controls"), "region": Threshold(0.6, "controls")}
GENERATIONS = pa.schema([f for f in schema.generations([]) if f.name not in ("image", "region")])


class Case:
    """A small audit, built caption by caption."""

    def __init__(self, **arguments: Any) -> None:
        self.captions: list[dict] = []
        self.scores: list[dict] = []
        self.rows: list[dict] = []
        self.generations: list[dict] = []
        self.matches: list[dict] = []
        self.failures: list[dict] = []
        self.perturbations: list[dict] = []
        self.links: list[dict] = []
        self.arguments: dict[str, Any] = {"images": ImageCounts(listed=1000), "embedder": "sscd", **arguments}

    def caption(
        self, name: str, score: float | None = 1.0, selected_by: str | None = "budget", copies: int = 2, own: Any = None
    ) -> None:
        self.captions.append({"caption_id": name, "caption": f"text {name}", "row_count": copies})
        self.scores.append({"caption_id": name, "score": score, "selected_by": selected_by, "p_unseen": 0.5})
        self.rows += [{"caption_id": name, "image_id": own}] * copies

    def generate(
        self,
        name: str,
        *similarities: float | None,
        seed: int = 1,
        purpose: str = "discover",
        region: float | None = None,
        pixel_agreement: float | None = None,
        images: Sequence[str] = "abcdef",
        embedder: str = "sscd",
        error: str | None = None,
    ) -> None:
        run = {"caption_id": name, "purpose": purpose, "seed": seed}
        self.generations.append({**run, "status": "error" if error else "ok", "error": error})
        for rank, (image, similarity) in enumerate(zip(images, similarities, strict=False)):
            match = {"embedder": embedder, "rank": rank, "image_id": image, "similarity": similarity}
            regions = {"region_similarity": region, "region_agreement": region and 1.0}
            self.matches.append({**run, **match, **regions, "pixel_agreement": pixel_agreement})

    def regions(self, *similarities: float) -> None:
        """Give the first matches region similarities."""
        for row, similarity in zip(self.matches, similarities, strict=False):
            row |= {"region_similarity": similarity, "region_agreement": 1.0}

    def judge(self) -> dict[str, dict[str, Any]]:
        matches = pa.Table.from_pylist(self.matches, schema.MATCHES)
        scores = pa.Table.from_pylist(self.scores, schema.SCORES)
        verdicts = judge(
            captions=pa.Table.from_pylist(self.captions, schema.CAPTIONS),
            scores=scores,
            perturbations=pa.Table.from_pylist(self.perturbations, schema.PERTURBATIONS),
            rows=pa.Table.from_pylist(self.rows, schema.ROWS),
            generations=pa.Table.from_pylist(self.generations, GENERATIONS),
            matches=matches,
            copied=copied_images(matches, self.arguments["embedder"], THRESHOLDS),
            links=pa.Table.from_pylist(self.links, LINKS),
            failures=pa.Table.from_pylist(
                self.failures, pa.schema([("caption_id", pa.string()), ("error", pa.string())])
            ),
            thresholds=THRESHOLDS,
            **self.arguments,
        )
        verdicts = with_p_not_reproduced(verdicts, scores, negatives(verdicts, scores))
        assert verdicts.schema.equals(schema.VERDICTS)
        assert verdicts["caption_id"].to_pylist() == [row["caption_id"] for row in self.captions]
        return {row["caption_id"]: row for row in verdicts.to_pylist()}


# -- verdicts


def test_every_caption_gets_the_verdict_of_its_best_generation() -> None:
    case = Case()
    for name in ("verbatim", "edge", "partial", "both", "unconfirmed"):
        case.caption(name)
    case.caption("not_selected", selected_by=None)
    case.generate("verbatim", 0.1, seed=1)
    case.generate("verbatim", 0.95, 0.3, seed=2)
    case.generate("edge", 0.8)
    case.generate("partial", 0.7, region=0.65)
    case.generate("both", 0.9, region=0.9)
    case.generate("unconfirmed", 0.79, region=0.59)
    verdicts = case.judge()
    assert {name: row["verdict"] for name, row in verdicts.items()} == {
        "verbatim": "verbatim",
        "edge": "verbatim",
        "partial": "partial",
        "both": "verbatim",
        "unconfirmed": "unconfirmed",
        "not_selected": "not_selected",
    }
    assert (verdicts["verbatim"]["similarity"], verdicts["verbatim"]["image_id"]) == (0.95, "a")
    assert verdicts["partial"]["region_similarity"] == 0.65
    assert verdicts["not_selected"]["similarity"] is None


def test_a_whole_copy_that_shows_the_same_in_a_region_alone_is_partial() -> None:
    case = Case()
    for name, shared in {"all": 0.8, "region": 0.6, "shifted": 0.2, "unknown": None}.items():
        case.caption(name)
        case.generate(name, 0.9, pixel_agreement=shared)
    assert [row["verdict"] for row in case.judge().values()] == ["verbatim", "partial", "verbatim", "verbatim"]


def test_one_whole_copy_is_verbatim_whatever_regions_other_generations_copy() -> None:
    case = Case()
    case.caption("c")
    case.generate("c", 0.95, pixel_agreement=0.6, seed=1)
    case.generate("c", 0.85, pixel_agreement=0.9, images="b", seed=2)
    assert {name: case.judge()["c"][name] for name in ("verdict", "image_id")} == {
        "verdict": "verbatim",
        "image_id": "b",
    }


def test_only_the_deciding_embedder_decides() -> None:
    case = Case()
    case.caption("c")
    case.generate("c", 0.99, embedder="clip")
    case.matches.append({**case.matches[0], "embedder": "sscd", "similarity": 0.1})
    assert case.judge()["c"]["verdict"] == "unconfirmed"


def test_null_and_fresh_generations_never_confirm() -> None:
    case = Case()
    case.caption("c")
    case.generate("c", 0.1)
    case.generate("c", 0.99, purpose="fresh", seed=7)
    case.generate("c", 0.99, purpose="control", seed=1)
    assert case.judge()["c"]["verdict"] == "unconfirmed"
    assert case.judge()["c"]["fresh_generations"] is None


def test_a_partial_caption_names_the_image_of_its_region_not_the_nearest_whole_one() -> None:
    case = Case()
    case.caption("c")
    case.generate("c", 0.5, 0.4)
    case.regions(0.1, 0.9)
    assert case.judge()["c"]["image_id"] == "b"


def test_a_verbatim_caption_names_the_nearest_whole_image_not_that_of_a_region() -> None:
    case = Case()
    case.caption("c")
    case.generate("c", 0.9, 0.4)
    case.regions(0.1, 0.95)
    assert case.judge()["c"]["image_id"] == "a"


def test_what_failed_is_an_error_and_says_why() -> None:
    case = Case()
    case.caption("screen", score=None, selected_by=None)
    case.failures.append({"caption_id": "screen", "error": "screen: NaN"})
    case.caption("all")
    case.generate("all", error="out of memory", seed=1)
    case.generate("all", error="again", seed=2)
    case.caption("some")
    case.generate("some", error="out of memory", seed=1)
    case.generate("some", 0.9, seed=2)
    case.caption("lost")
    case.caption("not looked up")
    case.generate("not looked up")
    case.failures.append({"caption_id": "not looked up", "error": "embedder failed"})
    verdicts = case.judge()
    assert {name: (row["verdict"], row["error"], row["risk"]) for name, row in verdicts.items()} == {
        "screen": ("error", "screen: NaN", "unknown"),
        "all": ("error", "out of memory", "unknown"),
        "some": ("verbatim", "out of memory", "medium"),
        "lost": ("error", "no result was written", "unknown"),
        "not looked up": ("error", "embedder failed", "unknown"),
    }


def test_a_sampled_caption_that_could_not_be_screened_still_has_the_verdict_of_its_generation() -> None:
    case = Case()
    case.caption("c", score=None, selected_by="sample")
    case.generate("c", 0.9)
    assert case.judge()["c"]["verdict"] == "verbatim"


def test_an_unreadable_image_of_its_own_makes_no_match_unknown_but_a_match_a_match() -> None:
    case = Case(images=ImageCounts(1000, 1, pa.array(["x"])))
    case.caption("no match", own="x")
    case.generate("no match", 0.1)
    case.caption("match", own="x")
    case.generate("match", 0.9)
    case.caption("own is readable", own="y")
    case.generate("own is readable", 0.1)
    case.caption("own is absent", own=None)
    case.generate("own is absent", 0.1)
    assert [row["verdict"] for row in case.judge().values()] == ["unknown", "verbatim", "unconfirmed", "unconfirmed"]


@pytest.mark.parametrize(("unreadable", "verdict"), [(10, "unconfirmed"), (11, "unknown")])
def test_an_unpaired_caption_is_unknown_when_too_many_images_are_unreadable(unreadable: int, verdict: str) -> None:
    case = Case(images=ImageCounts(1000, unreadable), max_unreadable_fraction=0.01)
    case.caption("unpaired")
    case.generate("unpaired", 0.1)
    case.caption("paired", own="y")
    case.generate("paired", 0.1)
    assert [row["verdict"] for row in case.judge().values()] == [verdict, "unconfirmed"]


def test_without_any_image_nothing_is_negative() -> None:
    case = Case(images=ImageCounts(listed=0))
    case.caption("c")
    case.generate("c")
    case.caption("not_selected", selected_by=None)
    assert [row["verdict"] for row in case.judge().values()] == ["unknown", "not_selected"]


def test_reproduced_counts_fresh_seeds_only_and_a_region_only_for_partial_captions() -> None:
    case = Case()
    case.caption("verbatim")
    case.generate("verbatim", 0.9)
    case.caption("partial")
    case.generate("partial", 0.1, region=0.9)
    for name in ("verbatim", "partial"):
        case.generate(name, 0.9, seed=10, purpose="fresh")
        case.generate(name, 0.9, seed=14, purpose="fresh", pixel_agreement=0.5)
        case.generate(name, 0.2, seed=11, purpose="fresh", region=0.7)
        case.generate(name, 0.2, seed=12, purpose="fresh", region=0.1)
        case.generate(name, seed=13, purpose="fresh", error="failed")
    verdicts = case.judge()
    assert (verdicts["verbatim"]["fresh_copies"], verdicts["verbatim"]["fresh_generations"]) == (1, 4)
    assert (verdicts["partial"]["fresh_copies"], verdicts["partial"]["fresh_generations"]) == (3, 4)


def test_matched_own_image_is_null_where_there_is_no_own_image_or_no_match() -> None:
    case = Case()
    for name, own in (("own", "b"), ("other", "z"), ("none", None), ("unconfirmed", "a")):
        case.caption(name, own=own)
        case.generate(name, *((0.1,) if name == "unconfirmed" else (0.95, 0.9)))
    assert [row["matched_own_image"] for row in case.judge().values()] == [True, False, None, None]


def test_a_caption_with_a_failed_generation_is_not_cleared() -> None:
    case = Case()
    for name, similarity in (("copies", 0.9), ("does_not", 0.1)):
        case.caption(name)
        case.generate(name, similarity)
        case.generate(name, seed=2, error="out of memory")
    found = case.judge()
    assert [row["verdict"] for row in found.values()] == ["verbatim", "unknown"]
    assert found["does_not"]["error"] == "out of memory"


def test_in_a_paired_dataset_a_caption_with_a_row_without_an_image_is_not_cleared() -> None:
    verdicts = {}
    for paired in (True, False):
        case = Case(images=ImageCounts(listed=1000, paired=paired))
        case.caption("paired", own="a")
        case.caption("unpaired")
        case.caption("partly", own="a")
        case.rows.append({"caption_id": "partly", "image_id": None})
        case.caption("copies")
        for name in ("paired", "unpaired", "partly", "copies"):
            case.generate(name, 0.9 if name == "copies" else 0.1)
        found = case.judge()
        verdicts[paired] = [row["verdict"] for row in found.values()]
        if paired:
            assert found["partly"]["error"] == "a row of the caption has no image of its own"
    assert verdicts[True] == ["unconfirmed", "unknown", "unknown", "verbatim"]
    assert verdicts[False] == ["unconfirmed"] * 3 + ["verbatim"]


def test_captions_that_share_a_matched_image_are_one_family() -> None:
    case = Case()
    for name, images in {"1": "ab", "2": "bc", "3": "cd", "4": "xy", "5": "d"}.items():
        case.caption(name)
        case.generate(name, *(0.9 for _ in images), images=images)
    case.caption("6")
    case.generate("6", 0.1, images="a")
    assert [row["family"] for row in case.judge().values()] == ["1", "1", "1", "4", "1", None]


def test_captions_that_copied_the_same_region_of_different_images_are_one_family() -> None:
    case = Case()
    for name, image in {"1": "a", "2": "b", "3": "c"}.items():
        case.caption(name)
        case.generate(name, 0.9, images=image, pixel_agreement=0.6)
    case.links.append({"image_id": "c", "other_id": "a"})
    assert [row["family"] for row in case.judge().values()] == ["1", "2", "1"]


def test_p_not_reproduced_ranks_scores_among_the_sampled_captions_that_do_not_reproduce() -> None:
    case = Case()
    for score in range(1, 10):
        case.caption(f"s{score}", float(score), "sample")
        case.generate(f"s{score}", 0.1)
    case.caption("reproduces", 50.0, "sample")
    case.generate("reproduces", 0.9)
    case.caption("budget", 9.5)
    case.generate("budget", 0.1)
    case.caption("low", 0.5, None)
    case.caption("unscored", None, None)
    verdicts = case.judge()
    assert verdicts["reproduces"]["p_not_reproduced"] == pytest.approx(0.1)
    assert verdicts["budget"]["p_not_reproduced"] is None  # the sample was drawn from the other captions
    assert verdicts["low"]["p_not_reproduced"] == pytest.approx(1.0)
    assert verdicts["s9"]["p_not_reproduced"] == pytest.approx(1 / 9)  # among the other eight
    assert verdicts["s1"]["p_not_reproduced"] == pytest.approx(1.0)
    assert verdicts["unscored"]["p_not_reproduced"] is None


def test_without_a_sample_there_is_no_p_not_reproduced() -> None:
    case = Case()
    case.caption("c")
    case.generate("c", 0.1)
    assert case.judge()["c"]["p_not_reproduced"] is None


def test_an_audit_of_nothing_has_no_verdicts() -> None:
    assert Case().judge() == {}


def test_captions_may_be_judged_in_parts() -> None:
    case = Case()
    for name, similarity in {"a": 0.9, "b": 0.85, "c": 0.1, "d": 0.2}.items():
        case.caption(name, own="b")
        case.generate(name, similarity, region=0.7 if name == "d" else None)
        case.generate(name, similarity, seed=9, purpose="fresh")
    case.caption("e", selected_by=None)
    case.caption("f", score=None, selected_by=None)
    whole, captions = case.judge(), case.captions
    apart = {}
    for caption in captions:
        case.captions = [caption]
        apart |= case.judge()
    assert {row["verdict"] for row in whole.values()} == {"verbatim", "partial", "unconfirmed", "not_selected", "error"}
    assert {row["family"] for row in whole.values()} == {"a", None}
    assert apart == whole


def test_the_perturbation_margin_stands_beside_the_score_where_there_is_one() -> None:
    case = Case()
    for name in ("a", "b"):
        case.caption(name)
        case.generate(name, 0.1)
    case.perturbations = [{"caption_id": "b", "perturbation_margin": 2.5}]
    found = case.judge()
    assert (found["a"]["perturbation_margin"], found["b"]["perturbation_margin"]) == (None, 2.5)
