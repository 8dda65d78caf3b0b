"""Run steps over shards on Ray workers, exactly once: contexts, pool, schedule, jobs."""
