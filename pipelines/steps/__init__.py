"""Implement the steps that stages are composed of; each step processes shards."""
