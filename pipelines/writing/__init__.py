"""Writers of datasets: a Parquet file without some rows, a WebDataset tar without some samples."""
