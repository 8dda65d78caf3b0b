"""Read and write the tables that runs hold."""
