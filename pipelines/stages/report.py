"""Report: write RUN/report.html."""

from __future__ import annotations

from pipelines.engine.context import Run


def run(run: Run) -> None:
    """Write the manifest and the report."""
    from reports.html import write

    with run.progress.stage("report", ""), run.manifest.stage("report"):
        run.manifest.write()
        write(run.config.out)
