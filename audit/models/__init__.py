"""Load a checkpoint exactly as diffusers does, and sample from it; refuse what is not supported."""
