"""Methods of mitigation while serving: one file per method (`audit.mitigation.methods.registry` lists them)."""
