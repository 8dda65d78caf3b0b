"""Write copies of datasets without excluded rows: Parquet, text and WebDataset tars."""
