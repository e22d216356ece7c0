"""Language models that keep learning from the people who use them.

Stage packages are verbs; alphabetical order is the order in which data meets them:
`capture`, `curate`, `distill`, `evaluate`, `promote`. `simulate` holds people and a world for them.
"""
