"""From a run directory to a page that a person reads: verdict, figures, tables.

``verdict`` judges the curves, ``collect`` reads a run into plain values, ``attempts`` and ``classes`` turn them into
table rows, ``figures`` draws, ``page`` writes the HTML. Nothing here imports torch, numpy or pydantic; Altair is
imported only when there are curves to draw.
"""
