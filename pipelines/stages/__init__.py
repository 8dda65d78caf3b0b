"""Define the stages of an audit, one per file, each with one `run(run)` (order: docs/explanation/architecture.md)."""
