"""Run crossaudit: configuration, command line, execution on Ray, and reading and writing of datasets."""
