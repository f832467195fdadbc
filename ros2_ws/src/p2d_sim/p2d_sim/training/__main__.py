"""`python -m p2d_sim.training`: train p2d-mini and write its folder."""

from p2d_sim.training.cli import main

if __name__ == '__main__':
    raise SystemExit(main())
