"""BOSS: four tasks, each with one data set in and three out of the distribution (arXiv 2306.04618).

Its fifth task, named entities, is not asked: scenario S2 of arXiv 2406.12928 has none.
"""
