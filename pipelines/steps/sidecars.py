"""Count what an audit of caption files beside images does not read: further lines, and images without captions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from audit.record.manifest_entries import SidecarCounts
from pipelines.engine.context import Run
from pipelines.reading import captions as captions_of
from pipelines.reading import plaintext
from pipelines.reading.caption_files import Sidecar, has_more_lines
from pipelines.reading.files import File, find, neighbours
from pipelines.reading.folders import Folder, is_image
from pipelines.reading.slices import Slice

EXAMPLES = 3


def run(run: Run, caption_files: Sequence[File], slices: Iterable[Slice], image_files: Sequence[File]) -> None:
    """Record in `accounting.sidecars` of the manifest what is not read of caption files beside images, and report it.

    Args:
        run: The run. Its manifest must already have `accounting`.
        caption_files: All caption files. If none of them is a `Sidecar`, nothing is recorded.
        slices: The slices of those files.
        image_files: The image files and folders of the run.
    """
    sidecars = [file for file in caption_files if isinstance(file, Sidecar)]
    if not sidecars:
        return
    longer = sum(isinstance(part.file, Sidecar) and has_more_lines(part) for part in slices)
    images = _images(run, sidecars, image_files)
    if any(not isinstance(file, Sidecar) and captions_of.module_of(file) is not plaintext for file in caption_files):
        # Caption files of other formats name the images in other folders.
        folders = {os.path.dirname(file.uri) for file in sidecars}
        images = {uri: name for uri, name in images.items() if os.path.dirname(uri) in folders}
    captioned = {os.path.join(os.path.dirname(file.uri), file.image) for file in sidecars}
    without = sorted(name for uri, name in images.items() if uri not in captioned)
    run.manifest.data.accounting.sidecars = SidecarCounts(
        caption_files=len(sidecars),
        with_more_lines=longer,
        images=len(images),
        images_without_caption=len(without),
        examples=without[:EXAMPLES],
    )
    if longer:
        run.progress.say(
            f"ingest: {longer:,} of {len(sidecars):,} caption files beside images have more than one line; only the "
            "first is audited (with enable_wildcard, kohya's trainers use the others too)"
        )
    if without:
        run.progress.say(
            f"ingest: {len(without):,} of {len(images):,} images have no caption file of their own and give no row, "
            f"such as {', '.join(without[:EXAMPLES])}"
        )


def _images(run: Run, sidecars: Sequence[File], image_files: Sequence[File]) -> dict[str, str]:
    """Map URIs of image files to names: those of the run, or else those among and beside the caption files."""
    found = [image for file in image_files if isinstance(file, Folder) for image in file.images]
    if run.config.images is None:
        found = [*neighbours(sidecars), *find(run.config.captions.path, "captions")]
    return {image.uri: image.name for image in found if is_image(image.uri)}
