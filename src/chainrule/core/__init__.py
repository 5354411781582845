"""The nouns: Recipe, Task, Run, Artifact and Report, as frozen data without torch."""
