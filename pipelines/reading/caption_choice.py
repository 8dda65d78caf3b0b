"""Choose the caption files of a dataset, and refuse two files that may both hold the caption of one image."""

from __future__ import annotations

import os
from collections.abc import Sequence

from audit.errors import UsageError
from pipelines.configuration.inputs import Captions, Images
from pipelines.reading import caption_files
from pipelines.reading import captions as captions_of
from pipelines.reading.caption_files import Sidecar
from pipelines.reading.files import File, find, is_folder, is_glob, neighbours, paths_of
from pipelines.reading.imagefolder import is_metadata


def choose_caption_files(captions: Captions, images: Images | None) -> list[File]:
    """Return the caption files. In a folder, images and files of unknown formats are skipped.

    Args:
        captions: The configuration of the captions: paths, globs and folders.
        images: The configuration of the images, which captions may lie beside, or None.

    Returns:
        The caption files. A text file beside an image is a `Sidecar`.

    Raises:
        AuditError: A path is missing.
        UsageError: An image has both a `.txt` and a `.caption` file beside it, or a folder has both imagefolder
            metadata and caption files beside images.
    """
    paths = paths_of(captions.path)
    found = find(captions.path, "captions")
    files = caption_files.with_sidecars(found, [*found, *_images_beside(found, paths, images)])
    if any(map(is_folder, paths)):
        files = _among(files, paths)
    _refuse_two_captions(files, paths)
    return files


def _images_beside(found: Sequence[File], paths: Sequence[str], images: Images | None) -> list[File]:
    """Return the images that text files may lie beside: those of the run, else those next to files found by a glob."""
    texts = [file for file in found if caption_files.may_hold(file)]
    if texts and images:
        return find(images.path, "images")
    return neighbours(texts) if any(map(is_glob, paths)) else []


def _among(files: list[File], paths: Sequence[str]) -> list[File]:
    """Return the caption files among the files of a folder.

    If there is imagefolder metadata, only the metadata is read. If an img2dataset shard has a tar and a Parquet file,
    the Parquet file is read, because it also has the rows that were not downloaded.
    """
    metadata = [file for file in files if is_metadata(file)]
    if metadata:
        _refuse_two_kinds(metadata[0], [file for file in files if isinstance(file, Sidecar)], paths)
        return metadata
    stems = {os.path.splitext(file.uri)[0] for file in files if file.name.endswith(".parquet")}
    captions = [
        file
        for file in files
        if not (file.name.endswith(".tar") and os.path.splitext(file.uri)[0] in stems)
        and (captions_of.known(file.name) or caption_files.may_hold(file))
    ]
    return captions or files


def _refuse_two_kinds(metadata: File, sidecars: Sequence[Sidecar], paths: Sequence[str]) -> None:
    """Raise UsageError if a folder with imagefolder metadata also has caption files beside images."""
    if not sidecars:
        return
    example = sidecars[0]
    suffix = os.path.splitext(example.name)[1]
    raise UsageError(
        f"the folder has both {metadata.name} and {len(sidecars):,} caption files beside images, such as "
        f"{example.name} beside {example.image}: it is unclear which of them hold the captions",
        where=metadata.uri,
        hint=_either(paths, os.path.basename(metadata.name), f"*{suffix}"),
    )


def _refuse_two_captions(files: Sequence[File], paths: Sequence[str]) -> None:
    """Raise UsageError if two caption files lie beside one image."""
    first: dict[str, Sidecar] = {}
    twice: list[tuple[Sidecar, Sidecar]] = []
    for file in files:
        if isinstance(file, Sidecar):
            other = first.setdefault(os.path.splitext(file.uri)[0], file)
            if other is not file:
                twice.append((other, file))
    if twice:
        one, two = twice[0]
        raise UsageError(
            f"{len(twice):,} images have two caption files, such as {one.name} and {two.name} beside {one.image}; "
            "kohya's trainers read only the one that caption_extension names",
            where=two.uri,
            hint=_either(paths, *(f"*{suffix}" for suffix in caption_files.SUFFIXES)),
        )


def _either(paths: Sequence[str], *names: str) -> str:
    """Return a hint that says how to read only one of several kinds of files."""
    if not all(map(is_folder, paths)):
        return "Name only files of one kind in `captions`."
    globs = [", ".join(f"{path.rstrip('/')}/**/{name}" for path in paths) for name in names]
    settings = [f"captions: [{glob}]" if len(paths) > 1 else f"captions: {glob}" for glob in globs]
    return f"Name the ones that the model was trained on: {' or '.join(settings)}"
