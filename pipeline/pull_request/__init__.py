"""The report on a pull request: what it changes in the models, their measures, the settings and the data."""
