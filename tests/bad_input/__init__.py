"""Bad input: params, archives, pictures, labels and downloads that must be refused.

Each file of cases has ``CASES``. ``test_bad_input.py`` runs them in its own process, and
``benchmarks/bad_input.py`` each in a process of its own, to measure time and memory.
"""
