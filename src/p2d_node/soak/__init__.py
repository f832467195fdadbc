"""The node under random faults: cameras that fail, callers, signals, and what it answers then."""
