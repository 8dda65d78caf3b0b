"""Read and validate audit.yaml."""
