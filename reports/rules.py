"""What must hold between the tables of a run: SQL that counts what breaks it (docs/design.md, section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from audit.errors import AuditError
from audit.schema import CAPTION_SETS, KEEP_WORDS, PURPOSES, RISK_WORDS, STATUS_WORDS, SUPPORT_WORDS, VERDICT_WORDS

CONFIRMED = "from verdicts where verdict in ('verbatim', 'partial')"
SELECTED = "from scores where selected_by is not null"


class Rule(NamedTuple):
    """A statement, what is counted, and the query that counts it: none may be left."""

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
    ("mitigation", "keep", KEEP_WORDS),
)
ALWAYS = (
    Rule(
        "every caption occurs once in `captions`",
        "captions that occur twice",
        "select count(*) from (from captions select caption_id group by all having count(*) > 1)",
    ),
    Rule(
        "every row has its caption, and every caption as many rows as its row_count says",
        "captions whose rows and row_count differ",
        """select count(*) from (from rows select caption_id, count(*) as n group by all) r
           full join captions c using (caption_id) where r.n is distinct from c.row_count""",
    ),
    *(
        Rule(
            f"every caption has exactly one {what}",
            f"captions without one, with two, or rows of `{table}` without a caption",
            f"""select count(*) from (from {table} select caption_id, count(*) as n group by all) t
                full join captions c using (caption_id) where c.caption_id is null or t.n is distinct from 1""",
        )
        for table, what in (("caption_groups", "group"), ("scores", "row of scores"), ("verdicts", "verdict"))
    ),
    Rule(
        "every verdict carries the caption and the row_count of its caption",
        "verdicts that differ from their caption",
        """select count(*) from verdicts v join captions c using (caption_id)
           where v.caption is distinct from c.caption or v.row_count is distinct from c.row_count""",
    ),
    Rule(
        "every error verdict says why",
        "error verdicts without a message",
        "select count(*) from verdicts where verdict = 'error' and error is null",
    ),
    Rule(
        "no caption copied an image twice, and those that copied any are the confirmed ones",
        "captions and images that occur twice, or captions that are not confirmed",
        f"""select count(*) from (from copied_images select caption_id, image_id, count(*) as n group by all) i
            left join ({CONFIRMED}) v using (caption_id) where i.n > 1 or v.caption_id is null""",
    ),
    Rule(
        "every confirmed caption copied the training image that it names, in the way that its verdict says",
        "verbatim or partial verdicts that `copied_images` does not bear out",
        f"""select count(*) from ({CONFIRMED}) v left join copied_images i using (caption_id, image_id)
            where i.copy_type is distinct from v.verdict""",
    ),
    Rule(
        "no confirmed caption that no fresh seed reproduced has more than a low risk",
        "such captions of another risk",
        f"select count(*) from ({CONFIRMED}) where fresh_generations > 0 and fresh_copies = 0 and risk <> 'low'",
    ),
    Rule(
        "`evidence` is the training images of the confirmed captions, each once",
        "images that are missing, occur twice or belong to no verdict",
        f"""select count(*) from (from evidence select image_id, count(*) as n group by all) e
            full join (select distinct image_id from ({CONFIRMED})) v using (image_id)
            where v.image_id is null or e.n is distinct from 1""",
    ),
    Rule(
        "no match occurs twice, and each is of a generation",
        "captions, purposes, seeds, embedders and ranks that occur twice or were not generated",
        """select count(*) from (from matches select caption_id, purpose, seed, embedder, rank, count(*) as n
                                 group by all) m
           left join (from generations where status = 'ok') g using (caption_id, purpose, seed)
           where m.n > 1 or g.caption_id is null""",
    ),
    Rule(
        "every image is in one cluster, which has as many as it says",
        "images that are in two, or in one of another size",
        """select count(*) from (select cluster_size, count(*) over (partition by image_id) as times,
                                        count(*) over (partition by cluster) as members from image_clusters)
           where times > 1 or cluster_size <> members""",
    ),
    Rule(
        "every setting of the mitigation has the same captions and seeds, or they are in `errors`",
        "captions, seeds and settings that are missing or occur twice",
        """with units as (select distinct caption_set, caption_id, seed from mitigation),
                settings as (select distinct caption_set, bos_scale, keep from mitigation),
                failed as (select distinct caption_id from errors where stage = 'mitigate'),
                found as (select caption_set, caption_id, seed, bos_scale, keep, count(*) as n
                          from mitigation group by all)
           select count(*) from units join settings using (caption_set)
           left join found using (caption_set, caption_id, seed, bos_scale, keep) left join failed using (caption_id)
           where found.n > 1 or (found.n is null and failed.caption_id is null)""",
    ),
    Rule(
        "every setting of the mitigation has one row in `mitigation_summary`, which counts its images",
        "groups and settings without a row, with two, or with other images",
        """with found as (select caption_set, bos_scale, keep, count(*) as n from mitigation group by all),
                said as (select caption_set, bos_scale, keep, count(*) as n, sum(images) as images
                         from mitigation_summary group by all)
           select count(*) from found full join said using (caption_set, bos_scale, keep)
           where said.n is distinct from 1 or said.images is distinct from found.n""",
    ),
)


def rules_of(manifest: dict[str, Any]) -> Iterator[Rule]:
    """All rules of an audit with this manifest. Raises AuditError if it does not name its seeds."""
    yield from ALWAYS
    yield from _by_seed(manifest)
    yield _of_control_captions(manifest)
    yield _of_perturbations(manifest)
    for number, embedder in enumerate(embedders_of(manifest)):
        yield from _of_embedder(embedder, number == 0)


def embedders_of(manifest: dict[str, Any]) -> list[str]:
    """The embedders that looked at images, the one that decides first; none where no images were given."""
    listed = manifest.get("stages", {}).get("embed", {}).get("rows_in")
    return [] if listed is None else list(manifest["resolved"]["confirm"]["embedders"])


def _by_seed(manifest: dict[str, Any]) -> Iterator[Rule]:
    """Each caption once with each seed, wherever captions meet seeds."""
    generated = {purpose: f"from generations where purpose = '{purpose}'" for purpose in PURPOSES}
    null = f"from ({generated['control']}) semi join control_screen using (caption_id)"
    for what, expected, found, seeds, stage in (
        ("caption was screened", "from captions", "from screen", "screen", "screen"),
        ("control caption was screened", "from control_screen", "from control_screen", "screen", "calibrate"),
        ("selected caption was generated", SELECTED, generated["discover"], "generate", "generate"),
        ("confirmed caption was generated again", CONFIRMED, generated["fresh"], "fresh", "generate"),
        ("control caption that was generated was so", null, generated["control"], "generate", "generate"),
    ):
        numbers = _seeds(manifest, seeds)
        yield Rule(
            f"every {what} once with every seed, or is in `errors`",
            f"captions and seeds missing without a row of `errors`, twice, or of another caption; seeds {numbers}",
            f"""with expected as (select distinct caption_id, unnest({numbers}::bigint[]) as seed from ({expected})),
                     found as (from ({found}) select caption_id, seed, count(*) as n group by all),
                     failed as (select distinct caption_id from errors where stage = '{stage}')
                select count(*) from expected full join found using (caption_id, seed)
                left join failed on expected.caption_id = failed.caption_id
                where found.n > 1 or expected.caption_id is null or (found.n is null and failed.caption_id is null)""",
        )


def _of_control_captions(manifest: dict[str, Any]) -> Rule:
    given = int(manifest.get("calibration", {}).get("control_captions", 0))
    return Rule(
        "`control_screen` has every control caption",
        f"more or less than the {given:,} that there are",
        f"select abs(count(distinct caption_id) - {given}) from control_screen",
    )


def _of_perturbations(manifest: dict[str, Any]) -> Rule:
    asked = bool(manifest.get("resolved", {}).get("select", {}).get("perturbation_margin"))
    return Rule(
        "every selected caption has one perturbation margin, if they were asked for",
        "selected captions without one, with two, or margins of other captions",
        f"""select count(*) from (from perturbations select caption_id, count(*) as n group by all) t
            full join ({SELECTED} and {asked}) s using (caption_id)
            where s.caption_id is null or t.n is distinct from 1""",
    )


def _of_embedder(embedder: str, decides: bool) -> Iterator[Rule]:
    """What holds between the vectors of an embedder and what was found by them."""
    table, matches = f'"embeddings_{embedder}"', f"(from matches where embedder = '{embedder}')"
    yield Rule(
        f"every match is an image of `embeddings_{embedder}`",
        "matches with no such image",
        f"select count(*) from {matches} anti join {table} using (image_id)",
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
            "every training image that has a vector is in a cluster, and no other is",
            f"images that `embeddings_{embedder}` or `image_clusters` alone has",
            f"""select count(*) from (select distinct image_id, true as here from {table}) e
                full join (select distinct image_id, true as there from image_clusters) c using (image_id)
                where here is null or there is null""",
        )
        yield Rule(
            f"every copied image is an image of `embeddings_{embedder}`",
            "copied images that are none",
            f"select count(*) from copied_images anti join {table} using (image_id)",
        )


def _seeds(manifest: dict[str, Any], stage: str) -> list[int]:
    try:
        return [int(seed) for seed in manifest["seeds"][stage]]
    except (KeyError, TypeError, ValueError) as error:
        raise AuditError(f"no list of seeds under seeds.{stage}", where="manifest.json") from error
