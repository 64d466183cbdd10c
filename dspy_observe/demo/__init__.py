"""A demonstration: a real program answers real questions over HTTP for several users, while everything is observed.

    python -m dspy_observe.demo

Without ``OPENAI_API_KEY`` the model is a stand-in on loopback that reads the prompt and picks the sentence that fits
(``model.py``), so the run costs nothing and knows the bill that the observed totals must match. What is shown is read
from records, spans, log lines and the scraped metrics page; nothing is made up.
"""
