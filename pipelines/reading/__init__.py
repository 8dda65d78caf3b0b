"""Read datasets: captions from text, JSON lines, CSV, Parquet and tars; images from tars, Parquet files and folders."""
