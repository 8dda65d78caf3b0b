"""Count what an audit costs and what it will be able to claim, without running it."""
