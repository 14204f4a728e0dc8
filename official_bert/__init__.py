"""BERT pretraining with LANS on the TF Model Garden: tasks, recipes, commands, export."""
