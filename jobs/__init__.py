"""Commands: each parses its command line and calls the library. `sdpo NAME` and `python jobs/NAME.py` are the same."""
