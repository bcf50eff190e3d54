"""What is believed of genes that were not tried: a model of the individuals that were."""
