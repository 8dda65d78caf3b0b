"""Read finished runs: SQL views and queries, the check of the accounting, exclusions and HTML reports."""
