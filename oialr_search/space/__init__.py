"""What is searched: the search file, its hyperparameters and genes, metrics → fitness."""
