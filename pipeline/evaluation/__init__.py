"""Evaluation of trained models: metrics with intervals, floors and protocol, and the report."""
