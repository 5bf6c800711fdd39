"""What quantizing a module costs: outcomes with their sampling error, replay, the exact sweep."""
