"""Reports: the blocks of the README, generated pages, the tour."""
