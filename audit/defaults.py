"""Hold the defaults that the library and its commands share. Nothing is imported here, so that `--help` stays quick."""

# The screening detector that is used unless another one is named (docs/decisions/0029-default-detector.md).
DEFAULT_DETECTOR = "caption_response"
