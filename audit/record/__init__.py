"""A run on disk: its file system and its Parquet parts. Imports neither Ray nor DuckDB."""
