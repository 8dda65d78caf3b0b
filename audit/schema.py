"""Define the Arrow schemas of a run (docs/reference/tables.md). This module imports only pyarrow."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

STRING, INT64, FLOAT64 = pa.string(), pa.int64(), pa.float64()
# Metadata key under which crossaudit's tables and files record, as JSON, what they depend on.
METADATA_KEY = b"crossaudit"

# Columns that detectors write. The column of a scalar detector has the detector's name.
DETECTOR_COLUMNS: dict[str, pa.DataType] = {
    "caption_response": FLOAT64,
    "entropy_single_step": FLOAT64,
    "entropy_trajectory": FLOAT64,
    "entropy_trajectory_signed": FLOAT64,
    "entropy_last": FLOAT64,
    "summary_change": FLOAT64,
    "entropy_steps": pa.list_(pa.float32()),
    "token_attention": pa.list_(pa.float32()),
    "noise_magnitude": FLOAT64,
    "noise_magnitude_mean": FLOAT64,
    "layer_entropy": pa.list_(FLOAT64),
    "layer_bos": pa.list_(FLOAT64),
    "noise_response": pa.list_(FLOAT64),
    "noise_alignment": FLOAT64,
    "one_step_error": FLOAT64,
    "step_change": FLOAT64,
    "condition_difference": FLOAT64,
    "direction": pa.list_(pa.float32()),
    "early_entropy": pa.list_(FLOAT64),
    "early_bos": pa.list_(FLOAT64),
    "late_entropy": pa.list_(FLOAT64),
    "late_bos": pa.list_(FLOAT64),
    "update_norms": pa.list_(FLOAT64),
    "score_difference": FLOAT64,
    "difference_region": pa.binary(),  # a grey PNG with the resolution of the latents
    "region": pa.binary(),  # a grey PNG with the resolution of the attention
}

# The same columns for a reference model.
REFERENCE = "reference_"
DETECTOR_COLUMNS |= {REFERENCE + name: kind for name, kind in DETECTOR_COLUMNS.items() if kind != pa.binary()}

ROWS = pa.schema(
    [
        ("caption_id", STRING),
        ("file", STRING),
        ("row", INT64),
        ("key", STRING),
        ("url", STRING),
        ("image_id", STRING),
    ]
)
CAPTIONS = pa.schema([("caption_id", STRING), ("caption", STRING), ("row_count", INT64)])
CAPTION_GROUPS = pa.schema([("caption_id", STRING), ("caption_group", STRING)])
SCORES = pa.schema(
    [
        ("caption_id", STRING),
        ("score", FLOAT64),
        ("p_unseen", FLOAT64),
        ("q_unseen", FLOAT64),
        ("selected_by", STRING),  # budget | sample | null
        ("inclusion_probability", FLOAT64),
        ("image_cluster_size", INT64),
    ]
)
# One row per control caption that gives p-values: `p_unseen` is its own against the others.
CONTROL_SCORES = pa.schema([("caption_id", STRING), ("score", FLOAT64), ("p_unseen", FLOAT64)])
PERTURBATIONS = pa.schema([("caption_id", STRING), ("perturbation_margin", FLOAT64)])
MATCHES = pa.schema(
    [
        ("caption_id", STRING),
        ("purpose", STRING),
        ("seed", INT64),
        ("embedder", STRING),
        ("rank", INT64),
        ("image_id", STRING),
        ("orientation", STRING),  # upright | stored: orientation of the training image in which it is most similar
        ("similarity", FLOAT64),  # less `background`
        ("background", FLOAT64),  # what a background index subtracted from the similarity; 0 without one
        ("region_similarity", FLOAT64),  # within the generation's `region`; null if there is nothing to compare
        ("region_agreement", FLOAT64),  # fraction of that region in which the two agree pixel by pixel
        ("pixel_agreement", FLOAT64),  # fraction of the picture in which the two agree pixel by pixel
        ("region", pa.binary()),  # where they agree: a black and white PNG
    ]
)
# One row per caption and training image that a generation of the caption copied: the best copy.
COPIED_IMAGES = pa.schema(
    [
        ("caption_id", STRING),
        ("image_id", STRING),
        ("orientation", STRING),  # as in `matches`
        ("copy_type", STRING),  # verbatim: the whole image; partial: a region of it
        ("seed", INT64),
        ("similarity", FLOAT64),
        ("region_similarity", FLOAT64),
        ("region_agreement", FLOAT64),
        ("pixel_agreement", FLOAT64),
        ("region", pa.binary()),
    ]
)
# One row per held-out pair that was generated: a caption and an image that the model was never trained on.
HELD_OUT_PAIRS = pa.schema(
    [
        ("caption_id", STRING),
        ("caption", STRING),
        ("image_id", STRING),
        ("file", STRING),
        ("row", INT64),
        ("key", STRING),
    ]
)
IMAGE_CLUSTERS = pa.schema([("image_id", STRING), ("cluster", STRING), ("cluster_size", INT64)])
# One row per embedder, with `index.type: ivf`: how EMBEDDER.faiss was built, which lies in the same folder.
INVERTED_FILES = pa.schema([("recipe", STRING), ("images", INT64)])
EVIDENCE = pa.schema(
    [
        ("image_id", STRING),
        ("file", STRING),
        ("row", INT64),
        ("key", STRING),
        ("url", STRING),
        ("sha256", STRING),
        ("orientation", STRING),  # as in `matches`: the orientation of `image`
        ("image", pa.binary()),
    ]
)
VERDICTS = pa.schema(
    [
        ("caption_id", STRING),
        ("caption", STRING),
        ("row_count", INT64),
        ("verdict", STRING),
        ("risk", STRING),
        ("score", FLOAT64),
        ("perturbation_margin", FLOAT64),
        ("p_unseen", FLOAT64),
        ("p_not_reproduced", FLOAT64),
        ("fresh_copies", INT64),
        ("fresh_generations", INT64),
        ("support", STRING),  # for a confirmed caption, what its fresh seeds show (SUPPORT_WORDS)
        ("near_miss", pa.bool_()),  # unconfirmed, although a generation looks like a copy to the embedder (its floor)
        ("image_id", STRING),
        ("matched_own_image", pa.bool_()),
        ("similarity", FLOAT64),
        ("region_similarity", FLOAT64),
        ("family", STRING),
        ("image_cluster_size", INT64),
        ("error", STRING),
    ]
)
ERRORS = pa.schema(
    [
        ("stage", STRING),
        ("caption_id", STRING),
        ("file", STRING),
        ("row", INT64),
        ("rows", INT64),
        ("kind", STRING),
        ("message", STRING),
        ("traceback", STRING),  # of the worker's exception; null if nothing raised one
    ]
)
# RUN/exclusions.parquet, written by `exclusions`: the dataset rows that carry what the model reproduces.
EXCLUSIONS = pa.schema(
    [
        ("file", STRING),
        ("row", INT64),
        ("key", STRING),
        ("caption_id", STRING),
        ("verdict", STRING),  # of the row's own caption
        ("family", STRING),  # `dedup` keeps one row of each family
        ("action", STRING),
        ("why", STRING),
        ("image_id", STRING),
        ("image_file", STRING),  # the row's sample; null if it has none, or if rows that are kept need it
        ("image_row", INT64),
    ]
)

# One row per caption, seed and mitigation setting. The plain setting has method "none" and no settings.
MITIGATION = pa.schema(
    [
        ("caption_set", STRING),
        ("caption_id", STRING),
        ("caption", STRING),
        ("verdict", STRING),
        ("seed", INT64),
        ("method", STRING),  # METHOD_WORDS
        ("settings", STRING),  # of the method: "bos_scale=1.25, keep=eos"
        ("image_id", STRING),  # the training image that the verdict names; null for ordinary captions
        ("similarity", FLOAT64),  # to that image; for ordinary captions, to the nearest training image
        ("region_similarity", FLOAT64),  # to that image, for `partial` captions
        ("nearest_image_id", STRING),
        ("nearest_similarity", FLOAT64),
        ("is_copy", pa.bool_()),
        ("near_miss", pa.bool_()),  # not a copy, although it looks like one to the embedder (its floor)
        ("clip_score", FLOAT64),
        ("seconds", FLOAT64),
        ("image", pa.binary()),  # stored for a few captions only
    ]
)
# One row per caption set and setting.
MITIGATION_SUMMARY = pa.schema(
    [
        ("caption_set", STRING),
        ("method", STRING),  # METHOD_WORDS
        ("settings", STRING),  # of the method: "bos_scale=1.25, keep=eos"
        ("captions", INT64),
        ("images", INT64),
        ("captions_above", INT64),  # captions with any image above a threshold
        ("captions_near", INT64),  # other captions with any image that is a near miss
        ("share_above", FLOAT64),
        ("share_above_low", FLOAT64),
        ("share_above_high", FLOAT64),
        ("median_similarity", FLOAT64),
        ("clip_score", FLOAT64),
        ("diversity", FLOAT64),
        ("seconds_per_image", FLOAT64),
    ]
)

# One row per pair of pictures that raters judge (`crossaudit review`).
REVIEW_PAIRS = pa.schema(
    [
        ("pair", STRING),
        ("pair_type", STRING),  # PAIR_TYPES
        ("caption_id", STRING),  # of the generation; null for an altered training image
        ("purpose", STRING),
        ("seed", INT64),
        ("image_id", STRING),
        ("image", pa.binary()),  # the training image, for control captions only: `evidence` has the others
    ]
)
# One row per pair and rater, in one part per rater. A confirmed caption has one pair.
REVIEWS = pa.schema(
    [
        ("rater", STRING),
        ("pair", STRING),
        ("pair_type", STRING),
        ("caption_id", STRING),
        ("image_id", STRING),
        ("answer", STRING),  # ANSWER_WORDS
        ("changes", INT64),
        ("seconds", FLOAT64),
        ("answered", STRING),
    ]
)
# A view of the two: one row per case, decided by the majority of the raters who have judged every pair.
HUMAN_VERDICTS = pa.schema(
    [
        ("caption_id", STRING),
        ("outcome", STRING),  # OUTCOME_WORDS
        ("copied", INT64),
        ("not_copied", INT64),
        ("raters", INT64),
    ]
)

# Two views of the manifest: one row per embedder and kind of copy, and one row per stage.
THRESHOLDS = pa.schema(
    [
        ("embedder", STRING),
        ("deciding", pa.bool_()),  # whether verdicts follow from it: the first embedder
        ("copy_type", STRING),  # as in `copied_images`
        ("threshold", FLOAT64),  # null if there were too few control captions to set one
        ("floor", FLOAT64),
        ("source", STRING),  # controls | floor | configured | missing
    ]
)
STAGES = pa.schema(
    [("stage", STRING), ("rows_in", INT64), ("rows_out", INT64), ("errors", INT64), ("seconds", FLOAT64)]
)

VERDICT_WORDS = ("verbatim", "partial", "unconfirmed", "not_selected", "unknown", "error")
# Verdicts that say that the model reproduces a training image.
CONFIRMED_WORDS = ("verbatim", "partial")  # worst first
# Whether a fresh seed copied again, none of the seeds tried did, or none was tried.
SUPPORT_WORDS = ("reproduced", "not reproduced", "untested")
RISK_WORDS = ("high", "medium", "low", "none", "unknown")
PURPOSES = ("discover", "fresh", "control", "pair")
STATUS_WORDS = ("ok", "error")
ACTION_WORDS = ("drop", "keep")
CAPTION_SETS = ("confirmed", "ordinary")
# A case is a generation of a confirmed caption beside the image that it copied. The other pairs are decoys. Not copies:
# a generation of a control caption beside its nearest training image, and a case with the image of another caption.
# Copies: a training image beside an altered version of itself.
NEGATIVE_DECOYS, POSITIVE_DECOYS = ("control", "mismatch"), ("altered",)
PAIR_TYPES = ("case", *NEGATIVE_DECOYS, *POSITIVE_DECOYS)
ANSWER_WORDS = ("copy", "part", "no copy", "unsure")
# Answers that say that something was copied.
COPIED_ANSWERS = ("copy", "part")
OUTCOME_WORDS = ("upheld", "overturned", "undecided")
# Mitigation methods (`audit.mitigation.methods`), and "none" for plain generation.
METHOD_WORDS = (
    "none",
    "rescale",
    "padding",
    "attenuate",
    "stabilise",
    "delayed_guidance",
    "dilute",
    "weak_guidance",
)

_STATUS = [pa.field("status", STRING), pa.field("error", STRING)]


def _features(columns: Iterable[str]) -> list[pa.Field]:
    return [pa.field(name, DETECTOR_COLUMNS[name]) for name in columns]


def features_of(schema: pa.Schema) -> list[str]:
    """List the detector columns in the schema of a screen or of generations, in its order."""
    return [name for name in schema.names if name in DETECTOR_COLUMNS]


def scored(columns: Iterable[str], *, output: str | None = None) -> pa.Schema:
    """Return the schema of what `audit.screen` (output None) or `audit.generate` ("image" | "latents") returns."""
    fields = [pa.field("caption", STRING), pa.field("seed", INT64), pa.field("prompt_tokens", INT64)]
    fields += _features(columns)
    if output == "image":
        fields.append(pa.field("image", pa.binary()))
    elif output == "latents":
        fields.append(pa.field("latents", pa.list_(pa.float32())))
    return pa.schema(fields + _STATUS)


def screen(columns: Iterable[str]) -> pa.Schema:
    """Return the schema of the table `screen`: one row per caption and seed."""
    head = [pa.field("caption_id", STRING), pa.field("seed", INT64), pa.field("prompt_tokens", INT64)]
    return pa.schema(head + _features(columns) + _STATUS)


def control_screen(columns: Iterable[str]) -> pa.Schema:
    """Return the schema of the table `control_screen`: that of `screen` plus the text and its group."""
    head = [pa.field("caption_id", STRING), pa.field("caption", STRING), pa.field("caption_group", STRING)]
    return pa.schema(head + list(screen(columns))[1:])


def generations(columns: Iterable[str]) -> pa.Schema:
    """Return the schema of the table `generations`: one row per caption, purpose and seed."""
    head = [
        pa.field("caption_id", STRING),
        pa.field("purpose", STRING),
        pa.field("seed", INT64),
        pa.field("prompt_tokens", INT64),
    ]
    tail = [pa.field("image", pa.binary()), pa.field("region", pa.binary())]
    scores = [field for field in _features(columns) if field.name != "region"]
    return pa.schema(head + scores + tail + _STATUS)


def embeddings(width: int) -> pa.Schema:
    """Return the schema of the table `embeddings_<embedder>`: one row per training image.

    Vectors are unit vectors of `width` float16 values.
    """
    return pa.schema(
        [
            ("image_id", STRING),
            ("file", STRING),
            ("row", INT64),
            ("key", STRING),
            ("sha256", STRING),
            ("vector", pa.list_(pa.float16(), width)),
        ]
    )
