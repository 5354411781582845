"""The ground floor: files, assets, devices, memory, seeds, optional packages, progress."""
