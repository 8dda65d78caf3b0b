"""Everything that works on a whole run: audit, index, mitigate, purge, reproduce, look up, clean."""
