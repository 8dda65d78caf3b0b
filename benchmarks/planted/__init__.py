"""Train and examine a small Stable Diffusion that memorizes on purpose."""
