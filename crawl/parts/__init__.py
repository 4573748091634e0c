"""Lists of addresses that are crawled in parts, side by side, by the workers of a cluster."""
