"""One file a stage, in the order of docs/design.md section 5; each has one `run(audit)`."""
