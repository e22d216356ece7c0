"""The command line: shared options, error output, and the group `sdpo` that imports a command when it is called."""
