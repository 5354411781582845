"""Pretrained models: the catalog, loading, looking inside, saving."""
