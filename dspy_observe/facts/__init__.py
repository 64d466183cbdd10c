"""The only room that knows DSPy's internals.

``calls``
    who is called: kind, name, program, version, parent, outcome.
``lm``
    what one LM call used: tokens, cost, cache, served model, first chunk.
``content``
    inputs and outputs as plain data, without credentials.
``identity``
    maps keyed by object identity that keep nothing alive.
"""
