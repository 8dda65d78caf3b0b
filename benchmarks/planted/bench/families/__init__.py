"""The kinds of networks that PlantedBench trains: one file for each family of models."""
