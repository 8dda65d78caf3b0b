"""Readers of datasets: captions from Parquet, images from WebDataset tars and Parquet."""
