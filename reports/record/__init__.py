"""The record of a run: everything that a report shows, as one pydantic model.

The HTML report and all exports are rendered from it. `build.build(run)` reads it; `model.Record` defines it.
"""
