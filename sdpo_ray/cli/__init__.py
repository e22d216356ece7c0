"""What all commands share: options, errors, and the lazy `sdpo` group."""
