"""The engine of crossaudit: configuration, command line, Ray, reading and writing datasets."""
