"""Find duplicates: near-identical captions by MinHash, near-duplicate images by their vectors."""
