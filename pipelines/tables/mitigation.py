"""Name the working tables of a measurement of mitigation."""

from __future__ import annotations

# Working tables: the captions of each group, one part a group; the vectors of the images, one part a shard.
CAPTIONS, VECTORS = "_mitigation_captions", "_mitigation_vectors"
MEASURED, SUMMARY = "mitigation", "mitigation_summary"
