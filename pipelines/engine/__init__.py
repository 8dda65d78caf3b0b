"""Run steps on shards with Ray workers, each shard exactly once: contexts, pool, schedule, jobs."""
