"""Print to a terminal: escaped text and progress."""
