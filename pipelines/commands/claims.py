"""The command `crossaudit claims`."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import floor
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audit.errors import AuditError
from pipelines.commands.options import RunDir, Verbose

if TYPE_CHECKING:
    from audit.record.manifest import RunManifest
    from audit.statistics.claims import Claim


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit claims run --format json")(claims)


def claims(
    run: RunDir,
    format_: Annotated[str, typer.Option("--format", metavar="text|json", help="How to print them.")] = "text",
    verbose: Verbose = False,
) -> None:
    """State what an audit has shown, in sentences that can be quoted.

    Each claim comes with its confidence level and with what would change it. Before
    them stand the population and the protocol that they hold for.
    """
    from pipelines.console.terminal import say
    from pipelines.engine.manifest import read
    from pipelines.tables.reviews import reviewed_claim

    if format_ not in ("text", "json"):
        raise typer.BadParameter("choose text or json", param_hint="--format")
    manifest = read(run)
    if not manifest.claims.sentences:
        raise AuditError("this run states no claims yet", where=run, hint="Finish the audit: `crossaudit run`.")
    review = reviewed_claim(run)
    if format_ == "json":
        content = {"run": run, "protocol": protocol(manifest), **manifest.claims.model_dump()}
        typer.echo(json.dumps(content | {"review": review and asdict(review)}, indent=2))
    else:
        say("\n".join(lines(manifest, review)))


def protocol(manifest: RunManifest) -> dict[str, Any]:
    """Return what counted as a copy in this run: the model, how images were generated, and the thresholds."""
    resolved = manifest.resolved
    return {
        "model": manifest.models.get("model", {}),
        "seeds": manifest.seeds.generate,
        "steps": resolved["generate"]["steps"],
        "guidance_scale": resolved["generate"]["guidance_scale"],
        "embedder": manifest.embedders[0],
        "thresholds": {kind: limit.value for kind, limit in manifest.deciding_thresholds.items()},
        "images": manifest.stages["embed"].rows_out if "embed" in manifest.stages else 0,
        "version": manifest.version,
    }


def lines(manifest: RunManifest, review: Claim | None) -> list[str]:
    """Return the claims of a run, and that of its review if there is one, as lines of text."""
    from audit.record.manifest import denoiser_sha256
    from audit.verdicts.recall import STRATUM_LEVEL

    how, stated = protocol(manifest), manifest.claims
    limits = " or ".join(
        f"{value:.3f} ({'whole image' if kind == 'verbatim' else 'region'})"
        for kind, value in how["thresholds"].items()
        if value is not None
    )
    weights, seeds = denoiser_sha256(how["model"])[:12], len(how["seeds"])
    found = [
        f"Population: {stated.population}.",
        f"Protocol: {seeds} generation{'' if seeds == 1 else 's'} per caption with {how['steps']} steps at guidance "
        f"scale {how['guidance_scale']:g}, by the model whose denoising network has the sha256 {weights}...; each "
        f"was compared with {how['images']:,} training images. A generation is flagged as a copy from a similarity of "
        f"{limits or 'none'} by {how['embedder']} on.",
        "",
        stated.sentences[0],
        "",
    ]
    for number, claim in enumerate(stated.claims, 1):
        found += [f"{number}. {claim.sentence}", f"   {claim.would_change}"]
    found += ["", stated.sentences[-1]]
    if review is not None:
        found += [
            "",
            f"Review, which came after the audit and holds on its own: {review.sentence}",
            review.would_change,
        ]
    known = [stratum for stratum in stated.recall_by_stratum if stratum.recall_low is not None]
    if known:
        each = f"each line holds on its own, {100 * STRATUM_LEVEL:g} % confidence"
        found += ["", f"Recall of the budget by stratum ({each})"]
    for stratum in known:
        low, sample = floor(100 * (stratum.recall_low or 0)), stratum.sample
        found.append(
            f"  {stratum.value}: at least {low} % ({stratum.census.flagged:,} flagged in the budget, "
            f"{sample.flagged:,} of {sample.captions:,} sampled; {stratum.captions:,} captions)"
        )
    return found
