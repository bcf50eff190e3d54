"""Figures of a search: `names` what there is, `catalogue` how each is read and drawn.

A plot is a pure function from records to a figure; `style` is what all share, `writing` makes files
of them. Only `names` is free of plotly: import the others where a figure is wanted.
"""
