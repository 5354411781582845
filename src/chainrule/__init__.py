"""Chainrule: fine-tune pretrained models on an ordinary computer, and know whether it helped."""

__version__ = "0.1.0"
