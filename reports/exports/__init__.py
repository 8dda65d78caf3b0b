"""Turn the record of a run into formats in which results are handed on. One file per format."""
