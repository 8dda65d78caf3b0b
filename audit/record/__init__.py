"""Read and write a run on disk: its file system and its Parquet parts. Imports neither Ray nor DuckDB."""
