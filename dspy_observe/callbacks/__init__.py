"""The callbacks: each stands alone in DSPy's list, in any order, or inside a :class:`CallbackGroup`."""
