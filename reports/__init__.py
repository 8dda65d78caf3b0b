"""What is read after an audit: SQL views, queries, the check of its accounting, the HTML report."""
