"""Learning signals: what the scores of student and teacher make each token of a response move by, one module each.

A new signal is one module with a class like those here, a line in `registry.SIGNALS`, and, where it has settings, one
section in `sdpo_ray.config.distill`. Packing, step, trainer and memory estimate read the class's declarations.
"""
