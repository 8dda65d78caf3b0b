"""Define what must hold between the tables of a run, as SQL that counts violations (docs/reference/manifest.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from audit.record.manifest import RunManifest
from audit.schema import (
    ANSWER_WORDS,
    CAPTION_SETS,
    METHOD_WORDS,
    PAIR_TYPES,
    PURPOSES,
    RISK_WORDS,
    STATUS_WORDS,
    SUPPORT_WORDS,
    VERDICT_WORDS,
)

CONFIRMED = "from verdicts where verdict in ('verbatim', 'partial')"
SELECTED = "from scores where selected_by is not null"


class Rule(NamedTuple):
    """State a rule, describe its violations, and give the query that counts them; the count must be 0."""

    name: str
    counted: str
    sql: str


WORDS = (
    ("verdicts", "verdict", VERDICT_WORDS),
    ("verdicts", "risk", RISK_WORDS),
    ("verdicts", "support", (None, *SUPPORT_WORDS)),
    ("generations", "purpose", PURPOSES),
    ("generations", "status", STATUS_WORDS),
    ("screen", "status", STATUS_WORDS),
    ("mitigation", "caption_set", CAPTION_SETS),
    ("mitigation", "method", METHOD_WORDS),
    ("review_pairs", "pair_type", PAIR_TYPES),
    ("reviews", "answer", ANSWER_WORDS),
)
ALWAYS = (
    Rule(
        "every caption occurs once in `captions`",
        "captions that occur twice",
        "select count(*) from (from captions select caption_id group by all having count(*) > 1)",
    ),
    Rule(
        "every row has its caption, and every caption has as many rows as its row_count",
        "captions whose number of rows differs from row_count",
        """select count(*) from (from rows select caption_id, count(*) as n group by all) r
           full join captions c using (caption_id) where r.n is distinct from c.row_count""",
    ),
    *(
        Rule(
            f"every caption has exactly one {what}",
            f"captions with none or several, or rows of `{table}` without a caption",
            f"""select count(*) from (from {table} select caption_id, count(*) as n group by all) t
                full join captions c using (caption_id) where c.caption_id is null or t.n is distinct from 1""",
        )
        for table, what in (("caption_groups", "group"), ("scores", "row of scores"), ("verdicts", "verdict"))
    ),
    Rule(
        "every verdict has the text and the row_count of its caption",
        "verdicts that differ from their caption",
        """select count(*) from verdicts v join captions c using (caption_id)
           where v.caption is distinct from c.caption or v.row_count is distinct from c.row_count""",
    ),
    Rule(
        "every error verdict has a message",
        "error verdicts without a message",
        "select count(*) from verdicts where verdict = 'error' and error is null",
    ),
    Rule(
        "every copied image is listed once per caption, and only for confirmed captions",
        "pairs of caption and image that occur twice or whose caption is not confirmed",
        f"""select count(*) from (from copied_images select caption_id, image_id, count(*) as n group by all) i
            left join ({CONFIRMED}) v using (caption_id) where i.n > 1 or v.caption_id is null""",
    ),
    Rule(
        "every confirmed caption copied the training image in its verdict, as the verdict says",
        "verbatim or partial verdicts that `copied_images` does not support",
        f"""select count(*) from ({CONFIRMED}) v left join copied_images i using (caption_id, image_id)
            where i.copy_type is distinct from v.verdict""",
    ),
    Rule(
        "confirmed captions that no fresh seed reproduced have a low risk",
        "such captions with another risk",
        f"select count(*) from ({CONFIRMED}) where fresh_generations > 0 and fresh_copies = 0 and risk <> 'low'",
    ),
    Rule(
        "`evidence` has the training images of the confirmed captions, each once",
        "images that are missing, occur twice or belong to no confirmed caption",
        f"""select count(*) from (from evidence select image_id, count(*) as n group by all) e
            full join (select distinct image_id from ({CONFIRMED})) v using (image_id)
            where v.image_id is null or e.n is distinct from 1""",
    ),
    Rule(
        "no match occurs twice, and each belongs to a generation",
        "combinations of caption, purpose, seed, embedder and rank that occur twice or were not generated",
        """select count(*) from (from matches select caption_id, purpose, seed, embedder, rank, count(*) as n
                                 group by all) m
           left join (from generations where status = 'ok') g using (caption_id, purpose, seed)
           where m.n > 1 or g.caption_id is null""",
    ),
    Rule(
        "every image is in one cluster, and every cluster has cluster_size images",
        "images that are in several clusters, or in a cluster of another size",
        """select count(*) from (select cluster_size, count(*) over (partition by image_id) as times,
                                        count(*) over (partition by cluster) as members from image_clusters)
           where times > 1 or cluster_size <> members""",
    ),
    Rule(
        "every mitigation setting has the same captions and seeds, or they are in `errors`",
        "combinations of caption, seed and setting that are missing or occur twice",
        """with units as (select distinct caption_set, caption_id, seed from mitigation),
                settings as (select distinct caption_set, method, settings from mitigation),
                failed as (select distinct caption_id from errors where stage = 'mitigate'),
                found as (select caption_set, caption_id, seed, method, settings, count(*) as n
                          from mitigation group by all)
           select count(*) from units join settings using (caption_set)
           left join found using (caption_set, caption_id, seed, method, settings) left join failed using (caption_id)
           where found.n > 1 or (found.n is null and failed.caption_id is null)""",
    ),
    Rule(
        "every mitigation setting has one row in `mitigation_summary` with the number of its images",
        "caption sets and settings with no row, with several rows, or with another number of images",
        """with found as (select caption_set, method, settings, count(*) as n from mitigation group by all),
                said as (select caption_set, method, settings, count(*) as n, sum(images) as images
                         from mitigation_summary group by all)
           select count(*) from found full join said using (caption_set, method, settings)
           where said.n is distinct from 1 or said.images is distinct from found.n""",
    ),
    Rule(
        "every pair of a review occurs once, and its cases are confirmed captions with the image of their verdict",
        "pairs that occur twice, or cases that `verdicts` does not support",
        f"""select count(*) from (select *, count(*) over (partition by pair) as times from review_pairs) p
            left join ({CONFIRMED}) v using (caption_id, image_id)
            where times > 1 or (pair_type = 'case' and v.caption_id is null)""",
    ),
    Rule(
        "every answer of a review is to one of its pairs, and no rater answers twice",
        "answers to other pairs, or second answers",
        """select count(*) from (select *, count(*) over (partition by rater, pair) as times from reviews) r
           left join review_pairs p using (pair, pair_type)
           where times > 1 or p.pair is null or r.caption_id is distinct from p.caption_id
                 or r.image_id is distinct from p.image_id""",
    ),
)


def rules_of(manifest: RunManifest) -> Iterator[Rule]:
    """Yield all rules for an audit with this manifest."""
    yield from ALWAYS
    yield from _by_seed(manifest)
    yield _of_control_captions(manifest)
    yield _of_perturbations(manifest)
    for number, embedder in enumerate(embedders_of(manifest)):
        yield from _of_embedder(embedder, number == 0)


def embedders_of(manifest: RunManifest) -> list[str]:
    """Return the embedders of the run, the deciding one first, or an empty list if no images were given."""
    return manifest.embedders if "embed" in manifest.stages else []


def _by_seed(manifest: RunManifest) -> Iterator[Rule]:
    """Yield the rules that each caption occurs once with each seed."""
    generated = {purpose: f"from generations where purpose = '{purpose}'" for purpose in PURPOSES}
    control = f"from ({generated['control']}) semi join control_screen using (caption_id)"
    seeds = manifest.seeds
    for what, expected, found, numbers, stage in (
        ("caption was screened", "from captions", "from screen", seeds.screen, "screen"),
        ("control caption was screened", "from control_screen", "from control_screen", seeds.screen, "calibrate"),
        ("selected caption was generated", SELECTED, generated["discover"], seeds.generate, "generate"),
        ("confirmed caption was generated again", CONFIRMED, generated["fresh"], seeds.fresh, "generate"),
        ("control caption with a generation was generated", control, generated["control"], seeds.generate, "generate"),
        ("held-out pair was generated", "from held_out_pairs", generated["pair"], seeds.generate, "generate"),
    ):
        yield Rule(
            f"every {what} once with every seed, or is in `errors`",
            f"captions and seeds that are missing without an error, occur twice or are unexpected; seeds {numbers}",
            f"""with expected as (select distinct caption_id, unnest({numbers}::bigint[]) as seed from ({expected})),
                     found as (from ({found}) select caption_id, seed, count(*) as n group by all),
                     failed as (select distinct caption_id from errors where stage = '{stage}')
                select count(*) from expected full join found using (caption_id, seed)
                left join failed on expected.caption_id = failed.caption_id
                where found.n > 1 or expected.caption_id is null or (found.n is null and failed.caption_id is null)""",
        )


def _of_control_captions(manifest: RunManifest) -> Rule:
    given = manifest.calibration.control_captions
    return Rule(
        "`control_screen` has every control caption",
        f"control captions more or fewer than the {given:,} given",
        f"select abs(count(distinct caption_id) - {given}) from control_screen",
    )


def _of_perturbations(manifest: RunManifest) -> Rule:
    asked = bool(manifest.resolved.get("select", {}).get("perturbation_margin"))
    return Rule(
        "every selected caption has one perturbation margin, if margins were requested",
        "selected captions with none or several, or margins of other captions",
        f"""select count(*) from (from perturbations select caption_id, count(*) as n group by all) t
            full join ({SELECTED} and {asked}) s using (caption_id)
            where s.caption_id is null or t.n is distinct from 1""",
    )


def _of_embedder(embedder: str, decides: bool) -> Iterator[Rule]:
    """Yield the rules that relate the vectors of an embedder to the matches found with them."""
    table, matches = f'"embeddings_{embedder}"', f"(from matches where embedder = '{embedder}')"
    yield Rule(
        f"every match is an image in `embeddings_{embedder}`",
        "matches whose image is not there",
        f"""select count(*) from {matches} m anti join {table} using (image_id)
            anti join (select caption_id, image_id, 'pair' as purpose from held_out_pairs) p
            using (caption_id, image_id, purpose)""",
    )
    yield Rule(
        f"every generation was looked up in `embeddings_{embedder}`, or is in `errors`",
        "generations without a match",
        f"""select count(*) from (from generations where status = 'ok') anti join {matches}
            using (caption_id, purpose, seed) anti join (from errors where stage = 'confirm') using (caption_id)
            where exists (from {table})""",
    )
    if decides:
        yield Rule(
            "the images with a vector are the images in clusters",
            f"images that are only in `embeddings_{embedder}` or only in `image_clusters`",
            f"""select count(*) from (select distinct image_id, true as here from {table}) e
                full join (select distinct image_id, true as there from image_clusters) c using (image_id)
                where here is null or there is null""",
        )
        yield Rule(
            f"every copied image is an image in `embeddings_{embedder}`",
            "copied images that are not there",
            f"select count(*) from copied_images anti join {table} using (image_id)",
        )
