"""The view-adaptive controller: a search for the retention ratio of each camera."""
