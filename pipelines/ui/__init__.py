"""Show a run in the browser: its progress while it works, then its report, its captions, its images and SQL."""
