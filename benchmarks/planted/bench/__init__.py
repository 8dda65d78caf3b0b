"""PlantedBench: models that memorize to a known degree, with captions that say nothing about it (see README.md)."""
