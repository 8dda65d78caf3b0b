"""Operations on whole runs: audit, index, mitigate, purge, reproduce, lookup, clean."""
