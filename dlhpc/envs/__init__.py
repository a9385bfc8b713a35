"""Software environments: a recipe (YAML) becomes a built, verified and recorded folder that jobs can use.

``recipe`` is what staff write, ``build`` goes through its steps, ``horovod`` builds and caches the one package that
has no ready wheel, ``record`` is what the planner and the trainer read afterwards. ``bootstrap`` makes a fresh
checkout's ``.venv``; it needs nothing but Python, as do ``venv``, ``state``, ``progress`` and ``commands`` under it.
"""
