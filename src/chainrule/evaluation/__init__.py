"""Evaluation: intervals, baselines, the verdict, and the report for people."""
