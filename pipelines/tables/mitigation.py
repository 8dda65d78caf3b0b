"""Name the tables of a mitigation measurement."""

from __future__ import annotations

# Working tables: the captions of each set, one part per set; the vectors of the images, with the parts of MEASURED.
CAPTIONS, VECTORS = "_mitigation_captions", "_mitigation_vectors"
MEASURED, SUMMARY = "mitigation", "mitigation_summary"
