"""What an audit would take, before it is begun: counted, measured or assumed, never run."""
