"""The commands of p2d_sim: cameras, world, train and evaluate."""
