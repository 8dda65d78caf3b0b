"""Read finished runs: run SQL queries, check the accounting, list exclusions and write HTML reports."""
