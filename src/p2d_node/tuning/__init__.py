"""The view-adaptive controller: a search for the retention ratio of each camera (`p2d tune-ratios`)."""
