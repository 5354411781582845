"""What a training will take on this machine, and which one to recommend: before step one."""
